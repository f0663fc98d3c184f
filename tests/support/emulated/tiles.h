// Tile instructions: emulated, and one by one for tests.
#pragma once
#include <cstdint>
#include <vector>

#if SK_EMULATE_TILES
namespace tiles {

// From now on, in every thread.
void emulate();

// Instructions so far; threads whose tiles are configured now; configurations so far.
std::vector<int64_t> counts();

}  // namespace tiles
#endif

#if SK_TRY_TILES
// sum (16 rows of 64 bytes) += a b, as the 64 bytes at `config` configure tiles 0, 1 and 2 for them; then what STTILECFG
// says goes to `config`. Products: 0 TDPBF16PS, 1 TDPBSSD, 2 TDPBSUD, 3 TDPBUSD, 4 TDPBUUD; 5: tile 0 to zeros. Memory that
// a tile's size leaves out is neither read nor written.
void try_product(int product, uintptr_t config, uintptr_t sum, uintptr_t a, uintptr_t b);

// states (threads, 6, 64) bytes, what each of several threads at once finds: STTILECFG before its own configuration,
// with it, and after TILERELEASE; a row of a tile as loaded, after LDTILECFG of the same, and after loading it again with
// the next row of memory and TILEZERO.
void try_states(uintptr_t states, int threads);
#endif
