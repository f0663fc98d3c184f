#include "dispatch.h"

#include <cstdlib>
#include <mutex>
#include <stdexcept>

#if defined(__x86_64__) || defined(_M_X64)
#include <cpuid.h>
#define SK_X86 1
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if !defined(_WIN32)
#include <pthread.h>
#endif

extern "C" {
extern const sk_kernels sk_kernels_baseline, sk_kernels_avx2, sk_kernels_avx512, sk_kernels_amx;
}

namespace {

#if SK_X86
struct Cpu {
  bool avx2 = false, avx512 = false, amx = false, fast_bf16 = false, fast_bf16_dots = false, vnni = false;

  Cpu() {
    unsigned a, b, c, d, b7, c7, d7, a71 = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return;
    const bool osxsave = c >> 27 & 1, fma = c >> 12 & 1, f16c = c >> 29 & 1, popcnt = c >> 23 & 1;
    if (!osxsave || !__get_cpuid_count(7, 0, &a, &b7, &c7, &d7)) return;
    if (a >= 1 && __get_cpuid_count(7, 1, &a71, &b, &c, &d) == 0) a71 = 0;
    unsigned low, high;  // what the system saves on a task switch: a set bit is a usable register file
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    const bool ymm = (low & 0x6) == 0x6, zmm = (low & 0xe6) == 0xe6, tiles = (low & 0x60000) == 0x60000;
    unsigned extended = 0;
    if (!__get_cpuid(0x80000001, &a, &b, &extended, &d)) extended = 0;
    const bool bmi = (b7 >> 3 & 1) && (b7 >> 8 & 1) && (extended >> 5 & 1);
    avx2 = ymm && fma && f16c && popcnt && bmi && (b7 >> 5 & 1);
    avx512 = avx2 && zmm && (b7 >> 16 & 1) && (b7 >> 17 & 1) && (b7 >> 30 & 1) && (b7 >> 31 & 1);
    vnni = avx512 && (c7 >> 11 & 1);
    amx = avx512 && tiles && (d7 >> 22 & 1) && (d7 >> 24 & 1) && (d7 >> 25 & 1) && (a71 >> 5 & 1) && tiles_offered();
#if SK_ASSUME_AMX
    amx = avx512;
#endif
    fast_bf16_dots = avx512 && !amx && (a71 >> 5 & 1) && made_by_amd();  // Intel's take as long as widening
    fast_bf16 = amx || fast_bf16_dots;
  }

  static bool made_by_amd() {
    unsigned a, b, c, d;
    return __get_cpuid(0, &a, &b, &c, &d) && b == signature_AMD_ebx && c == signature_AMD_ecx && d == signature_AMD_edx;
  }

  // Linux hands out tile registers on request only; asking whether it would changes nothing yet.
  static bool tiles_offered() {
#if defined(__linux__)
    unsigned long features = 0;
    return syscall(SYS_arch_prctl, 0x1021 /* ARCH_GET_XCOMP_SUPP */, &features) == 0 && (features >> 18 & 1);
#else
    return false;
#endif
  }
};
#endif

struct Isa {
  const char* name;
  const sk_kernels* table;
};

std::vector<Isa> available() {
  std::vector<Isa> found;
#if SK_X86
  const Cpu cpu;
#if SK_HAVE_AMX
  if (cpu.amx) found.push_back({"amx", &sk_kernels_amx});
#endif
#if SK_HAVE_AVX512
  if (cpu.avx512) found.push_back({"avx512", &sk_kernels_avx512});
#endif
#if SK_HAVE_AVX2
  if (cpu.avx2) found.push_back({"avx2", &sk_kernels_avx2});
#endif
#endif
  found.push_back({"baseline", &sk_kernels_baseline});
  return found;
}

// Tile registers need this process's permission, once; false where the system refuses.
bool permitted(const Isa& isa) {
#if SK_X86 && defined(__linux__) && !SK_ASSUME_AMX
  if (isa.table->isa[1] == 'm') return syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18) == 0;
#else
  (void)isa;
#endif
  return true;
}

const sk_kernels* choose() {
  const char* pinned = std::getenv("SAE_KERNELS_ISA");
  std::string names;
  for (const Isa& isa : available()) {
    if (pinned && *pinned && std::string(pinned) != isa.name) {
      names += (names.empty() ? "" : ", ") + std::string(isa.name);
      continue;
    }
    if (permitted(isa)) return isa.table;
    if (pinned && *pinned) break;
  }
  throw std::invalid_argument("SAE_KERNELS_ISA=" + std::string(pinned) + " is not available here; available: " + names);
}

bool forked = false;  // set in the child, by a fork after this module was loaded

#if !defined(_WIN32)
struct WatchForks {
  WatchForks() {
    pthread_atfork(nullptr, nullptr, [] { forked = true; });
  }
} const watch_forks;
#endif

}  // namespace

extern "C" int sk_allowed_threads(int requested) { return forked ? 1 : requested; }

extern "C" int sk_fast_bf16_dots() {
#if SK_X86
  static const bool fast = Cpu().fast_bf16_dots;
  return fast;
#else
  return 0;
#endif
}

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const Isa& isa : available()) names.push_back(isa.name);
  return names;
}

bool fast_bf16() {
#if SK_X86
  return Cpu().fast_bf16;
#else
  return false;
#endif
}

bool fast_int8() {
#if SK_X86
  return Cpu().vnni;
#else
  return false;
#endif
}

const sk_kernels& active_kernels() {
  static std::mutex guard;
  static const sk_kernels* chosen = nullptr;
  const std::lock_guard<std::mutex> lock(guard);
  if (!chosen) chosen = choose();
  return *chosen;
}
