// The n best (value, token) of each latent, from a stream of codes: slots are sorted by latent, threads own
// latents, and each new slot is put into its latent's sorted list where it beats the last entry.
#include "transpose/transpose.inl.h"

namespace {

// An unused entry, (-inf, -1), is worse than anything.
inline bool beats(float value, int64_t token, float old_value, int64_t old_token) {
  return old_token < 0 || value > old_value || (value == old_value && token < old_token);
}

inline void keep(float* values, int64_t* tokens, int64_t best, float value, int64_t token) {
  int64_t at = best - 1;
  if (!beats(value, token, values[at], tokens[at])) return;
  for (; at > 0 && beats(value, token, values[at - 1], tokens[at - 1]); --at) {
    values[at] = values[at - 1];
    tokens[at] = tokens[at - 1];
  }
  values[at] = value;
  tokens[at] = token;
}

sk_status latent_topn(int32_t dtype, sk_codes codes, int64_t m, int64_t best, float* best_values, int64_t* best_tokens,
                      int64_t first_token, int32_t threads) {
  const sk_status status = check_codes(codes, m);
  if (status.code) return status;
  if (best < 0 || codes.n > INT32_MAX || first_token < 0 || first_token > INT64_MAX - codes.n) return failure(SK_BAD_SIZE);
  if (best == 0 || codes.nnz == 0) return success();
  const Scratch<int64_t> offsets(m + 1), order(codes.nnz);
  const Scratch<int32_t> rows(codes.nnz);
  if (!offsets.data || !order.data || !rows.data) return failure(SK_NO_MEMORY);
  if (!sort_by_latent(codes, m, offsets.data, order.data, rows.data, threads)) return failure(SK_NO_MEMORY);
  return for_dtype(dtype, [&](auto type) {
    const auto* values = static_cast<const decltype(type)*>(codes.values);
    parallel_runs(m, 256, threads, [&](int, int64_t begin, int64_t end) {
      for (int64_t latent = begin; latent < end; ++latent) {
        for (int64_t at = offsets[latent]; at < offsets[latent + 1]; ++at) {
          const float value = to_float(values[order[at]]);
          if (value != 0 && value == value)
            keep(best_values + latent * best, best_tokens + latent * best, best, value, first_token + rows[at]);
        }
      }
    });
    return success();
  });
}

}  // namespace
