// Rows in 8 bits for screening: rotated, so that no coordinate stands out, then rounded with subtractive dither.
// What the bound on a score made of them rests on is derived in sae_kernels/kernels/_screen/int8.py.
//
//   a' = H a                      H orthogonal: random signs and Hadamard transforms; d is padded to a multiple of 16
//   s = max(|a'|, 2^-60) / 126.5  the row's step
//   i = round(2^14 a' / s)        to a grid far finer than the step, without chance
//   q = round(i / 2^14 + u)       u: the dither of a coordinate, an odd multiple of 2^-15 in (-1/2, 1/2)
//
// so that s (q - u) is off s i / 2^14 by s times a number that is uniform on those multiples, whatever the row is.
// Tokens share one dither, latents another; both, and the signs, come from a counter and a fixed seed.
#pragma once
#include "common/tiles.h"
#include "screen/round.inl.h"

namespace {
namespace screen {
namespace int8 {

constexpr int kAbreast = 32;  // latents that lie side by side
#if SK_TILES
constexpr int kTile = 32;  // tokens, at most
#else
constexpr int kTile = 12;
#endif
constexpr int kGrid = 1 << 14;
constexpr float kLevels = 126.5f;  // with half a step of dither still within 127
constexpr float kTiny = 0x1p-60f;
constexpr int64_t kMostColumns = 1 << 16;  // 2^31 / 127^2 would do

// Coordinates of a rotated row: whole vectors on every instruction set.
inline int64_t width(int64_t d) { return d < 1 ? 16 : (d + 15) / 16 * 16; }

// Tokens that lie side by side where there are n.
inline int tile_of(int64_t n) {
  if (n <= 4) return n <= 1 ? 1 : n <= 2 ? 2 : 4;
  if (kTile == 32) return n <= 16 ? 16 : 32;
  return n <= 8 ? 8 : kTile;
}

// How the tokens of one tile lie: four bytes of one token, then of the next; or, for AMX, 64 of each, zeros behind the
// row's end, so that 16 tokens are a tile register's rows. With few tokens the latter would save nothing.
struct TokenTile {
  int64_t tokens, size, run;  // run: bytes of a token that lie together
  TokenTile(int64_t n, int64_t width) : tokens(tile_of(n)), run(tokens >= 16 ? 64 : 4) {
    size = tokens * ((width + run - 1) / run * run);
  }
  // Byte i of a token.
  int64_t place(int64_t token, int64_t i) const { return i / run * tokens * run + token * run + i % run; }
};

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
      : first(width), second(width), tokens(width), latents(width), size(width), window(int8::window(width)) {
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

struct Step {
  float size;      // s
  bool bounded;    // false: the row is huge or not finite; its numbers are 0
  int64_t sum;     // of q
  int64_t dithered;  // of q times the other side's dither, in units of 2^-15
  float norm;      // of the row, rounded up; NaN where it is not bounded
  float rest;      // of what s (q - u) leaves of the rotated row, rounded up
};

// What may be off for certain beside what rounding left of the rows, over |w|: the grids, the rotations, and float
// arithmetic.
inline double unseen(const Step& token, int64_t d, int64_t width) {
  const double root = __builtin_sqrt(double(width)), eps = 0x1p-24, X = double(token.norm) + token.size * root / 2;
  const double sides = (X + token.size * root) * (1 + root / kLevels);  // of integer rows, times their steps
  int log = 0;
  while (int64_t(1) << log < width) ++log;
  return 2 * root / (kLevels * kGrid) * X        // both grids
         + 5 * (log + 3) * eps * token.norm      // rotations: two of each row
         + token.size / (2 * kLevels)            // q.u, rounded
         + 16 * eps * sides                      // converting, scaling and adding integer products
         + (double(d) / 8 + 16) * eps * token.norm;  // dot_rows: sums of every eighth product, at the most
}

// q of one row, int8 in `out`; `mine` and `others`: the dithers of its side and of the other one.
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

}  // namespace int8
}  // namespace screen

// Bytes a row takes, in both.
inline int64_t int8_width(int64_t d) { return screen::int8::width(d); }

namespace screen {
namespace int8 {

// out: four bytes q + 128 of each of a group's rows, then the next four of each. 64 bytes of all rows at a time, whose
// lines of `out` stay in the first cache.
inline void interleave(const int8_t* q, int64_t size, uint8_t* out) {
  for (int64_t i = 0; i < size; i += 64)
    for (int64_t lane = 0; lane < kAbreast; ++lane)
      for (int64_t j = i; j < i + 64 && j < size; j += 4) {
        uint32_t four;
        memcpy(&four, q + lane * size + j, 4);
        four ^= 0x80808080u;
        memcpy(out + j * kAbreast + 4 * lane, &four, 4);
      }
}

}  // namespace int8
}  // namespace screen

// packed: latents in groups of 32, zeros in the last one's place where there are fewer; within a group four bytes
// q + 128 of one latent, then of the next, then the next four of each. numbers (5, latents in whole groups): s,
// -s v.(q - u), the norm, s^2 / the norm, the norm of what is left of the row.
sk_status int8_latents(int32_t dtype, sk_matrix a, uint8_t* packed, float* numbers, int32_t threads) {
  using namespace screen::int8;
  if (a.rows < 0 || a.cols < 0 || a.cols > kMostColumns) return failure(SK_BAD_SIZE);
  const int64_t size = width(a.cols), groups = (a.rows + kAbreast - 1) / kAbreast, padded = groups * kAbreast;
  const Randomness random(size);
  if (!random.usable()) return failure(SK_NO_MEMORY);
  int64_t crossed = 0;  // v.u, in units of 2^-30
  for (int64_t i = 0; i < size; ++i) crossed += int64_t(random.tokens[i]) * random.latents[i];
  int32_t full = 0;
  const sk_status status = for_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    parallel_runs(groups, 1 + (1 << 15) / (size * kAbreast), threads, [&](int, int64_t begin, int64_t end) {
      const Scratch<float> rotated(size);
      const Scratch<int8_t> q(size * kAbreast);
      if (!rotated.data || !q.data) {
        __atomic_store_n(&full, 1, __ATOMIC_RELAXED);
        return;
      }
      for (int64_t g = begin; g < end; ++g) {
        for (int64_t lane = 0; lane < kAbreast; ++lane) {
          const int64_t r = g * kAbreast + lane;
          Step step{0, true, 0, 0, screen::int8::kTiny, screen::int8::kTiny};
          if (r < a.rows) {
            step = round_row(row_of<T>(a, r), a.cols, random, random.latents.data, random.tokens.data, rotated.data,
                             q.data + lane * size);
          } else {
            memset(q.data + lane * size, 0, size_t(size));
          }
          const double offset = double(step.dithered) * 0x1p-15 - double(crossed) * 0x1p-30;
          numbers[r] = step.size;
          numbers[padded + r] = r < a.rows && step.bounded ? float(-step.size * offset) : 0;
          numbers[2 * padded + r] = step.norm;
          numbers[3 * padded + r] = step.size / step.norm * step.size;
          numbers[4 * padded + r] = step.rest;
        }
        interleave(q.data, size, packed + g * kAbreast * size);
      }
    });
    return success();
  });
  return full ? failure(SK_NO_MEMORY) : status;
}

// packed: tokens in tiles as TokenTile says, zeros in the last one's place where there are fewer. numbers (4, n): s, the
// norm, that of what is left and `unseen`, `unseen` alone. starts (n,): -128 sum q - round(q.u).
sk_status int8_tokens(int32_t dtype, sk_matrix a, int8_t* packed, float* numbers, int32_t* starts, int32_t threads) {
  using namespace screen::int8;
  if (a.rows < 0 || a.cols < 0 || a.cols > kMostColumns) return failure(SK_BAD_SIZE);
  const int64_t size = width(a.cols);
  const TokenTile tile(a.rows, size);
  const int64_t count = (a.rows + tile.tokens - 1) / tile.tokens;
  const Randomness random(size);
  if (!random.usable()) return failure(SK_NO_MEMORY);
  int32_t full = 0;
  const sk_status status = for_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    parallel_runs(count, 4, threads, [&](int, int64_t begin, int64_t end) {
      const Scratch<float> rotated(size);
      const Scratch<int8_t> q(size);
      if (!rotated.data || !q.data) {
        __atomic_store_n(&full, 1, __ATOMIC_RELAXED);
        return;
      }
      for (int64_t t = begin; t < end; ++t) {
        int8_t* out = packed + t * tile.size;
        if (size % tile.run) memset(out, 0, size_t(tile.size));
        for (int64_t lane = 0; lane < tile.tokens; ++lane) {
          const int64_t r = t * tile.tokens + lane;
          if (r < a.rows) {
            const Step step = round_row(row_of<T>(a, r), a.cols, random, random.tokens.data, random.latents.data,
                                        rotated.data, q.data);
            numbers[r] = step.size;
            numbers[a.rows + r] = step.norm;
            const double certain = unseen(step, a.cols, size);
            numbers[2 * a.rows + r] = float((1 + 0x1p-12) * (step.rest + certain));
            numbers[3 * a.rows + r] = float((1 + 0x1p-12) * certain);
            starts[r] = int32_t(-128 * step.sum - ((step.dithered + kGrid) >> 15));
          } else {
            memset(q.data, 0, size_t(size));
          }
          for (int64_t i = 0; i < size; i += 4) memcpy(out + tile.place(lane, i), q.data + i, 4);
        }
      }
    });
    return success();
  });
  return full ? failure(SK_NO_MEMORY) : status;
}

}  // namespace
