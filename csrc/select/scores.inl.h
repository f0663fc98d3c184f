// A row of a float32 chunk of pre-acts, as a source for `offer`: bias added and disallowed latents dropped as
// they are read.
#pragma once
#include "select/candidates.inl.h"

namespace {
namespace sel {

typedef float FloatVector __attribute__((vector_size(kVectorBytes)));

inline FloatVector load_some(const float* p, int m) {
  float lanes[kLanes<int32_t>] = {};
  memcpy(lanes, p, size_t(m) * sizeof(float));
  return load<FloatVector>(lanes);
}

template <bool kBias, bool kAmong>
struct Scores {
  const float* z;
  const float* bias;     // of the chunk's first latent onwards
  const uint8_t* among;  // likewise

  Vector<int32_t> at(int64_t i) const {
    FloatVector v = load<FloatVector>(z + i);
    if (kBias) v += load<FloatVector>(bias + i);
    return (Vector<int32_t>)v;
  }
  Vector<int32_t> some(int64_t i, int m) const {
    FloatVector v = load_some(z + i, m);
    if (kBias) v += load_some(bias + i, m);
    return (Vector<int32_t>)v;
  }
  uint64_t allowed(int64_t i, int m) const {
    if (!kAmong) return ~uint64_t(0);
    uint8_t bytes[kLanes<int32_t>] = {};
    memcpy(bytes, among + i, size_t(m));
    return at_least(__builtin_convertvector(load<ByteVector>(bytes), Vector<int32_t>), splat(int32_t(1)));
  }
};

// Rows a thread takes at a time: enough scores to be worth waking it for.
inline int64_t rows_at_a_time(int64_t cols) { return 1 + (1 << 14) / (cols > 0 ? cols : 1); }

// body(source) with the source that bias and among (either may be null) call for.
template <class Body>
inline void with_scores(const float* z, const float* bias, const uint8_t* among, const Body& body) {
  if (bias && among) return body(Scores<true, true>{z, bias, among});
  if (bias) return body(Scores<true, false>{z, bias, among});
  if (among) return body(Scores<false, true>{z, bias, among});
  return body(Scores<false, false>{z, bias, among});
}

// What a selected pre-act becomes: its exact key's score, negative ones 0 where `relu` is set, rounded once.
template <class T>
inline T value_of(int32_t key, bool relu) {
  const float score = score_of(key);
  return from_float<T>(relu && score < 0 ? 0.0f : score);
}

// Row r of a result: `count` exact keys and their latents, then empty slots, where there are fewer than k.
template <class T>
inline void write_row(const int32_t* keys, const int32_t* latents, int64_t count, int64_t k, int64_t r, int32_t relu,
                      void* values, int32_t* indices) {
  T* value = static_cast<T*>(values) + r * k;
  int32_t* index = indices + r * k;
  for (int64_t j = 0; j < count; ++j) value[j] = value_of<T>(keys[j], relu != 0);
  for (int64_t j = count; j < k; ++j) value[j] = from_float<T>(0.0f);
  memcpy(index, latents, size_t(count) * sizeof(int32_t));
  memset(index + count, 0, size_t(k - count) * sizeof(int32_t));
}

}  // namespace sel
}  // namespace
