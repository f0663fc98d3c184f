// OpenMP regions that honour the caller's thread count, and scratch memory that needs no exceptions.
#pragma once
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>

// dispatch.cpp: `requested`, but 1 in a forked child (OpenMP's pool does not survive a fork).
extern "C" int sk_allowed_threads(int requested);

namespace {

template <class Body>  // body(thread, threads), once per thread
inline void parallel(int threads, const Body& body) {
  threads = threads > 1 ? sk_allowed_threads(threads) : 1;
  if (threads <= 1) {
    body(0, 1);
    return;
  }
#pragma omp parallel num_threads(threads)
  body(omp_get_thread_num(), omp_get_num_threads());
}

// body(thread, begin, end) over [0, count) in runs of `grain`, handed out as threads come free. Which thread
// takes which run varies, so a body must not let sums cross runs.
template <class Body>
inline void parallel_runs(int64_t count, int64_t grain, int threads, const Body& body) {
  if (count <= 0) return;
  const int64_t runs = (count + grain - 1) / grain;
  if (runs < threads) threads = static_cast<int>(runs);
  int64_t taken = 0;
  parallel(threads, [&](int thread, int) {
    for (;;) {
      const int64_t run = __atomic_fetch_add(&taken, 1, __ATOMIC_RELAXED);
      if (run >= runs) break;
      const int64_t begin = run * grain;
      body(thread, begin, begin + grain < count ? begin + grain : count);
    }
  });
}

// `count` Ts on a cache line of their own; data is null where memory ran out.
template <class T>
struct Scratch {
  T* data;
  void* block;
  explicit Scratch(int64_t count) {
    block = malloc(static_cast<size_t>(count < 0 ? 0 : count) * sizeof(T) + 128);
    data = block ? reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(block) + 63) & ~uintptr_t(63)) : nullptr;
  }
  ~Scratch() { free(block); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  T& operator[](int64_t i) const { return data[i]; }
};

}  // namespace
