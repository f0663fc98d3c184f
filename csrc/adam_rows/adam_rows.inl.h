// Adam in place on rows. A row is stepped in a scratch copy that stays in L1 through all the steps it has to
// catch up with; after each step it is rounded to T, so that catching up gives the bits stepping would have.
#include "common/codes.h"

namespace {

struct AdamStep {
  float rate;   // lr / (1 - beta1^t)
  float scale;  // 1 / sqrt(1 - beta2^t)
};

inline AdamStep adam_step(const sk_adam& job, int64_t t) {
  const double t1 = static_cast<double>(t);
  return {static_cast<float>(job.lrs[t - 1] / (1 - __builtin_pow(job.beta1, t1))),
          static_cast<float>(1 / __builtin_sqrt(1 - __builtin_pow(job.beta2, t1)))};
}

// A latent that stays silent lets its moments decay into denormals, which cost 100 cycles each; flush them.
// Only where eps is large enough for a denormal second moment to make no difference.
struct FlushDenormals {
#if defined(__SSE2__)
  unsigned before;
  explicit FlushDenormals(bool on) : before(_mm_getcsr()) {
    if (on) _mm_setcsr(before | 0x8040);
  }
  ~FlushDenormals() { _mm_setcsr(before); }
#else
  explicit FlushDenormals(bool) {}
#endif
};

inline float dot(const float* a, const float* b, int64_t pitch) {
  vf s{};
  for (int64_t i = 0; i < pitch; i += kLanes) s = fma(load(a + i), load(b + i), s);
  return sum(s);
}

template <class T>
inline void copy_row(const T* from, float* to, int64_t d, int64_t pitch) {
  for (int64_t i = 0; i < pitch; i += kLanes)
    store(to + i, i + kLanes <= d ? load(from + i) : i < d ? load_part(from + i, static_cast<int>(d - i)) : vf{});
}
template <class T>
inline void write_row(const float* from, T* to, int64_t d) {
  for (int64_t i = 0; i < d; i += kLanes) store_n(to + i, load(from + i), d - i < kLanes ? static_cast<int>(d - i) : kLanes);
}

// p, g and their zero padding up to `pitch` are scratch; m and v are the row's own memory.
template <class T, bool Gradient>
inline void step_row(const sk_adam& job, AdamStep step, float* p, float* m, float* v, float* g, int64_t d,
                     int64_t pitch) {
  const vf b1 = splat(static_cast<float>(job.beta1)), b2 = splat(static_cast<float>(job.beta2));
  const vf c1 = splat(static_cast<float>(1 - job.beta1)), c2 = splat(static_cast<float>(1 - job.beta2));
  const vf eps = splat(static_cast<float>(job.eps)), scale = splat(step.scale), rate = splat(-step.rate);
  vf parallel = {}, norm = {};
  if (Gradient && job.remove_parallel) {
    const float square = dot(p, p, pitch);
    if (square > 0) parallel = splat(-dot(g, p, pitch) / square);
  }
  for (int64_t i = 0; i < d; i += kLanes) {
    const int n = d - i < kLanes ? static_cast<int>(d - i) : kLanes;
    vf mi = load_n(m + i, n) * b1, vi = load_n(v + i, n) * b2, pi = load(p + i);
    if (Gradient) {
      const vf gi = fma(parallel, pi, load(g + i));
      mi = fma(c1, gi, mi);
      vi = fma(c2 * gi, gi, vi);
    }
    store_n(m + i, mi, n);
    store_n(v + i, vi, n);
    pi = fma(rate, mi / fma(sqrt(vi), scale, eps), pi);
    if (n < kLanes) {  // 0/0 where eps is 0: keep the padding zero
      store(p + i, vf{});
      store_part(p + i, pi, n);
      pi = load(p + i);
    }
    norm = fma(pi, pi, norm);
    store(p + i, pi);
  }
  vf shrink = splat(1);
  const float square = job.unit_norm ? sum(norm) : 0;
  if (square > 0) shrink = splat(1 / __builtin_sqrtf(square));
  const bool narrow = sizeof(T) < sizeof(float);
  if (!narrow && !job.unit_norm) return;
  for (int64_t i = 0; i < pitch; i += kLanes) {
    T rounded[kLanes];
    store(rounded, load(p + i) * shrink);
    store(p + i, load(rounded));
  }
}

template <class T>
sk_status adam_rows_of(const sk_adam& job, int threads) {
  const int64_t m = job.param.rows, d = job.param.cols, pitch = (d + 15) / 16 * 16;
  const int64_t count = job.rows ? job.row_count : m;
  int64_t earliest = job.step - 1;
  for (int64_t i = 0; job.rows && job.last_step && i < count; ++i)
    if (job.last_step[job.rows[i]] < earliest) earliest = job.last_step[job.rows[i]];
  if (earliest < 0) earliest = 0;

  const Scratch<AdamStep> steps(job.step - earliest);
  const Scratch<float> scratch(2 * pitch * (threads > 1 ? threads : 1));
  if (!steps.data || !scratch.data) return failure(SK_NO_MEMORY);
  for (int64_t t = earliest + 1; t <= job.step; ++t) steps[t - earliest - 1] = adam_step(job, t);

  parallel_runs(count, 16, threads, [&](int thread, int64_t begin, int64_t end) {
    const FlushDenormals flush(job.eps >= 1e-15);
    float *p = scratch.data + 2 * pitch * thread, *g = p + pitch;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = job.rows ? job.rows[i] : i;
      const int64_t last = job.rows && job.last_step ? job.last_step[row] : job.step - 1;
      float *mi = row_of<float>(job.exp_avg, row), *vi = row_of<float>(job.exp_avg_sq, row);
      copy_row(row_of<T>(job.param, row), p, d, pitch);
      const int64_t silent = job.grad.data ? job.step - 1 : job.step;
      for (int64_t t = last + 1; t <= silent; ++t)
        step_row<T, false>(job, steps[t - earliest - 1], p, mi, vi, nullptr, d, pitch);
      if (job.grad.data && last < job.step) {
        copy_row(row_of<T>(job.grad, i), g, d, pitch);
        step_row<T, true>(job, steps[job.step - earliest - 1], p, mi, vi, g, d, pitch);
      }
      write_row(p, row_of<T>(job.param, row), d);
      if (job.last_step) job.last_step[row] = job.step;
    }
  });
  return success();
}

inline sk_status check_adam(const sk_adam& job) {
  const int64_t m = job.param.rows, d = job.param.cols;
  const sk_output *first = &job.exp_avg, *second = &job.exp_avg_sq;
  if (first->rows != m || second->rows != m || first->cols != d || second->cols != d) return failure(SK_BAD_SIZE);
  if (job.grad.data && (job.grad.cols != d || job.grad.rows != (job.rows ? job.row_count : m)))
    return failure(SK_BAD_SIZE);
  if (job.step < 1 || job.lr_count < job.step) return failure(SK_BAD_SIZE, 0, job.step);
  if (!job.rows) return success();
  const Scratch<uint8_t> seen((m + 7) / 8);
  if (!seen.data) return failure(SK_NO_MEMORY);
  memset(seen.data, 0, static_cast<size_t>((m + 7) / 8));
  for (int64_t i = 0; i < job.row_count; ++i) {
    const int64_t row = job.rows[i];
    if (row < 0 || row >= m) return failure(SK_BAD_ROW, i, row);
    if (seen[row / 8] >> row % 8 & 1) return failure(SK_DUPLICATE_ROW, i, row);
    seen[row / 8] = static_cast<uint8_t>(seen[row / 8] | 1 << row % 8);
    if (job.last_step && (job.last_step[row] < 0 || job.last_step[row] > job.step))
      return failure(SK_BAD_STEP, row, job.last_step[row]);
  }
  return success();
}

sk_status adam_rows(int32_t dtype, const sk_adam* job, int32_t threads) {
  const sk_status status = check_adam(*job);
  if (status.code) return status;
  return for_dtype(dtype, [&](auto type) { return adam_rows_of<decltype(type)>(*job, threads); });
}

}  // namespace
