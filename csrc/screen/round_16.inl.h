// Rows in 16 bits for screening, to steps that are the same share of each row's norm:
//
//   s = |x| / 32500,  q = round(x / s),  x' = s q
//
// so that no sum of products leaves 32 bits, |q_x| |q_w| being below 2^31 whatever the rows are, and |x - x'| is at most
// sqrt(d) / 65000 of |x|. Outlier coordinates change nothing, so that rows need neither rotation nor dither: what their
// products may be off for certain, by Cauchy and Schwarz, is d / 56000 standard deviations of those of normal numbers.
#pragma once
#include "screen/integer_layout.inl.h"

namespace {
namespace screen {
namespace integers {

typedef int16_t vs __attribute__((vector_size(2 * SK_LANES)));

struct RoundTo16 {
  static constexpr float kNorm = 32500;
  int64_t d;

  explicit RoundTo16(int64_t d) : d(d) {}
  bool usable() const { return true; }

  template <class T>
  Step latent(const T* row, float*, int16_t* out) const {
    const int64_t whole = d / kLanes * kLanes, size = width(d);
    const int left = int(d - whole);
    Squares squares;
    for (int64_t i = 0; i < whole; i += kLanes) squares.add(load(row + i));
    if (left) squares.add(load_part(row + whole, left));
    const float norm = norm_above(squares);
    if (!(norm == norm)) {
      memset(out, 0, size_t(size) * sizeof *out);
      return {1, false, 0, 0, norm, norm};
    }
    const float step = norm / kNorm;
    const vf per_step = splat(1 / step), taken = splat(-step), magic = splat(0x1.8p23f);
    Squares rest;
    const auto round = [&](int64_t i, vf v) {
      const vf near = v * per_step + magic;  // rounds: both lie within 2^22
      const vs q = __builtin_convertvector((vi)near - (vi)magic, vs);
      rest.add(fma(taken, near - magic, v));
      memcpy(out + i, &q, sizeof q);
    };
    for (int64_t i = 0; i < whole; i += kLanes) round(i, load(row + i));
    if (left) round(whole, load_part(row + whole, left));
    const int64_t end = left ? whole + kLanes : whole;
    memset(out + end, 0, size_t(size - end) * sizeof *out);
    return {step, true, 0, 0, norm, norm_above(rest)};
  }
  template <class T>
  Step token(const T* row, float*, int16_t* out) const {
    return latent(row, nullptr, out);
  }

  float offset(const Step&) const { return 0; }
  int32_t start(const Step&) const { return 0; }
  double unseen(const Step& token) const {
    const double root = __builtin_sqrt(double(width(d)));
    return unseen_by_floats((double(token.norm) + token.size * root) * (1 + root / kNorm), token.norm, d);
  }
};

}  // namespace integers
}  // namespace screen
}  // namespace
