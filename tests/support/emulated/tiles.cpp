// AMX where there is none: a tile instruction is an invalid one there, and its signal comes here, does by the manual what
// the instruction would have done (Intel SDM, volume 2, chapter 3 and 4: operation of LDTILECFG to TILEZERO), and goes on
// behind it. Each thread has tiles of its own. What would be a fault on a machine with AMX ends the process, with a line
// that says what was wrong.
#include "tiles.h"

#include <immintrin.h>
#include <signal.h>
#include <ucontext.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

constexpr int kTiles = 8, kRows = 16, kRowBytes = 64;

struct Config {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
static_assert(sizeof(Config) == 64, "as LDTILECFG reads it");

struct Tiles {
  Config config;
  alignas(64) uint8_t data[kTiles][kRows][kRowBytes];
};

thread_local Tiles mine;  // all zero: not configured
std::atomic<int64_t> executed{0}, configured{0}, configurations{0};

[[noreturn]] void fail(const uint8_t* at, const char* why) {
  fprintf(stderr, "emulated tiles: %s, at", why);
  for (int i = 0; i < 10; ++i) fprintf(stderr, " %02x", at[i]);
  fprintf(stderr, "\n");
  abort();
}

// A three-byte VEX instruction of the 0F38 map.
struct Instruction {
  const uint8_t* begin;
  const uint8_t* end;
  int prefix, opcode, reg, rm, other;  // prefix: 0 none, 1 66, 2 F3, 3 F2; other: VEX.vvvv
  bool in_memory, has_stride;
  uint64_t address;
  int64_t stride;

  Instruction(const uint8_t* at, const greg_t* registers) : begin(at), in_memory(false), has_stride(false) {
    if (at[0] != 0xc4) fail(begin, "an invalid instruction that is not AMX");
    const int high_reg = (at[1] >> 7 & 1) ^ 1, high_index = (at[1] >> 6 & 1) ^ 1, high_rm = (at[1] >> 5 & 1) ^ 1;
    if ((at[1] & 31) != 2 || at[2] >> 7 || (at[2] >> 2 & 1)) fail(begin, "an invalid instruction that is not AMX");
    prefix = at[2] & 3;
    other = (at[2] >> 3 & 15) ^ 15;
    opcode = at[3];
    const int mode = at[4] >> 6;
    reg = (at[4] >> 3 & 7) | high_reg << 3;
    rm = (at[4] & 7) | high_rm << 3;
    at += 5;
    if (mode != 3) {
      in_memory = true;
      address = 0;
      stride = 0;
      bool absolute = false, relative = false;
      if ((rm & 7) == 4) {
        has_stride = true;
        const int sib = *at++, base = (sib & 7) | high_rm << 3, index = (sib >> 3 & 7) | high_index << 3;
        if (index != 4) stride = int64_t(uint64_t(general(registers, index)) << (sib >> 6));
        absolute = mode == 0 && (sib & 7) == 5;
        if (!absolute) address = uint64_t(general(registers, base));
      } else {
        relative = mode == 0 && (rm & 7) == 5;
        if (!relative) address = uint64_t(general(registers, rm));
      }
      if (mode == 1) {
        address += uint64_t(int64_t(int8_t(*at++)));
      } else if (mode == 2 || absolute || relative) {
        int32_t offset;
        memcpy(&offset, at, 4);
        at += 4;
        address += uint64_t(int64_t(offset));
      }
      if (relative) address += reinterpret_cast<uintptr_t>(at);
    }
    end = at;
  }

  static greg_t general(const greg_t* registers, int number) {
    static const int order[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                  REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
    return registers[order[number]];
  }
  // Of a tile, which has to be there and to have a size.
  int tile(int number) const {
    if (mine.config.palette != 1) fail(begin, "tiles are used that are not configured");
    if (number >= kTiles) fail(begin, "there is no such tile");
    if (!mine.config.rows[number] || !mine.config.row_bytes[number]) fail(begin, "a tile without a size is used");
    return number;
  }
};

void load_config(const Instruction& i) {
  Config config;
  memcpy(&config, reinterpret_cast<const void*>(i.address), sizeof config);
  if (config.palette > 1) fail(i.begin, "LDTILECFG of an unknown palette");
  bool wrong = config.start_row != 0;  // of restarts after a fault there are none here
  for (const uint8_t each : config.reserved) wrong |= each != 0;
  for (int t = 0; t < 16; ++t) {
    wrong |= config.row_bytes[t] > kRowBytes || config.rows[t] > kRows || !config.row_bytes[t] != !config.rows[t];
    wrong |= t >= kTiles && config.rows[t];
  }
  if (config.palette && wrong) fail(i.begin, "LDTILECFG of an impossible configuration");
  configured += config.palette - mine.config.palette;
  configurations += config.palette;
  memset(&mine, 0, sizeof mine);
  if (config.palette) mine.config = config;
}

void load(const Instruction& i) {
  const int t = i.tile(i.reg);
  uint8_t row[kRows][kRowBytes] = {};
  for (int r = 0; r < mine.config.rows[t]; ++r)
    memcpy(row[r], reinterpret_cast<const void*>(i.address + uint64_t(r * i.stride)), mine.config.row_bytes[t]);
  memcpy(mine.data[t], row, sizeof row);
}

void store(const Instruction& i) {
  const int t = i.tile(i.reg);
  for (int r = 0; r < mine.config.rows[t]; ++r)
    memcpy(reinterpret_cast<void*>(i.address + uint64_t(r * i.stride)), mine.data[t][r], mine.config.row_bytes[t]);
}

// sum += a b, a row's `pieces` of four bytes being multiplied by as many rows of b.
struct Product {
  int sum, a, b, rows, pieces, columns;

  explicit Product(const Instruction& i) : sum(i.tile(i.reg)), a(i.tile(i.rm)), b(i.tile(i.other)) {
    const Config& config = mine.config;
    if (sum == a || sum == b || a == b) fail(i.begin, "a product of tiles that are not three different ones");
    rows = config.rows[sum];
    columns = config.row_bytes[sum] / 4;
    pieces = config.row_bytes[a] / 4;
    if (config.row_bytes[sum] % 4 || config.row_bytes[a] % 4 || config.rows[a] != rows || config.rows[b] != pieces ||
        config.row_bytes[b] != config.row_bytes[sum])
      fail(i.begin, "a product of tiles whose sizes do not fit");
  }
  void finish(int row, const void* sums) const {
    memset(mine.data[sum][row], 0, kRowBytes);
    memcpy(mine.data[sum][row], sums, size_t(4 * columns));
  }
  void finish() const {
    for (int row = rows; row < kRows; ++row) memset(mine.data[sum][row], 0, kRowBytes);
  }
};

// Of each pair the first and the second have sums of their own, fused, which are added up in the end; denormals are
// zeros before and after, and rounding is to nearest even, whatever the thread's mode is.
__attribute__((target("avx512f"))) void multiply_bf16(const Instruction& i) {
  const Product p(i);
  _mm_setcsr(0x1f80 | 0x8040);  // a signal's own: the thread gets its mode back
  for (int m = 0; m < p.rows; ++m) {
    __m512 first = _mm512_setzero_ps(), second = _mm512_setzero_ps();
    for (int k = 0; k < p.pieces; ++k) {
      uint32_t pair;
      memcpy(&pair, mine.data[p.a][m] + 4 * k, 4);
      const __m512i pairs = _mm512_load_si512(mine.data[p.b][k]);
      const __m512i high = _mm512_set1_epi32(int(0xffff0000));
      first = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_set1_epi32(int(pair << 16))),
                              _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)), first);
      second = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_set1_epi32(int(pair & 0xffff0000))),
                               _mm512_castsi512_ps(_mm512_and_si512(pairs, high)), second);
    }
    alignas(64) float sums[16];
    _mm512_store_ps(sums, _mm512_add_ps(_mm512_load_ps(mine.data[p.sum][m]), _mm512_add_ps(first, second)));
    p.finish(m, sums);
  }
  p.finish();
}

template <class A, class B>  // int8_t or uint8_t
void multiply_bytes(const Instruction& i) {
  const Product p(i);
  for (int m = 0; m < p.rows; ++m) {
    uint32_t sums[16];
    memcpy(sums, mine.data[p.sum][m], sizeof sums);
    for (int k = 0; k < p.pieces; ++k)
      for (int n = 0; n < p.columns; ++n)
        for (int j = 0; j < 4; ++j)
          sums[n] += uint32_t(int(A(mine.data[p.a][m][4 * k + j])) * int(B(mine.data[p.b][k][4 * n + j])));
    p.finish(m, sums);
  }
  p.finish();
}

void execute(const Instruction& i) {
  switch (i.opcode << 4 | i.prefix) {
    case 0x490:
      if (i.in_memory && i.reg == 0) return load_config(i);
      if (i.in_memory || i.reg || i.rm) break;
      configured -= mine.config.palette;
      memset(&mine, 0, sizeof mine);
      return;
    case 0x491:
      if (!i.in_memory || i.reg) break;
      memcpy(reinterpret_cast<void*>(i.address), &mine.config, sizeof mine.config);
      return;
    case 0x493:
      if (i.in_memory || i.rm) break;
      memset(mine.data[i.tile(i.reg)], 0, sizeof mine.data[0]);
      return;
    case 0x4b1:  // TILELOADDT1: the same, with a hint
    case 0x4b3:
      if (!i.has_stride) break;
      return load(i);
    case 0x4b2:
      if (!i.has_stride) break;
      return store(i);
    case 0x5c2: return multiply_bf16(i);
    case 0x5e0: return multiply_bytes<uint8_t, uint8_t>(i);
    case 0x5e1: return multiply_bytes<uint8_t, int8_t>(i);
    case 0x5e2: return multiply_bytes<int8_t, uint8_t>(i);
    case 0x5e3: return multiply_bytes<int8_t, int8_t>(i);
    default: break;
  }
  fail(i.begin, "an invalid instruction that is not AMX");
}

void handle(int, siginfo_t*, void* context) {
  greg_t* registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  const Instruction instruction(reinterpret_cast<const uint8_t*>(registers[REG_RIP]), registers);
  execute(instruction);
  executed.fetch_add(1, std::memory_order_relaxed);
  registers[REG_RIP] = greg_t(reinterpret_cast<uintptr_t>(instruction.end));
}

}  // namespace

namespace tiles {

void emulate() {
  struct sigaction action = {};
  action.sa_sigaction = handle;
  action.sa_flags = SA_SIGINFO;
  sigemptyset(&action.sa_mask);
  if (sigaction(SIGILL, &action, nullptr) != 0) abort();
}
std::vector<int64_t> counts() { return {executed.load(), configured.load(), configurations.load()}; }

}  // namespace tiles
