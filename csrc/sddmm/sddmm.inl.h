// out[slot] = a[row] . b[index]: dot products at the codes' positions, several rows of b side by side.
#include "common/dots.h"

namespace {

template <class T>
void sddmm_rows(const sk_matrix& a, const sk_matrix& b, const sk_codes& codes, const T* gate, T* out, int64_t begin,
                int64_t end) {
  constexpr int kSide = 4, kBatch = 256;
  const T* rows[kBatch];
  int64_t slots[kBatch];
  float dots[kBatch];
  for (int64_t row = begin; row < end; ++row) {
    const T* left = row_of<T>(a, row);
    for (int64_t slot = row_begin(codes, row), stop = row_end(codes, row); slot < stop;) {
      int count = 0;
      for (; slot < stop && count < kBatch; ++slot) {
        if (gate && to_float(gate[slot]) == 0) {
          out[slot] = T{};
          continue;
        }
        slots[count] = slot;
        rows[count++] = row_of<T>(b, codes.indices[slot]);
      }
      int i = 0;
      for (; i + kSide <= count; i += kSide)
        dot_rows<kSide, Split>(left, rows + i, a.cols, dots + i, i + 2 * kSide <= count ? rows + i + kSide : nullptr);
      for (; i < count; ++i) dot_rows<1, Split>(left, rows + i, a.cols, dots + i, i + 1 < count ? rows + i + 1 : nullptr);
      for (i = 0; i < count; ++i) out[slots[i]] = from_float<T>(dots[i]);
    }
  }
}

sk_status sddmm(int32_t dtype, sk_matrix a, sk_matrix b, sk_codes codes, const void* gate, void* out,
                int32_t threads) {
  const sk_status status = check_codes(codes, b.rows);
  if (status.code) return status;
  if (a.rows != codes.n || a.cols != b.cols) return failure(SK_BAD_SIZE);
  return for_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    parallel_runs(codes.n, 16, threads, [&](int, int64_t begin, int64_t end) {
      sddmm_rows(a, b, codes, static_cast<const T*>(gate), static_cast<T*>(out), begin, end);
    });
    return success();
  });
}

}  // namespace
