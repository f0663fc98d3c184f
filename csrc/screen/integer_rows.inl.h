// Rows of integers, ready for products: rounded (round_8.inl.h, round_16.inl.h) and laid out (integer_layout.inl.h).
#pragma once
#include <type_traits>

#include "screen/round_16.inl.h"
#include "screen/round_8.inl.h"

namespace {
namespace screen {
namespace integers {

template <class Kind>
using Rounding = typename std::conditional<std::is_same<Kind, Eight>::value, RoundTo8, RoundTo16>::type;

// body(Eight{}) or body(Sixteen{})
template <class Body>
inline sk_status for_bits(int32_t bits, const Body& body) {
  if (bits == 8) return body(Eight{});
  if (bits == 16) return body(Sixteen{});
  return failure(SK_BAD_SIZE, 0, bits);
}

template <class Kind, class T>
inline bool latents(sk_matrix a, uint8_t* packed, float* numbers, int32_t threads) {
  using Number = typename Kind::Number;
  const int64_t size = width(a.cols), bytes = row_bytes<Kind>(a.cols);
  const int64_t groups = (a.rows + kAbreast - 1) / kAbreast, padded = groups * kAbreast;
  const Rounding<Kind> round(a.cols);
  if (!round.usable()) return false;
  int32_t full = 0;
  parallel_runs(groups, 1 + (1 << 15) / (size * kAbreast), threads, [&](int, int64_t begin, int64_t end) {
    const Scratch<float> rotated(size);
    const Scratch<Number> q(size * kAbreast);
    if (!rotated.data || !q.data) {
      __atomic_store_n(&full, 1, __ATOMIC_RELAXED);
      return;
    }
    for (int64_t g = begin; g < end; ++g) {
      for (int64_t lane = 0; lane < kAbreast; ++lane) {
        const int64_t r = g * kAbreast + lane;
        const bool there = r < a.rows;
        Step step{0, true, 0, 0, kTiny, kTiny};
        if (there) step = round.latent(row_of<T>(a, r), rotated.data, q.data + lane * size);
        else memset(q.data + lane * size, 0, size_t(bytes));
        numbers[r] = step.size;
        numbers[padded + r] = there && step.bounded ? round.offset(step) : 0;
        numbers[2 * padded + r] = step.norm;
        numbers[3 * padded + r] = step.size / step.norm * step.size;
        numbers[4 * padded + r] = step.rest;
      }
      interleave<Kind>(q.data, bytes, packed + g * kAbreast * bytes);
    }
  });
  return !full;
}

template <class Kind, class T>
inline bool tokens(sk_matrix a, uint8_t* packed, float* numbers, int32_t* starts, int32_t threads) {
  using Number = typename Kind::Number;
  const int64_t size = width(a.cols), bytes = row_bytes<Kind>(a.cols);
  const TokenTile<Kind> tile(a.rows, bytes);
  const int64_t count = (a.rows + tile.tokens - 1) / tile.tokens;
  const Rounding<Kind> round(a.cols);
  if (!round.usable()) return false;
  int32_t full = 0;
  parallel_runs(count, 4, threads, [&](int, int64_t begin, int64_t end) {
    const Scratch<float> rotated(size);
    const Scratch<Number> q(size);
    if (!rotated.data || !q.data) {
      __atomic_store_n(&full, 1, __ATOMIC_RELAXED);
      return;
    }
    for (int64_t t = begin; t < end; ++t) {
      uint8_t* out = packed + t * tile.size;
      if (bytes % tile.run) memset(out, 0, size_t(tile.size));
      for (int64_t lane = 0; lane < tile.tokens; ++lane) {
        const int64_t r = t * tile.tokens + lane;
        if (r < a.rows) {
          const Step step = round.token(row_of<T>(a, r), rotated.data, q.data);
          numbers[r] = step.size;
          numbers[a.rows + r] = step.norm;
          const double certain = round.unseen(step);
          numbers[2 * a.rows + r] = float((1 + 0x1p-12) * (step.rest + certain));
          numbers[3 * a.rows + r] = float((1 + 0x1p-12) * certain);
          starts[r] = round.start(step);
        } else {
          memset(q.data, 0, size_t(bytes));
        }
        const char* row = reinterpret_cast<const char*>(q.data);
        for (int64_t i = 0; i < bytes; i += 4) memcpy(out + tile.place(lane, i), row + i, 4);
      }
    }
  });
  return !full;
}

}  // namespace integers
}  // namespace screen

// Bytes a row takes, in both.
int64_t integer_width(int32_t bits, int64_t d) { return screen::integers::width(d) * (bits / 8); }

// packed: latents in whole groups, zeros in the last one's place where there are fewer. numbers (5, latents in whole
// groups): s, -s v.(q - u), the norm, s^2 / the norm, the norm of what is left of the row.
sk_status integer_latents(int32_t dtype, int32_t bits, sk_matrix a, uint8_t* packed, float* numbers, int32_t threads) {
  using namespace screen::integers;
  if (a.rows < 0 || a.cols < 0 || a.cols > kMostColumns) return failure(SK_BAD_SIZE);
  return for_bits(bits, [&](auto kind) {
    return for_dtype(dtype, [&](auto type) {
      const bool done = latents<decltype(kind), decltype(type)>(a, packed, numbers, threads);
      return done ? success() : failure(SK_NO_MEMORY);
    });
  });
}

// packed: tokens in whole tiles, zeros in the last one's place where there are fewer. numbers (4, n): s, the norm, that of
// what is left and `unseen`, `unseen` alone. starts (n,).
sk_status integer_tokens(int32_t dtype, int32_t bits, sk_matrix a, uint8_t* packed, float* numbers, int32_t* starts,
                         int32_t threads) {
  using namespace screen::integers;
  if (a.rows < 0 || a.cols < 0 || a.cols > kMostColumns) return failure(SK_BAD_SIZE);
  return for_bits(bits, [&](auto kind) {
    return for_dtype(dtype, [&](auto type) {
      const bool done = tokens<decltype(kind), decltype(type)>(a, packed, numbers, starts, threads);
      return done ? success() : failure(SK_NO_MEMORY);
    });
  });
}

}  // namespace
