# Each target makes what it needs on a fresh machine: Python 3.11+, a C++17 compiler and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PLUGINS := $(wildcard plugins/*/)
SOURCES := $(shell find csrc -type f 2>/dev/null) CMakeLists.txt pyproject.toml constraints.txt Makefile

.PHONY: demo test check ahead sanitize arm arm-passed-over arm-emulated amx amx-passed-over amx-run peers bench clean

demo: $(VENV)/.installed
	$(BIN)/sae-kernels demo

test: $(VENV)/.developing
	SAE_KERNELS_REQUIRE_CPU=1 $(BIN)/python -m pytest
	TRITON_INTERPRET=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -k triton -m "not big and not slow" \
		tests/kernels tests/ops tests/on_triton

check: $(VENV)/.developing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest -q tests/test_floors.py

# Every Triton kernel, dtype and configuration compiled for GPUs that are not here: minutes.
ahead: $(VENV)/.developing
	$(BIN)/python tests/support/ahead_table.py --check

# The C++ kernels under AddressSanitizer and UndefinedBehaviorSanitizer, on every instruction set of this machine; in a
# build of its own, which leaves the installed one alone. libstdc++ is loaded early for libasan, which wraps its throw.
SANITIZE_TESTS ?= tests/kernels/test_cpu_fuzz.py tests/kernels/test_cpu_binding.py tests/kernels/test_ops_malformed.py \
	tests/kernels/test_ops_layouts.py tests/kernels/test_ops_linear.py \
	tests/kernels/test_ops_products.py tests/kernels/test_ops_adam.py tests/kernels/test_ops_latent_topn.py \
	tests/kernels/test_ops_prefix.py tests/kernels/test_ops_topk.py tests/kernels/test_ops_transpose.py $(LONGER_TESTS)
LONGER_TESTS := tests/kernels/test_cpu_few_tokens.py tests/kernels/test_cpu_few_tokens_kept.py \
	tests/kernels/test_cpu_gather.py tests/kernels/test_cpu_integers.py
SANITIZE_FUZZ ?= 200
PRELOADED = $(shell $(CXX) -print-file-name=libasan.so) $(shell $(CXX) -print-file-name=libstdc++.so)
sanitize: $(VENV)/.developing
	CXX="$(CXX)" PATH="$(abspath $(BIN)):$$PATH" cmake -S . -B build/sanitize/cmake -G Ninja -DSAE_KERNELS_SANITIZE=ON \
		-DCMAKE_LIBRARY_OUTPUT_DIRECTORY=$(CURDIR)/build/sanitize \
		-DPython_EXECUTABLE=$(abspath $(BIN)/python) -Wno-dev --log-level=WARNING
	PATH="$(abspath $(BIN)):$$PATH" cmake --build build/sanitize/cmake
	export SAE_KERNELS_REQUIRE_CPU=1 SAE_KERNELS_SANITIZED="$$(ls $(CURDIR)/build/sanitize/_cpu*.so)" \
		PYTHONPATH=tests/support/sanitized SAE_KERNELS_FUZZ=$(SANITIZE_FUZZ) LD_PRELOAD="$(PRELOADED)" \
		ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1; \
	isas=$$($(BIN)/python -c 'from sae_kernels.kernels import _cpu; print(*_cpu.isas())') && test -n "$$isas" || exit 1; \
	for isa in $$isas; do \
		echo "sanitized: $$isa"; \
		SAE_KERNELS_ISA=$$isa $(BIN)/python -m pytest -q --capture=sys -p no:cacheprovider -k "cpu and not every_isa" $(SANITIZE_TESTS) || exit 1; \
	done

# The C++ kernels built for 64-bit Arm and run by an emulator, called from the Python and torch of this machine; passed
# over where the tools are not installed. Warnings are errors.
ARM_CXX ?= aarch64-linux-gnu-g++
ARM_EMULATOR ?= $(firstword $(shell command -v qemu-aarch64-static qemu-aarch64))
ARM_ROOT ?= /usr/aarch64-linux-gnu
ARM_TESTS ?= $(SANITIZE_TESTS) tests/kernels/test_cpu_screening.py
ARM_FUZZ ?= 50
arm: $(if $(and $(ARM_EMULATOR),$(shell command -v $(ARM_CXX))),$(VENV)/.developing arm-emulated,arm-passed-over)
arm-passed-over:
	@echo "make arm: PASSED OVER. It needs $(ARM_CXX) (found: $(or $(shell command -v $(ARM_CXX)),none))" \
		"and qemu-aarch64 (found: $(or $(ARM_EMULATOR),none))." \
		"Debian, Ubuntu: apt install g++-aarch64-linux-gnu qemu-user-static"
arm-emulated: $(VENV)/.developing
	PATH="$(abspath $(BIN)):$$PATH" cmake -S . -B build/arm -G Ninja -DSAE_KERNELS_SERVER=ON -DCMAKE_SYSTEM_NAME=Linux \
		-DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER="$(ARM_CXX)" -DCMAKE_CXX_FLAGS=-Werror \
		-Wno-dev --log-level=WARNING
	PATH="$(abspath $(BIN)):$$PATH" cmake --build build/arm
	SAE_KERNELS_REQUIRE_CPU=1 SAE_KERNELS_FUZZ=$(ARM_FUZZ) PYTHONPATH=tests/support/emulated \
		SAE_KERNELS_EMULATED="$(ARM_EMULATOR) -L $(ARM_ROOT) $(CURDIR)/build/arm/kernels_server" \
		$(BIN)/python -m pytest -q -p emulated -p no:cacheprovider -k "cpu and not every_isa" $(ARM_TESTS)

# The kernels for AMX under the ops' tests, on emulated tiles where the machine has none: that takes AVX-512 with VNNI, and
# is passed over without. Warnings are errors.
CPU_FLAGS := $(shell grep -m1 ^flags /proc/cpuinfo 2>/dev/null)
AMX_TILES ?= $(if $(filter amx_bf16,$(CPU_FLAGS)),hardware,$(if $(filter avx512_vnni,$(CPU_FLAGS)),emulated))
AMX_TESTS ?= tests/kernels/test_cpu_tiles.py $(LONGER_TESTS) tests/kernels/test_cpu_integers_kept.py \
	tests/kernels/test_cpu_screening.py tests/kernels/test_ops_linear.py
amx: $(if $(AMX_TILES),$(VENV)/.developing amx-run,amx-passed-over)
amx-passed-over:
	@echo "make amx: PASSED OVER. It needs a processor with AMX, or with AVX-512 and VNNI to emulate it."
amx-run: $(VENV)/.developing
	PATH="$(abspath $(BIN)):$$PATH" cmake -S . -B build/amx -G Ninja -DSAE_KERNELS_SERVER=ON \
		-DSAE_KERNELS_ASSUME_AMX=$(if $(filter emulated,$(AMX_TILES)),ON,OFF) -DCMAKE_CXX_FLAGS=-Werror \
		-Wno-dev --log-level=WARNING
	PATH="$(abspath $(BIN)):$$PATH" cmake --build build/amx
	OMP_WAIT_POLICY=passive SAE_KERNELS_REQUIRE_CPU=1 SAE_KERNELS_TILES=$(AMX_TILES) PYTHONPATH=tests/support/emulated \
		SAE_KERNELS_EMULATED="$(CURDIR)/build/amx/kernels_server" \
		$(BIN)/python -m pytest -q -p emulated -p no:cacheprovider -k "cpu and not every_isa" $(AMX_TESTS)

# SAELens, sparsify, dictionary_learning and circuit-tracer themselves, in an environment of their own (2 GB), as judges.
# Not with all they ask for: a torchvision that goes with a CUDA build of torch breaks transformers.
PEERS := .venv-peers
PEERS_PIP := $(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
peers: $(PEERS)/.installed
	SPARSIFY_DISABLE_TRITON=1 SAE_KERNELS_REQUIRE_CPU=1 $(PEERS)/bin/python -m pytest -q -m peers tests/peers

$(PEERS)/.installed: $(SOURCES)
	@test -d $(PEERS) || $(PYTHON) -m venv $(PEERS)
	@echo "installing the libraries that the package is compared with into $(PEERS)"
	@$(PEERS_PIP) torch numpy $(BUILD_TOOLS) triton sae-lens==6.54.12 eai-sparsify==1.3.3 "nnsight<0.4" einops tqdm
	@$(PEERS_PIP) --no-deps dictionary-learning==0.1.0 circuit-tracer==0.5.0
	@$(PEERS)/bin/python -m pip uninstall --quiet --yes torchvision
	@$(PEERS_PIP) --no-build-isolation -e ".[train]"
	@$(PEERS_PIP) pytest hypothesis
	@touch $@

bench: $(VENV)/.developing
	$(BIN)/python -m pytest bench --benchmark-only

PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# --no-build-isolation: the build sees the torch and the tools installed here, and downloads nothing twice.
BUILD_TOOLS := "scikit-build-core>=0.10" "nanobind>=2.4" "setuptools>=77" "pybind11>=2.13" cmake ninja

# The package with what the demo needs; rebuilt when the C++ sources change.
$(VENV)/.installed: $(SOURCES)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"Python 3.11 or later is needed, found {sys.version}")'
	@test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	@echo "installing torch and the build tools into $(VENV)"
	@$(PIP) torch numpy $(BUILD_TOOLS)
	@echo "building the C++ kernels and installing the package"
	@$(PIP) --no-build-isolation -e ".[train]"
	@touch $@

# The same with what tests and checks need, and the plugins of plugins/.
$(VENV)/.developing: $(VENV)/.installed $(shell find plugins -name '*.py' -o -name '*.cpp' -o -name '*.toml')
	@echo "installing the test tools and the plugins"
	@$(PIP) --no-build-isolation -e ".[dev]"
	@$(PIP) --no-build-isolation --no-deps $(PLUGINS)
	@touch $@

clean:
	rm -rf $(VENV) $(PEERS) build dist
