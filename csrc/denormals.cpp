#include "denormals.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include "common/threads.h"

namespace {

// Sets this thread's mode and says what it was.
bool set_here(bool flush) {
#if defined(__x86_64__)
  constexpr unsigned kFlush = 0x8040;  // results to zero, operands read as zero
  const unsigned control = _mm_getcsr();
  _mm_setcsr(flush ? control | kFlush : control & ~kFlush);
  return (control & kFlush) == kFlush;
#elif defined(__aarch64__)
  constexpr uint64_t kFlush = uint64_t(1) << 24;
  uint64_t control;
  __asm__ volatile("mrs %0, fpcr" : "=r"(control));
  __asm__ volatile("msr fpcr, %0" ::"r"(flush ? control | kFlush : control & ~kFlush));
  return (control & kFlush) != 0;
#else
  (void)flush;
  return false;
#endif
}

}  // namespace

bool flush_denormals(bool flush, int threads) {
  bool before = false;
  parallel(threads, [&](int thread, int) {
    const bool was = set_here(flush);
    if (thread == 0) before = was;
  });
  return before;
}
