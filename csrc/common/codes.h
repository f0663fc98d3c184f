// Reading sparse codes: rows, checks, and the dtype switch every kernel starts with.
#pragma once
#include "common/simd.h"
#include "common/threads.h"
#include "sae_kernels/kernels.h"

namespace {

inline sk_status failure(int32_t code, int64_t position = 0, int64_t value = 0) {
  return sk_status{code, 0, position, value};
}
inline sk_status success() { return failure(SK_OK); }

inline int64_t row_begin(const sk_codes& c, int64_t row) { return c.offsets ? c.offsets[row] : row * c.k; }
inline int64_t row_end(const sk_codes& c, int64_t row) { return row_begin(c, row + 1); }

// Position of the first index outside [0, m), or -1. As unsigned, a negative index is a huge one.
inline int64_t first_bad_index(const int32_t* indices, int64_t count, int64_t m) {
  const uint32_t limit = static_cast<uint32_t>(m < 0 ? 0 : m > INT32_MAX ? INT64_C(1) << 31 : m);
  for (int64_t i = 0; i < count;) {
    const int64_t end = i + 4096 < count ? i + 4096 : count;
    int bad = 0;
    for (int64_t j = i; j < end; ++j) bad |= static_cast<uint32_t>(indices[j]) >= limit;
    for (; bad && i < end; ++i)
      if (static_cast<uint32_t>(indices[i]) >= limit) return i;
    i = end;
  }
  return -1;
}

inline sk_status check_codes(const sk_codes& c, int64_t m) {
  if (c.n < 0 || c.nnz < 0 || m < 0) return failure(SK_BAD_SIZE);
  if (!c.offsets) {
    if (c.k < 0 || c.nnz != c.n * c.k) return failure(SK_BAD_SIZE);
  } else {
    int64_t before = 0;
    for (int64_t r = 0; r <= c.n; ++r) {
      const int64_t at = c.offsets[r];
      if (at < before || at > c.nnz || (r == 0 && at != 0)) return failure(SK_BAD_OFFSET, r, at);
      before = at;
    }
    if (before != c.nnz) return failure(SK_BAD_OFFSET, c.n, before);
  }
  const int64_t bad = first_bad_index(c.indices, c.nnz, m);
  return bad < 0 ? success() : failure(SK_BAD_INDEX, bad, c.indices[bad]);
}

template <class T>
SK_INLINE const T* row_of(const sk_matrix& a, int64_t row) {
  return static_cast<const T*>(a.data) + row * a.stride;
}
template <class T>
SK_INLINE T* row_of(const sk_output& a, int64_t row) {
  return static_cast<T*>(a.data) + row * a.stride;
}

// body(T{}) with T the element type that `dtype` names.
template <class Body>
inline sk_status for_dtype(int32_t dtype, const Body& body) {
  switch (dtype) {
    case SK_F32: return body(float{});
    case SK_BF16: return body(bf16{});
    case SK_F16: return body(f16{});
    default: return failure(SK_BAD_DTYPE, 0, dtype);
  }
}

}  // namespace
