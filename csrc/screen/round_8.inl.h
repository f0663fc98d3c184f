// Rows in 8 bits for screening: rotated, so that no coordinate stands out, then rounded with subtractive dither.
// What the bound on a score made of them rests on is derived in sae_kernels/kernels/_screen/integers.py.
//
//   a' = H a                      H orthogonal: random signs and Hadamard transforms; d is padded to a multiple of 16
//   s = max(|a'|, 2^-60) / 126.5  the row's step
//   i = round(2^14 a' / s)        to a grid far finer than the step, without chance
//   q = round(i / 2^14 + u)       u: the dither of a coordinate, an odd multiple of 2^-15 in (-1/2, 1/2)
//
// so that s (q - u) is off s i / 2^14 by s times a number that is uniform on those multiples, whatever the row is.
// Tokens share one dither, latents another; both, and the signs, come from a counter and a fixed seed.
#pragma once
#include "screen/integer_layout.inl.h"

namespace {
namespace screen {
namespace integers {

constexpr int kGrid = 1 << 14;
constexpr float kLevels = 126.5f;  // with half a step of dither still within 127
constexpr float kTiny = 0x1p-60f;

inline int64_t window(int64_t width) {
  int64_t size = 16;
  while (2 * size <= width) size *= 2;
  return size;
}

inline uint64_t random_bits(uint64_t stream, uint64_t position) {  // splitmix64
  uint64_t z = (stream << 32 | position) * 0x9e3779b97f4a7c15u + 0x5ae512e57u;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return z ^ z >> 31;
}
enum Stream { kFirstSigns = 1, kSecondSigns, kTokens, kLatents };

// The dither u, as 2^15 u.
inline int32_t dither(Stream whose, int64_t position) {
  return 2 * int32_t(random_bits(whose, uint64_t(position)) >> 50) - kGrid + 1;
}

// v[i ^ kStep]
template <int kStep>
SK_INLINE vf swap_lanes(vf v) {
#if defined(__clang__)
  vf swapped;
  for (int i = 0; i < kLanes; ++i) swapped[i] = v[i ^ kStep];
  return swapped;
#else
  vi order;
  for (int i = 0; i < kLanes; ++i) order[i] = i ^ kStep;
  return __builtin_shuffle(v, order);
#endif
}

// Sums where a lane's number lacks kStep, differences where it has it.
template <int kStep>
SK_INLINE vf butterfly(vf v) {
  if (kStep >= kLanes) return v;
  constexpr int step = kStep < kLanes ? kStep : 0;
  vu sign;
  for (int i = 0; i < kLanes; ++i) sign[i] = (i & step) ? 0x80000000u : 0;
  return swap_lanes<step>(v) + (vf)((vu)v ^ sign);
}

// The Hadamard transform of a[0, size), not normalised. size: a power of two, 16 at least.
inline void hadamard(float* a, int64_t size) {
  for (int64_t i = 0; i < size; i += kLanes)
    store(a + i, butterfly<8>(butterfly<4>(butterfly<2>(butterfly<1>(load(a + i))))));
  int64_t step = kLanes < 16 ? kLanes : 16;
  for (; 4 * step <= size; step *= 4)  // two stages at a time: half the traffic
    for (int64_t i = 0; i < size; i += 4 * step)
      for (int64_t j = i; j < i + step; j += kLanes) {
        const vf one = load(a + j), two = load(a + j + step), three = load(a + j + 2 * step);
        const vf four = load(a + j + 3 * step);
        const vf odd = one + two, even = one - two, above = three + four, below = three - four;
        store(a + j, odd + above);
        store(a + j + step, even + below);
        store(a + j + 2 * step, odd - above);
        store(a + j + 3 * step, even - below);
      }
  for (; step < size; step *= 2)
    for (int64_t i = 0; i < size; i += 2 * step)
      for (int64_t j = i; j < i + step; j += kLanes) {
        const vf one = load(a + j), other = load(a + j + step);
        store(a + j, one + other);
        store(a + j + step, one - other);
      }
}

typedef int8_t vb __attribute__((vector_size(SK_LANES)));

// A sum of int32 vectors in 64 bits.
struct Total {
  vi lanes{};
  int64_t sum = 0;
  SK_INLINE void flush() {
    for (int l = 0; l < kLanes; ++l) sum += lanes[l];
    lanes = vi{};
  }
};

// What is random about a width.
struct Randomness {
  Scratch<float> first, second;  // signs of the two windows, with the transform's scale
  Scratch<int32_t> tokens, latents;
  int64_t size, window;

  explicit Randomness(int64_t width)
      : first(width), second(width), tokens(width), latents(width), size(width), window(integers::window(width)) {
    if (!usable()) return;
    const float scale = 1 / __builtin_sqrtf(float(window));
    for (int64_t i = 0; i < width; ++i) {
      first[i] = (random_bits(kFirstSigns, i) >> 63 ? -1.0f : 1.0f) * (i < window ? scale : 1);
      second[i] = (random_bits(kSecondSigns, i) >> 63 ? -1.0f : 1.0f) * (i >= width - window ? scale : 1);
      tokens[i] = dither(kTokens, i);
      latents[i] = dither(kLatents, i);
    }
  }
  bool usable() const { return first.data && second.data && tokens.data && latents.data; }

  static void multiply(float* a, const float* by, int64_t n) {
    for (int64_t i = 0; i < n; i += kLanes) store(a + i, load(a + i) * load(by + i));
  }

  // Two windows that overlap, at the row's ends, mix all of it; one does where it covers everything.
  void rotate(float* a) const {
    multiply(a, first.data, size);
    hadamard(a, window);
    if (window == size) return;
    multiply(a, second.data, size);
    hadamard(a + size - window, window);
  }
};

// q of one row in `out`; `mine` and `others`: the dithers of its side and of the other one.
template <class T>
inline Step round_row(const T* row, int64_t d, const Randomness& random, const int32_t* mine, const int32_t* others,
                      float* rotated, int8_t* out) {
  Squares squares;
  const int64_t width = random.size;
  for (int64_t i = 0; i < width; i += kLanes) {
    const int64_t left = d - i;
    const vf v = left >= kLanes ? load(row + i) : left > 0 ? load_part(row + i, int(left)) : vf{};
    squares.add(v);
    store(rotated + i, v);
  }
  const float norm = norm_above(squares);
  if (!(norm == norm)) {
    memset(out, 0, size_t(width));
    return {1, false, 0, 0, norm, norm};
  }
  random.rotate(rotated);
  vu most{};
  for (int64_t i = 0; i < width; i += kLanes) {
    const vu size = (vu)load(rotated + i) & splat_u(0x7fffffff);
    most = size > most ? size : most;  // as integers: all are finite
  }
  float largest = kTiny;
  for (int i = 0; i < kLanes; ++i) {
    const float size = bits_as<float>(uint32_t(most[i]));
    if (size > largest) largest = size;
  }
  const float step = largest / kLevels;
  const vf per_grid = splat(float(kGrid) / step), magic = splat(0x1.8p23f);
  Total sum, dithered;  // at most 127 and 127 * 2^14 a coordinate
  Squares rest;
  for (int64_t i = 0; i < width; i += kLanes) {
    const vi grid = (vi)(load(rotated + i) * per_grid + magic) - (vi)magic;  // rounds: both lie within 2^22
    vi u;
    memcpy(&u, mine + i, sizeof u);
    const vi q = (2 * grid + u + kGrid) >> 15;
    vi other;
    memcpy(&other, others + i, sizeof other);
    sum.lanes += q;
    dithered.lanes += q * other;
    if (i % (512 * kLanes) == 0) dithered.flush();
    // q - u in units of 2^-15 is an integer below 2^23: a float holds it
    const vf taken = __builtin_convertvector((q << 15) - u, vf);
    rest.add(fma(splat(-step * 0x1p-15f), taken, load(rotated + i)));
    const vb bytes = __builtin_convertvector(q, vb);
    memcpy(out + i, &bytes, sizeof bytes);
  }
  sum.flush();
  dithered.flush();
  return {step, true, sum.sum, dithered.sum, norm + kTiny, norm_above(rest) + kTiny};
}

struct RoundTo8 {
  Randomness random;
  int64_t d;
  double crossed = 0;  // v.u

  explicit RoundTo8(int64_t d) : random(width(d)), d(d) {
    if (!usable()) return;
    int64_t sum = 0;  // in units of 2^-30
    for (int64_t i = 0; i < random.size; ++i) sum += int64_t(random.tokens[i]) * random.latents[i];
    crossed = double(sum) * 0x1p-30;
  }
  bool usable() const { return random.usable(); }

  template <class T>
  Step latent(const T* row, float* rotated, int8_t* out) const {
    return round_row(row, d, random, random.latents.data, random.tokens.data, rotated, out);
  }
  template <class T>
  Step token(const T* row, float* rotated, int8_t* out) const {
    return round_row(row, d, random, random.tokens.data, random.latents.data, rotated, out);
  }

  // -s v.(q - u) of a latent.
  float offset(const Step& latent) const {
    return float(-latent.size * (double(latent.dithered) * 0x1p-15 - crossed));
  }
  // Where the sums of a token's products start: -128 sum q - round(q.u).
  int32_t start(const Step& token) const { return int32_t(-128 * token.sum - ((token.dithered + kGrid) >> 15)); }

  // What may be off for certain beside what rounding left of the rows, over |w|.
  double unseen(const Step& token) const {
    const double root = __builtin_sqrt(double(random.size)), X = double(token.norm) + token.size * root / 2;
    const double sides = (X + token.size * root) * (1 + root / kLevels);
    int log = 0;
    while (int64_t(1) << log < random.size) ++log;
    return 2 * root / (kLevels * kGrid) * X              // both grids
           + 5 * (log + 3) * 0x1p-24 * token.norm        // rotations: two of each row
           + token.size / (2 * kLevels)                  // q.u, rounded
           + unseen_by_floats(sides, token.norm, d);
  }
};

}  // namespace integers
}  // namespace screen
}  // namespace
