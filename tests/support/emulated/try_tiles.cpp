// Tile instructions one by one: what the emulator makes of them, or the machine where it has them.
#include "tiles.h"

#include <immintrin.h>

#include <cstring>
#include <thread>

void try_product(int product, uintptr_t config, uintptr_t sum, uintptr_t a, uintptr_t b) {
  const auto at = [](uintptr_t p) { return reinterpret_cast<char*>(p); };
  asm volatile("ldtilecfg (%0)" ::"r"(at(config)) : "memory");
  asm volatile("tileloadd (%0,%1,1), %%tmm0" ::"r"(at(sum)), "r"(64l) : "memory");
  asm volatile("tileloadd -256(%0,%1,4), %%tmm1" ::"r"(at(a) + 256), "r"(16l) : "memory");
  asm volatile("tileloaddt1 7(%0,%1,2), %%tmm2" ::"r"(at(b) - 7), "r"(32l) : "memory");
  switch (product) {
    case 0: asm volatile("tdpbf16ps %tmm2, %tmm1, %tmm0"); break;
    case 1: asm volatile("tdpbssd %tmm2, %tmm1, %tmm0"); break;
    case 2: asm volatile("tdpbsud %tmm2, %tmm1, %tmm0"); break;
    case 3: asm volatile("tdpbusd %tmm2, %tmm1, %tmm0"); break;
    case 4: asm volatile("tdpbuud %tmm2, %tmm1, %tmm0"); break;
    default: asm volatile("tilezero %tmm0"); break;
  }
  asm volatile("tilestored %%tmm0, (%0,%1,1)" ::"r"(at(sum)), "r"(64l) : "memory");
  asm volatile("sttilecfg (%0)" ::"r"(at(config)) : "memory");
  asm volatile("tilerelease");
}

namespace {

void states_of(char (*state)[64], int thread) {
  struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  } config = {};
  config.palette = 1;
  config.row_bytes[3] = 64;
  config.rows[3] = uint8_t(1 + thread);
  char memory[2][16][64], found[16][64];
  memset(memory[0], 100 + thread, sizeof memory[0]);
  memset(memory[1], 50 + thread, sizeof memory[1]);
  const auto keep = [&](char* to) {
    asm volatile("tilestored %%tmm3, (%0,%1,1)" ::"r"(found), "r"(64l) : "memory");
    memcpy(to, found[thread], 64);
  };
  asm volatile("sttilecfg %0" : "=m"(*(char(*)[64])state[0]));
  asm volatile("ldtilecfg %0" ::"m"(config));
  asm volatile("sttilecfg %0" : "=m"(*(char(*)[64])state[1]));
  asm volatile("tileloadd (%0,%1,1), %%tmm3" ::"r"(memory[0]), "r"(64l) : "memory");
  keep(state[3]);
  asm volatile("ldtilecfg %0" ::"m"(config));
  keep(state[4]);
  asm volatile("tileloadd (%0,%1,1), %%tmm3" ::"r"(memory[1]), "r"(64l) : "memory");
  asm volatile("tilezero %tmm3");
  keep(state[5]);
  asm volatile("tilerelease");
  asm volatile("sttilecfg %0" : "=m"(*(char(*)[64])state[2]));
}

}  // namespace

void try_states(uintptr_t states, int threads) {
  char(*state)[64] = reinterpret_cast<char(*)[64]>(states);
  std::vector<std::thread> running;
  for (int t = 0; t < threads; ++t) running.emplace_back(states_of, state + 6 * t, t);
  for (std::thread& each : running) each.join();
}
