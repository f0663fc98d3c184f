// The C++ kernels and their bindings as a program: calls come in on standard input with the memory they point to, and
// go back on standard output. emulated.py talks to it. Everything is in this machine's byte order.
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "nanobind/nanobind.h"
#include "tiles.h"

void bind_module(nanobind::module_& m);

namespace {

constexpr uint64_t kPage = 4096;

template <class T>
T take() {
  T value;
  if (fread(&value, sizeof value, 1, stdin) != 1) exit(0);
  return value;
}
template <class T>
void give(T value) {
  fwrite(&value, sizeof value, 1, stdout);
}

// Bytes at the place in a page that they have in the caller's, between two pages that nothing may touch.
struct Block {
  uint64_t bytes, reserved;
  char *pages, *data;

  Block() {
    const uint64_t at = take<uint64_t>() % kPage;
    bytes = take<uint64_t>();
    reserved = (at + bytes + kPage - 1) / kPage * kPage + 2 * kPage;
    pages = static_cast<char*>(mmap(nullptr, reserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (pages == MAP_FAILED || mprotect(pages + kPage, reserved - 2 * kPage, PROT_READ | PROT_WRITE) != 0) abort();
    data = pages + kPage + at;
    if (fread(data, 1, bytes, stdin) != bytes) exit(0);
  }
};

nanobind::Argument argument(const std::vector<Block>& blocks) {
  const char kind = take<char>();
  if (kind == 'd') return {0, take<double>(), {}};
  if (kind == 'i') return {take<int64_t>(), 0, {}};
  if (kind == 'p') {
    const Block& block = blocks.at(take<uint64_t>());
    return {static_cast<int64_t>(reinterpret_cast<uintptr_t>(block.data + take<uint64_t>())), 0, {}};
  }
  std::vector<int64_t> list(take<uint64_t>());
  for (int64_t& each : list) each = take<int64_t>();
  return {0, 0, list};
}

void answer(const nanobind::object& result, const std::vector<Block>& blocks) {
  give(uint64_t(result.integers.size()));
  for (const int64_t integer : result.integers) give(integer);
  give(uint64_t(result.words.size()));
  for (const std::string& word : result.words) {
    give(uint64_t(word.size()));
    fwrite(word.data(), 1, word.size(), stdout);
  }
  for (const Block& block : blocks) {
    fwrite(block.data, 1, block.bytes, stdout);
    munmap(block.pages, block.reserved);
  }
  fflush(stdout);
}

}  // namespace

int main() {
  nanobind::module_ module;
  bind_module(module);
#if SK_EMULATE_TILES
  tiles::emulate();
  module.functions["tile_counts"] = [](const nanobind::Arguments&) { return nanobind::object{tiles::counts(), {}}; };
#endif
#if SK_TRY_TILES
  module.def("try_product", &try_product);
  module.def("try_states", &try_states);
#endif
  for (;;) {
    std::string name(take<uint64_t>(), ' ');
    for (char& letter : name) letter = take<char>();
    std::vector<Block> blocks(take<uint64_t>());
    nanobind::Arguments arguments;
    for (uint64_t left = take<uint64_t>(); left; --left) arguments.push_back(argument(blocks));
    answer(module.functions.at(name)(arguments), blocks);
  }
}
