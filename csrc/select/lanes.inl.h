// Vectors of integer keys, as wide as the ISA being compiled. Plain GCC/Clang vector arithmetic except for
// the two things it cannot say well: "which lanes" as a bit mask, and compress-store.
#pragma once
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {
namespace sel {

#if defined(__AVX512BW__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class Lane>
struct VectorOf;
template <>
struct VectorOf<int32_t> {
  typedef int32_t type __attribute__((vector_size(kVectorBytes)));
  typedef uint32_t unsigned_type __attribute__((vector_size(kVectorBytes)));
};
template <>
struct VectorOf<int16_t> {
  typedef int16_t type __attribute__((vector_size(kVectorBytes)));
  typedef uint16_t unsigned_type __attribute__((vector_size(kVectorBytes)));
};
template <class Lane>
using Vector = typename VectorOf<Lane>::type;
template <class Lane>
using UnsignedVector = typename VectorOf<Lane>::unsigned_type;
typedef uint8_t ByteVector __attribute__((vector_size(kVectorBytes / 4)));

template <class Lane>
constexpr int kLanes = kVectorBytes / int(sizeof(Lane));

// What compress-store may write past the last entry it keeps: every buffer it fills has this much room to
// spare.
constexpr int kSlack = 64;

template <class V, class T>
inline V load(const T* p) {
  V v;
  memcpy(&v, p, sizeof v);
  return v;
}

template <class V, class T>
inline void store(T* p, V v) {
  memcpy(p, &v, sizeof v);
}

template <class Lane>
inline Vector<Lane> splat(Lane x) {
  return x - Vector<Lane>{};
}

template <class V>
inline V max(V a, V b) {
  return a > b ? a : b;
}

inline Vector<int32_t> lane_numbers() {
  Vector<int32_t> v;
  for (int i = 0; i < kLanes<int32_t>; ++i) v[i] = i;
  return v;
}

// Bit i is set where lane i of a is at least lane i of b.
inline uint64_t at_least(Vector<int32_t> a, Vector<int32_t> b) {
#if defined(__AVX512BW__)
  return _mm512_cmpge_epi32_mask((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return uint32_t(_mm256_movemask_ps((__m256)(a >= b)));
#elif defined(__SSE2__)
  return uint32_t(_mm_movemask_ps((__m128)(a >= b)));
#else
  Vector<int32_t> m = a >= b;
  uint64_t bits = 0;
  for (int i = 0; i < kLanes<int32_t>; ++i) bits |= uint64_t(m[i] & 1) << i;
  return bits;
#endif
}

inline uint64_t at_least(Vector<int16_t> a, Vector<int16_t> b) {
#if defined(__AVX512BW__)
  return _mm512_cmpge_epi16_mask((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  __m256i m = (__m256i)(a >= b);
  return uint32_t(_mm_movemask_epi8(_mm_packs_epi16(_mm256_castsi256_si128(m), _mm256_extracti128_si256(m, 1))));
#elif defined(__SSE2__)
  return uint32_t(_mm_movemask_epi8(_mm_packs_epi16((__m128i)(a >= b), _mm_setzero_si128())));
#else
  Vector<int16_t> m = a >= b;
  uint64_t bits = 0;
  for (int i = 0; i < kLanes<int16_t>; ++i) bits |= uint64_t(m[i] & 1) << i;
  return bits;
#endif
}

inline bool any(Vector<int32_t> m) {
#if defined(__AVX512BW__)
  return _mm512_test_epi32_mask((__m512i)m, (__m512i)m) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_epi8((__m256i)m) != 0;
#elif defined(__SSE2__)
  return _mm_movemask_epi8((__m128i)m) != 0;
#else
  typedef uint64_t Words __attribute__((vector_size(kVectorBytes)));
  Words w = (Words)m;
  return (w[0] | w[1]) != 0;
#endif
}
inline bool any(Vector<int16_t> m) { return any((Vector<int32_t>)m); }

inline int ones(uint64_t bits) { return __builtin_popcountll(bits); }

// How many lanes of a are at least those of b, where that takes a few instructions.
#if defined(__AVX2__)
#define SK_COUNTS_LANES 1
template <class V>
inline int64_t number_at_least(V a, V b) {
#if defined(__AVX512BW__)
  return ones(at_least(a, b));
#else
  return __builtin_popcount(uint32_t(_mm256_movemask_epi8((__m256i)(a >= b)))) / int(sizeof(a[0]));
#endif
}
#endif

// Stores the lanes of v named by bits next to each other; returns how many.
inline int compress(int32_t* out, Vector<int32_t> v, uint64_t bits) {
#if defined(__AVX512BW__)
  // Into a register first: the form that writes memory is microcoded on some CPUs.
  _mm512_storeu_si512(out, _mm512_maskz_compress_epi32(__mmask16(bits), (__m512i)v));
  return ones(bits);
#else
  int n = 0;
  for (; bits; bits &= bits - 1) out[n++] = v[__builtin_ctzll(bits)];
  return n;
#endif
}

}  // namespace sel
}  // namespace
