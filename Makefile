# Each target makes what it needs on a fresh machine: Python 3.11+, a C++17 compiler and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PLUGINS := $(wildcard plugins/*/)
SOURCES := $(shell find csrc -type f 2>/dev/null) CMakeLists.txt pyproject.toml constraints.txt Makefile

.PHONY: demo test check ahead bench clean

demo: $(VENV)/.installed
	$(BIN)/sae-kernels demo

test: $(VENV)/.developing
	SAE_KERNELS_REQUIRE_CPU=1 $(BIN)/python -m pytest
	TRITON_INTERPRET=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -k triton -m "not big and not slow" \
		tests/kernels tests/ops tests/triton

check: $(VENV)/.developing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest -q tests/test_floors.py

# Every Triton kernel, dtype and configuration compiled for GPUs that are not here: minutes.
ahead: $(VENV)/.developing
	$(BIN)/python tests/support/ahead_table.py --check

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
	rm -rf $(VENV) build dist
