// linear_threshold's selection: a chunk's entries that are not <= theta, counted, then written. The caller
// sums the counts and says where each row's entries go, so that chunks of any order and shape end up as one
// CSR.
#pragma once
#include "common/codes.h"
#include "select/scores.inl.h"

namespace {
namespace sel {

// Bits of the latents of one vector that stay; theta's step is 0 for one theta for all, else 1.
template <class Source>
inline uint64_t above_theta(const Source& scores, int64_t i, int m, const float* theta, int64_t step,
                            FloatVector& z) {
  constexpr int kWide = kLanes<int32_t>;
  z = (FloatVector)(m < kWide ? scores.some(i, m) : scores.at(i));
  FloatVector t = theta[0] - FloatVector{};
  if (step) t = m < kWide ? load_some(theta + i, m) : load<FloatVector>(theta + i);
  const uint64_t bits = at_least((Vector<int32_t>)(z <= t), Vector<int32_t>{});  // true is -1, so these stay
  return m < kWide ? bits & ((uint64_t(1) << m) - 1) : bits;
}

}  // namespace sel

sk_status threshold_count(sk_matrix scores, const float* bias, const float* theta, int64_t theta_step, int64_t* counts,
                          int32_t threads) {
  constexpr int kWide = sel::kLanes<int32_t>;
  parallel_runs(scores.rows, sel::rows_at_a_time(scores.cols), threads, [&](int, int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      int64_t count = 0;
      sel::with_scores(row_of<float>(scores, r), bias, nullptr, [&](const auto& source) {
        sel::FloatVector z;
        for (int64_t i = 0; i < scores.cols; i += kWide) {
          const int m = int(scores.cols - i < kWide ? scores.cols - i : kWide);
          count += sel::ones(sel::above_theta(source, i, m, theta, theta_step, z));
        }
      });
      counts[r] = count;
    }
  });
  return success();
}

// Row r's entries go to values and indices from starts[r] on; latent numbers begin at `first`.
sk_status threshold_fill(int32_t dtype, sk_matrix scores, const float* bias, const float* theta, int64_t theta_step,
                         int64_t first, const int64_t* starts, void* values, int32_t* indices, int32_t threads) {
  constexpr int kWide = sel::kLanes<int32_t>;
  if (first < 0 || first + scores.cols > INT32_MAX) return failure(SK_BAD_SIZE);
  return for_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    parallel_runs(scores.rows, sel::rows_at_a_time(scores.cols), threads, [&](int, int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        int64_t at = starts[r];
        sel::with_scores(row_of<float>(scores, r), bias, nullptr, [&](const auto& source) {
          sel::FloatVector z;
          for (int64_t i = 0; i < scores.cols; i += kWide) {
            const int m = int(scores.cols - i < kWide ? scores.cols - i : kWide);
            const uint64_t bits = sel::above_theta(source, i, m, theta, theta_step, z);
            if (!bits) continue;
            int32_t packed[kWide + sel::kSlack];
            const int n = sel::compress(packed, (sel::Vector<int32_t>)z, bits);
            vf kept;
            memcpy(&kept, packed, sizeof kept);
            store_n(static_cast<T*>(values) + at, kept, n);
            sel::compress(packed, sel::lane_numbers() + int32_t(first + i), bits);
            memcpy(indices + at, packed, size_t(n) * sizeof(int32_t));
            at += n;
          }
        });
      }
    });
    return success();
  });
}

// Moves row r's `counts[r]` entries from one CSR's place to another's.
sk_status place_rows(int32_t dtype, int64_t rows, const int64_t* counts, const int64_t* from, const void* values,
                     const int32_t* indices, const int64_t* to, void* out_values, int32_t* out_indices, int32_t threads) {
  return for_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    parallel_runs(rows, 512, threads, [&](int, int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        const size_t count = size_t(counts[r]);
        if (count == 0) continue;  // arrays of nothing have no address
        memcpy(static_cast<T*>(out_values) + to[r], static_cast<const T*>(values) + from[r], count * sizeof(T));
        memcpy(out_indices + to[r], indices + from[r], count * sizeof(int32_t));
      }
    });
    return success();
  });
}

}  // namespace
