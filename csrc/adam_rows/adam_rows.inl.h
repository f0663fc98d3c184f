// Adam in place on rows. A row stays in L1 through all the steps it has to catch up with, and is rounded to T
// after each of them, so that catching up gives the bits that stepping would have given.
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

SK_INLINE int lanes_at(int64_t i, int64_t d) { return d - i < kLanes ? static_cast<int>(d - i) : kLanes; }

template <class T>
inline float dot(const T* a, const T* b, int64_t d) {
  vf s{};
  for (int64_t i = 0; i < d; i += kLanes) s = fma(load_n(a + i, lanes_at(i, d)), load_n(b + i, lanes_at(i, d)), s);
  return sum(s);
}

// One step of one row, in place. `wide` (d floats of scratch) holds the row before it is made a unit vector.
template <class T, bool Gradient>
inline void step_row(const sk_adam& job, AdamStep step, T* p, float* m, float* v, const T* g, int64_t d, float* wide) {
  const vf b1 = splat(static_cast<float>(job.beta1)), b2 = splat(static_cast<float>(job.beta2));
  const vf c1 = splat(static_cast<float>(1 - job.beta1)), c2 = splat(static_cast<float>(1 - job.beta2));
  const vf eps = splat(static_cast<float>(job.eps)), scale = splat(step.scale), rate = splat(-step.rate);
  vf parallel = {}, norm = {};
  if (Gradient && job.remove_parallel) {
    const float square = dot(p, p, d);
    if (square > 0) parallel = splat(-dot(g, p, d) / square);
  }
  for (int64_t i = 0; i < d; i += kLanes) {
    const int n = lanes_at(i, d);
    vf mi = load_n(m + i, n) * b1, vi = load_n(v + i, n) * b2, pi = load_n(p + i, n);
    if (Gradient) {
      const vf gi = fma(parallel, pi, load_n(g + i, n));
      mi = fma(c1, gi, mi);
      vi = fma(c2 * gi, gi, vi);
    }
    store_n(m + i, mi, n);
    store_n(v + i, vi, n);
    pi = fma(rate, mi / fma(sqrt(vi), scale, eps), pi);
    if (!job.unit_norm) {
      store_n(p + i, pi, n);
      continue;
    }
    store_n(wide + i, pi, n);
    pi = load_n(wide + i, n);  // lanes beyond the row, 0/0 where eps is 0, become 0 again
    norm = fma(pi, pi, norm);
  }
  if (!job.unit_norm) return;
  const float square = sum(norm);
  const vf shrink = splat(square > 0 ? 1 / __builtin_sqrtf(square) : 1);
  for (int64_t i = 0; i < d; i += kLanes)
    store_n(p + i, load_n(wide + i, lanes_at(i, d)) * shrink, lanes_at(i, d));
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
  const Scratch<float> scratch(pitch * (threads > 1 ? threads : 1));
  if (!steps.data || !scratch.data) return failure(SK_NO_MEMORY);
  for (int64_t t = earliest + 1; t <= job.step; ++t) steps[t - earliest - 1] = adam_step(job, t);

  parallel_runs(count, 16, threads, [&](int thread, int64_t begin, int64_t end) {
    const FlushDenormals flush(job.eps >= 1e-15);
    float* wide = scratch.data + pitch * thread;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = job.rows ? job.rows[i] : i;
      const int64_t last = job.rows && job.last_step ? job.last_step[row] : job.step - 1;
      const int64_t silent = job.grad.data ? job.step - 1 : job.step;
      T* p = row_of<T>(job.param, row);
      float *m1 = row_of<float>(job.exp_avg, row), *m2 = row_of<float>(job.exp_avg_sq, row);
      for (int64_t t = last + 1; t <= silent; ++t)
        step_row<T, false>(job, steps[t - earliest - 1], p, m1, m2, nullptr, d, wide);
      if (job.grad.data && last < job.step)
        step_row<T, true>(job, steps[job.step - earliest - 1], p, m1, m2, row_of<T>(job.grad, i), d, wide);
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
