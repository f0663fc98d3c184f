// One vector of SK_LANES floats, and how float32, bfloat16 and float16 memory become it and back.
// Written with GCC/Clang vector extensions; intrinsics only for what compilers do badly (conversions, tails,
// fma). Rounding to 16 bits is to nearest even, and NaN stays NaN.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__)
#define SK_LANES 16
#elif defined(__AVX2__)
#define SK_LANES 8
#else
#define SK_LANES 4
#endif
#define SK_INLINE inline __attribute__((always_inline))
// In front of a loop of known length over what is to stay in registers: compilers stop at 16 rounds by themselves.
#if defined(__clang__)
#define SK_UNROLL _Pragma("unroll")
#else
#define SK_UNROLL _Pragma("GCC unroll 32")
#endif

namespace {

typedef float vf __attribute__((vector_size(4 * SK_LANES)));
typedef int32_t vi __attribute__((vector_size(4 * SK_LANES)));
typedef uint32_t vu __attribute__((vector_size(4 * SK_LANES)));
typedef uint16_t vh __attribute__((vector_size(2 * SK_LANES)));
constexpr int kLanes = SK_LANES;

struct bf16 { uint16_t bits; };
struct f16 { uint16_t bits; };

template <class To, class From>
SK_INLINE To bits_as(From x) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To y;
  memcpy(&y, &x, sizeof y);
  return y;
}

SK_INLINE vf splat(float x) { return vf{} + x; }
SK_INLINE vu splat_u(uint32_t x) { return vu{} + x; }
SK_INLINE vu pick(vu where, vu yes, vu no) { return (where & yes) | (~where & no); }

SK_INLINE vf fma(vf a, vf b, vf c) {
#if defined(__AVX512F__)
  return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__ARM_NEON) && defined(__aarch64__)
  return (vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}

SK_INLINE vf sqrt(vf a) {
#if defined(__AVX512F__)
  return (vf)_mm512_sqrt_ps((__m512)a);
#elif defined(__AVX2__)
  return (vf)_mm256_sqrt_ps((__m256)a);
#elif defined(__SSE2__)
  return (vf)_mm_sqrt_ps((__m128)a);
#else
  for (int i = 0; i < kLanes; ++i) a[i] = __builtin_sqrtf(a[i]);
  return a;
#endif
}

// Halves until one lane is left: the same tree everywhere, so a sum does not depend on the compiler.
SK_INLINE float sum(vf a) {
#if defined(__SSE2__)
#if defined(__AVX512F__)
  // maskz: of the plain ones, GCC 12 warns that it uses what it leaves undefined
  const __m256d low = _mm512_maskz_extractf64x4_pd(0xff, (__m512d)a, 0);
  const __m256d high = _mm512_maskz_extractf64x4_pd(0xff, (__m512d)a, 1);
  const __m256 eight = _mm256_add_ps((__m256)low, (__m256)high);
#elif defined(__AVX2__)
  const __m256 eight = (__m256)a;
#endif
#if defined(__AVX2__)
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
#else
  const __m128 four = (__m128)a;
#endif
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
#else
  float x[kLanes];
  memcpy(x, &a, sizeof x);
  for (int width = kLanes / 2; width; width /= 2)
    for (int i = 0; i < width; ++i) x[i] += x[i + width];
  return x[0];
#endif
}

SK_INLINE void prefetch(const void* p) { __builtin_prefetch(p, 0, 3); }

// ---- bit-level conversions, lane by lane

SK_INLINE vf widen_bf16(vh h) {
#if defined(__SSE2__) && SK_LANES == 4
  __m128i x;
  memcpy(&x, &h, 8);
  return (vf)_mm_unpacklo_epi16(_mm_setzero_si128(), x);
#else
  return (vf)(__builtin_convertvector(h, vu) << 16);
#endif
}

SK_INLINE vu round_bf16(vf a) {  // 16 bits of each lane
  const vu u = (vu)a;
  const vu rounded = (u + splat_u(0x7fff) + ((u >> 16) & splat_u(1))) >> 16;
  const vu nan = (vu)((u & splat_u(0x7fffffff)) > splat_u(0x7f800000));
  return pick(nan, (u >> 16) | splat_u(0x40), rounded);
}
SK_INLINE vh narrow_bf16(vf a) { return __builtin_convertvector(round_bf16(a), vh); }

SK_INLINE vf widen_f16(vh h) {
#if defined(__AVX512F__)
  return (vf)_mm512_cvtph_ps((__m256i)h);
#elif defined(__F16C__)
  return (vf)_mm256_cvtph_ps((__m128i)h);
#else
  const vu x = __builtin_convertvector(h, vu);
  const vu sign = (x & splat_u(0x8000)) << 16, rest = x & splat_u(0x7fff);
  const vu normal = (rest << 13) + splat_u(112u << 23);
  const vu special = (rest << 13) | splat_u(0x7f800000);  // inf, NaN
  // subnormal: rest * 2^-24, exact, through an integer below 2^10 put into the mantissa of 0.5
  const vu subnormal = (vu)((vf)(rest | splat_u(126u << 23)) - (vf)splat_u(126u << 23));
  vu y = pick((vu)(rest < splat_u(0x400)), subnormal, normal);
  y = pick((vu)(rest >= splat_u(0x7c00)), special, y);
  return (vf)(y | sign);
#endif
}

SK_INLINE vh narrow_f16(vf a) {
#if defined(__AVX512F__)
  // maskz: of the plain one, GCC 12 warns that it uses what it leaves undefined
  return (vh)_mm512_maskz_cvtps_ph(0xffff, (__m512)a, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__F16C__)
  return (vh)_mm256_cvtps_ph((__m256)a, _MM_FROUND_TO_NEAREST_INT);
#else
  const vu u = (vu)a, sign = (u >> 16) & splat_u(0x8000), rest = u & splat_u(0x7fffffff);
  // adding a power of two makes the hardware round the subnormals to nearest even where we need it
  const vu small = (vu)((vf)rest + (vf)splat_u(126u << 23)) - splat_u(126u << 23);
  const vu normal = (rest - splat_u(112u << 23) + splat_u(0xfff) + ((rest >> 13) & splat_u(1))) >> 13;
  vu y = pick((vu)(rest < splat_u(113u << 23)), small, normal);
  y = pick((vu)(rest >= splat_u(0x477ff000)), splat_u(0x7c00), y);  // 65520 and above
  y = pick((vu)(rest > splat_u(0x7f800000)), splat_u(0x7e00), y);
  return __builtin_convertvector(y | sign, vh);
#endif
}

// ---- memory: a whole vector, or its first `n` lanes (0 < n < kLanes; the rest read as 0)

SK_INLINE vf load(const float* p) {
  vf v;
  memcpy(&v, p, sizeof v);
  return v;
}
SK_INLINE void store(float* p, vf v) { memcpy(p, &v, sizeof v); }
SK_INLINE vh load_half(const void* p) {
  vh v;
  memcpy(&v, p, sizeof v);
  return v;
}
SK_INLINE vf load(const bf16* p) { return widen_bf16(load_half(p)); }
SK_INLINE vf load(const f16* p) { return widen_f16(load_half(p)); }
SK_INLINE void store(bf16* p, vf v) {
  const vh h = narrow_bf16(v);
  memcpy(p, &h, sizeof h);
}
SK_INLINE void store(f16* p, vf v) {
  const vh h = narrow_f16(v);
  memcpy(p, &h, sizeof h);
}

// GCC's masked loads and stores escape AddressSanitizer: under it, their first and last bytes are read plainly.
template <class T>
SK_INLINE void show_sanitizer(const T* p, int n) {
#if defined(__SANITIZE_ADDRESS__)
  if (n <= 0) return;
  (void)*reinterpret_cast<const volatile char*>(p);
  (void)*(reinterpret_cast<const volatile char*>(p + n) - 1);
#else
  (void)p, (void)n;
#endif
}

SK_INLINE vf load_part(const float* p, int n) {
  show_sanitizer(p, n);
#if defined(__AVX512F__)
  return (vf)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
#else
  vf v{};
  for (int i = 0; i < n; ++i) v[i] = p[i];
  return v;
#endif
}
SK_INLINE void store_part(float* p, vf v, int n) {
  show_sanitizer(p, n);
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), (__m512)v);
#else
  for (int i = 0; i < n; ++i) p[i] = v[i];
#endif
}
SK_INLINE vh load_half_part(const void* p, int n) {
  show_sanitizer(static_cast<const uint16_t*>(p), n);
#if defined(__AVX512BW__) && defined(__AVX512VL__)
  return (vh)_mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << n) - 1), p);
#else
  vh v{};
  for (int i = 0; i < n; ++i) v[i] = static_cast<const uint16_t*>(p)[i];
  return v;
#endif
}
SK_INLINE void store_half_part(void* p, vh v, int n) {
  show_sanitizer(static_cast<const uint16_t*>(p), n);
#if defined(__AVX512BW__) && defined(__AVX512VL__)
  _mm256_mask_storeu_epi16(p, static_cast<__mmask16>((1u << n) - 1), (__m256i)v);
#else
  for (int i = 0; i < n; ++i) static_cast<uint16_t*>(p)[i] = v[i];
#endif
}
SK_INLINE vf load_part(const bf16* p, int n) { return widen_bf16(load_half_part(p, n)); }
SK_INLINE vf load_part(const f16* p, int n) { return widen_f16(load_half_part(p, n)); }
SK_INLINE void store_part(bf16* p, vf v, int n) { store_half_part(p, narrow_bf16(v), n); }
SK_INLINE void store_part(f16* p, vf v, int n) { store_half_part(p, narrow_f16(v), n); }

// ---- single elements

SK_INLINE float to_float(float x) { return x; }
SK_INLINE float to_float(bf16 x) { return bits_as<float>(static_cast<uint32_t>(x.bits) << 16); }
SK_INLINE float to_float(f16 x) { return load_part(&x, 1)[0]; }
template <class T>
SK_INLINE T from_float(float x) {
  T y;
  store_part(&y, splat(x), 1);
  return y;
}

// ---- n lanes, 0 < n <= kLanes: for loops that end with a tail

template <class T>
SK_INLINE vf load_n(const T* p, int n) { return n == kLanes ? load(p) : load_part(p, n); }
template <class T>
SK_INLINE void store_n(T* p, vf v, int n) {
  if (n == kLanes) store(p, v);
  else store_part(p, v, n);
}

}  // namespace
