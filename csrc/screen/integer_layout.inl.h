// Rows of integers, of 8 or of 16 bits, as their products read them: latents in groups of 32, tokens in tiles.
//
// Four bytes of a row (four numbers, or two) lie together: what one instruction multiplies and sums. Latents: four bytes
// of one, then of the next, `kSide` of them side by side, then the next four of each; a group's other latents follow
// behind them. Tokens: the same, as many side by side as their tile has.
#pragma once
#include "common/tiles.h"
#include "screen/round.inl.h"

namespace {
namespace screen {
namespace integers {

constexpr int kAbreast = 32;               // latents of a group
constexpr int64_t kMostColumns = 1 << 16;  // 2^31 / 127^2 would do; 16 bits have a bound of their own
constexpr int kMostTokens = 32;            // of a tile

struct Eight {
  using Number = int8_t;
  static constexpr int kSide = kAbreast;
  static constexpr uint32_t kFlip = 0x80808080u;  // latents are kept as q + 128, in unsigned bytes
  static constexpr bool kTiled = SK_LEVEL >= 3;       // AMX multiplies them
  static constexpr int kTokens = kTiled ? 32 : 12;
};

struct Sixteen {
  using Number = int16_t;
  static constexpr int kSide = kAbreast / 2;  // AVX2 has registers for 6 x 16 sums
  static constexpr uint32_t kFlip = 0;
  static constexpr bool kTiled = false;
  static constexpr int kTokens = SK_LANES == 16 ? 12 : 6;
};

// Numbers of a row: whole vectors on every instruction set.
inline int64_t width(int64_t d) { return d < 1 ? 16 : (d + 15) / 16 * 16; }
template <class Kind>
inline int64_t row_bytes(int64_t d) {
  return width(d) * int64_t(sizeof(typename Kind::Number));
}

// Tokens that lie side by side where there are n.
template <class Kind>
inline int tile_of(int64_t n) {
  if (n <= 4) return n <= 1 ? 1 : n <= 2 ? 2 : 4;
  if (Kind::kTiled) return n <= 16 ? 16 : 32;
  return n <= 8 && Kind::kTokens > 8 ? 8 : Kind::kTokens;
}

// How the tokens of one tile lie: four bytes of one token, then of the next; or, for AMX, 64 of each, zeros behind the
// row's end, so that 16 tokens are a tile register's rows. With few tokens the latter would save nothing.
template <class Kind>
struct TokenTile {
  int64_t tokens, size, run;  // run: bytes of a token that lie together
  TokenTile(int64_t n, int64_t bytes) : tokens(tile_of<Kind>(n)), run(tokens >= 16 ? 64 : 4) {
    size = tokens * ((bytes + run - 1) / run * run);
  }
  // Byte i of a token.
  int64_t place(int64_t token, int64_t i) const { return i / run * tokens * run + token * run + i % run; }
};

// out: the rows of a group as above. 64 bytes of all rows at a time, whose lines of `out` stay in the first cache.
template <class Kind>
inline void interleave(const void* rows, int64_t bytes, uint8_t* out) {
  const char* q = static_cast<const char*>(rows);
  for (int64_t first = 0; first < kAbreast; first += Kind::kSide, out += Kind::kSide * bytes, q += Kind::kSide * bytes)
    for (int64_t i = 0; i < bytes; i += 64)
      for (int64_t lane = 0; lane < Kind::kSide; ++lane)
        for (int64_t j = i; j < i + 64 && j < bytes; j += 4) {
          uint32_t four;
          memcpy(&four, q + lane * bytes + j, 4);
          four ^= Kind::kFlip;
          memcpy(out + j * Kind::kSide + 4 * lane, &four, 4);
        }
}

// What rounding made of a row: x' = s (q - u).
struct Step {
  float size;        // s
  bool bounded;      // false: the row is huge or not finite; its numbers are 0
  int64_t sum;       // of q
  int64_t dithered;  // of q times the other side's dither, in units of 2^-15
  float norm;        // of the row, rounded up; NaN where it is not bounded
  float rest;        // of what x' leaves of the row, rounded up
};

// A sum of what float arithmetic may have lost of a score, over |w|, beside what either kind loses: `sides`, the norms
// of integer rows times their steps, over |w|; `norm`, of the token.
inline double unseen_by_floats(double sides, double norm, int64_t d) {
  constexpr double eps = 0x1p-24;
  return 16 * eps * sides                      // converting, scaling and adding integer products
         + (double(d) / 8 + 16) * eps * norm;  // dot_rows: sums of every eighth product, at the most
}

}  // namespace integers
}  // namespace screen
}  // namespace
