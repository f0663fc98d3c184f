// AMX: eight tile registers of 16 rows by 64 bytes, and products of two of them that are added to a third. Only in the
// object that is compiled for them.
#pragma once
#include "common/simd.h"

#if defined(SK_LEVEL) && SK_LEVEL >= 3  // isa.cpp.in; of compilers' own names for it there are two
#define SK_TILES 1

namespace {
namespace tiles {

constexpr int kRows = 16, kBytes = 64;  // of every tile

// While one lives, its thread's tiles have their full size. In the end they are given back: a task switch is to save no
// tiles that nobody uses.
struct InUse {
  const bool wanted;

  explicit InUse(bool wanted = true) : wanted(wanted) {
    if (!wanted) return;
    struct {
      uint8_t palette, start_row, reserved[14];
      uint16_t row_bytes[16];
      uint8_t rows[16];
    } config = {};
    static_assert(sizeof config == 64, "as the instruction reads it");
    config.palette = 1;
    for (int i = 0; i < 8; ++i) {
      config.row_bytes[i] = kBytes;
      config.rows[i] = kRows;
    }
    asm volatile("ldtilecfg %0" ::"m"(config));
  }
  ~InUse() {
    if (wanted) asm volatile("tilerelease");
  }
  InUse(const InUse&) = delete;
  InUse& operator=(const InUse&) = delete;
};

// Assembly throughout: GCC's intrinsics do not tell the compiler that a load reads memory (GCC 12's are statements
// without a memory clobber), so that what was stored just before may not be there yet.

template <int kTile>
SK_INLINE void zero() {
  asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
}

SK_INLINE void show_rows(const void* p, int64_t stride) {  // `stride` in bytes
#if defined(__SANITIZE_ADDRESS__)
  for (int r = 0; r < kRows; ++r) show_sanitizer(static_cast<const char*>(p) + r * stride, kBytes);
#else
  (void)p, (void)stride;
#endif
}

template <int kTile>
SK_INLINE void load(const void* p, int64_t stride) {
  show_rows(p, stride);
  asm volatile("tileloadd (%1,%2,1), %%tmm%c0" ::"i"(kTile), "r"(p), "r"(stride) : "memory");
}
template <int kTile>
SK_INLINE void store(void* p, int64_t stride) {
  show_rows(p, stride);
  asm volatile("tilestored %%tmm%c0, (%1,%2,1)" ::"i"(kTile), "r"(p), "r"(stride) : "memory");
}

// sum[r][c] += row r of a . column c of b. A row is 32 numbers of 16 bits or 64 of 8; a column the same, two or four of
// them side by side in each row of b.
template <int kSum, int kA, int kB>
SK_INLINE void add_bf16() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSum), "i"(kA), "i"(kB));
}
template <int kSum, int kA, int kB>  // a: signed, b: unsigned
SK_INLINE void add_bytes() {
  asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSum), "i"(kA), "i"(kB));
}

}  // namespace tiles
}  // namespace
#endif
