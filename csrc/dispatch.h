// Which table of kernels this machine runs.
#pragma once
#include <string>
#include <vector>

#include "sae_kernels/kernels.h"

// Instruction sets that are built and that this machine runs, best first.
std::vector<std::string> available_isas();

// The table in use: chosen on the first call, by SAE_KERNELS_ISA where that is set, else the best one.
// Throws std::invalid_argument, naming what is available, where the variable asks for anything else.
const sk_kernels& active_kernels();

// Whether this machine multiplies bfloat16 much faster than float32: AMX, or AVX512_BF16 on AMD (on Intel it runs at
// half the rate of float32). What SAE_KERNELS_ISA pins does not matter here.
bool fast_bf16();

// Whether this machine has AVX-512 with VNNI. What SAE_KERNELS_ISA pins does not matter here.
bool fast_int8();
