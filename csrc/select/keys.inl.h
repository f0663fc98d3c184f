// Order-preserving integer keys of floating-point scores: NaN > +inf > ... > -inf, and -0 == +0.
//
// Two orders. The *loose* key takes a few integer instructions on the score's own bits and sorts as wanted,
// except that NaN payloads, and -0 just below +0, stay apart. The *exact* key closes both gaps. Filters
// compare loose keys, with a threshold moved down to the gap's lower end; only what passes is made exact.
#pragma once
#include "select/lanes.inl.h"

namespace {
namespace sel {

// Loose key: negative numbers are mirrored, then everything moves down until -inf is the least integer, so
// that the negative NaNs that were below it wrap round to the top.
template <class Lane, Lane kInfBits>
struct Order {
  using L = Lane;
  static constexpr Lane kMax = sizeof(Lane) == 2 ? Lane(INT16_MAX) : Lane(INT32_MAX);
  static constexpr Lane kLeast = Lane(-kMax - 1);               // -inf
  static constexpr Lane kShift = Lane(kMax - kInfBits);
  static constexpr Lane kZero = Lane(-kShift);                  // +0; -0 is one less
  static constexpr Lane kFirstNaN = Lane(kInfBits - kShift + 1);  // also the exact key of every NaN

  static inline Vector<Lane> loose(Vector<Lane> bits) {
    Vector<Lane> mirrored = bits ^ ((bits >> (8 * int(sizeof(Lane)) - 1)) & kMax);
    return (Vector<Lane>)((UnsignedVector<Lane>)mirrored - (UnsignedVector<Lane>)splat<Lane>(kShift));
  }
  static inline Vector<Lane> exact(Vector<Lane> key) {
    key = key > kFirstNaN ? splat<Lane>(kFirstNaN) : key;
    return key - (key == Lane(kZero - 1));  // a true lane is -1
  }
  static inline Lane loose(Lane bits) {
    Vector<Lane> v = loose(splat<Lane>(bits));
    return v[0];
  }
  static inline Lane exact(Lane key) { return key > kFirstNaN ? kFirstNaN : key == kZero - 1 ? kZero : key; }

  // The least loose key of a score that ranks no lower than the exact key.
  static inline Lane from(Lane exact_key) { return exact_key == kZero ? Lane(kZero - 1) : exact_key; }
};

using Float32 = Order<int32_t, 0x7f800000>;
using BFloat16 = Order<int16_t, 0x7f80>;
using Float16 = Order<int16_t, 0x7c00>;

// Exact float32 key back to its score; every NaN comes back as the quiet one, -0 as +0.
inline float score_of(int32_t key) {
  if (key >= Float32::kFirstNaN) return __builtin_nanf("");
  int32_t bits = int32_t(uint32_t(key) + uint32_t(Float32::kShift));
  bits ^= (bits >> 31) & INT32_MAX;
  float score;
  memcpy(&score, &bits, 4);
  return score;
}

}  // namespace sel
}  // namespace
