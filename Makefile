# Two commands do all there is to do on a fresh machine with python3, g++ and make:
#
#   make demo    trains a character-level language model with torch.nn.RNN and with rnn_ext.RNN, side by side
#   make test    native tests, sanitizers and the Python suite
#
# Each makes .venv, installs what is missing there and builds the extension incrementally. A CUDA build of PyTorch,
# or another version, is asked for with TORCH, e.g. `make test TORCH=torch==2.14.1`.

PYTHON ?= python3
TORCH ?= torch==2.13.0+cpu
# Where CPU builds are published, for when the default package index has none.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.requirements
CMAKE := $(BIN)/cmake
CORES := $(shell getconf _NPROCESSORS_ONLN)
CTEST := $(BIN)/ctest --output-on-failure --parallel $(CORES)
# A worker that is through takes over tests of one that is not: they differ in length by a thousand times.
PARALLEL := --numprocesses $(CORES) --dist worksteal

.PHONY: demo test configured test-native test-sanitizers test-python cuda cuda-cost verify-cuda test-cuda-emulated \
  test-cuda-build test-aarch64 test-gpu bench-gpu lint format bench build clean

demo: build
	$(BIN)/python examples/char_rnn.py

test: test-native test-sanitizers test-python

test-python: build
	$(BIN)/python -m pytest tests $(PARALLEL)

# The plain build, for what follows.
configured: $(STAMP)
	$(CMAKE) -S . -B build/native -G Ninja >/dev/null

test-native: configured
	$(CMAKE) --build build/native
	$(CTEST) --test-dir build/native

# tanh over all floats adds nothing here, and the planners have no pointers.
SANITIZED := test_recurrence test_cuda_emulator test_cuda_device test_cuda_example test_cuda_tensor \
  test_cuda_recurrence
test-sanitizers: $(STAMP)
	for s in address,undefined thread; do \
	  $(CMAKE) -S . -B build/$$s -G Ninja -DRNN_EXT_SANITIZE=$$s >/dev/null && \
	  $(CMAKE) --build build/$$s --target $(SANITIZED) && \
	  $(CTEST) --test-dir build/$$s -R "$$(echo $(SANITIZED) | tr ' ' '|')" || exit 1; \
	done

# What a machine with nvcc can say of CUDA code without a GPU: it compiles, for every architecture.
cuda: configured
	$(CMAKE) --build build/native --target cuda

# And what a step of them costs, from their machine code; fails where one spills, has a bank conflict, or is estimated
# at much more than its floor.
cuda-cost: configured
	$(BIN)/pip install --quiet --group cuda
	$(CMAKE) --build build/native --target recurrence.sm_80.o recurrence.sm_90.o
	$(BIN)/python -m benchmarks.cuda_cost

# And that they have no races, proven from their PTX for some launches; fails too where a planted race goes unseen.
verify-cuda: $(STAMP)
	$(BIN)/pip install --quiet --group cuda
	$(BIN)/python -m benchmarks.cuda_verify

# The Python suite through the CUDA kernels, executed by the emulator in place of the CPU's: what has tensors small
# enough for a thread of the CPU to stand in for each of a GPU's.
EMULATED := tests/test_functional.py tests/test_resets.py tests/test_zoneout.py tests/test_precision.py \
  tests/test_mathematics.py tests/test_mathematics_primitives.py tests/test_ops_contract.py tests/test_sequences.py \
  tests/test_cuda.py
test-cuda-emulated: $(STAMP)
	RNN_EXT_CUDA=emulated $(BIN)/python setup.py --quiet build --build-base build/cuda-emulated \
	  --build-lib build/cuda-emulated/lib
	RNN_EXT_CUDA=emulated PYTHONPATH=build/cuda-emulated/lib $(BIN)/pytest $(EMULATED) $(PARALLEL) -k "not instruction_set"

# AArch64, for which CI has no machine: all sources compile, and the kernels run in an emulator. Needs the packages
# g++-aarch64-linux-gnu and qemu-user-static (Debian, Ubuntu). The headers are those of .venv's PyTorch: of what is
# compiled against them nothing is linked.
test-aarch64: $(STAMP)
	$(CMAKE) -S . -B build/aarch64 -G Ninja -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
	  -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ -DCMAKE_EXE_LINKER_FLAGS=-static \
	  -DCMAKE_CROSSCOMPILING_EMULATOR=qemu-aarch64-static -DRNN_EXT_TORCH_INCLUDES="$$($(BIN)/python -c \
	  'import pybind11, sysconfig; from torch.utils.cpp_extension import include_paths; \
	  print(";".join([*include_paths(), pybind11.get_include(), sysconfig.get_path("include")]))')" >/dev/null
	$(CMAKE) --build build/aarch64 --target test_recurrence test_planner rnn_ext_torch
	$(CTEST) --test-dir build/aarch64 -R "test_recurrence|test_planner"

# One binary, built with nvcc against a CUDA build of PyTorch (5.5 GB in an environment of its own), imports and passes
# on a machine without a GPU; and again under the CPU build of another version in .venv.
BUILD_CUDA := setup.py --quiet build --build-base build/cuda --build-lib build/cuda/lib
CUDA_TORCH ?= torch==2.14.1
CUDA_VENV := build/cuda-venv
ON_CPU := tests/test_functional.py tests/test_resets.py tests/test_ops_contract.py tests/test_modules_dropin.py \
  tests/test_ops_oracle.py
test-cuda-build: $(STAMP)
	$(MAKE) VENV=$(CUDA_VENV) TORCH="$(CUDA_TORCH)" $(CUDA_VENV)/.requirements
	RNN_EXT_CUDA=1 $(CUDA_VENV)/bin/python $(BUILD_CUDA)
	for venv in $(CUDA_VENV) $(VENV); do \
	  RNN_EXT_CUDA=1 PYTHONPATH=build/cuda/lib $$venv/bin/pytest $(ON_CPU) || exit 1; \
	done

# On a machine with a GPU: the tests that need one. Not on the build in place, which setuptools would leave as it is
# where that was built without CUDA, and the tests would all be skipped.
# Then, where the toolkit has compute-sanitizer, a few of them again under its eyes: without PyTorch's cache, in which one
# allocation's end is another's beginning.
LOOK := $(BIN)/pytest tests/test_cuda.py -k "trains or float32"
test-gpu: $(STAMP)
	RNN_EXT_CUDA=1 $(BIN)/python $(BUILD_CUDA)
	RNN_EXT_CUDA=1 PYTHONPATH=build/cuda/lib $(BIN)/pytest tests -m cuda
	if command -v compute-sanitizer >/dev/null; then for tool in memcheck racecheck; do \
	  RNN_EXT_CUDA=1 PYTHONPATH=build/cuda/lib PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
	    compute-sanitizer --tool $$tool --target-processes all --error-exitcode 1 $(LOOK) || exit 1; \
	done; fi

# And how fast the same build is, beside cuDNN. From its folder, which Python then looks in before this one.
bench-gpu: $(STAMP)
	RNN_EXT_CUDA=1 $(BIN)/python $(BUILD_CUDA)
	cd build/cuda/lib && PYTHONPATH=$(CURDIR) $(CURDIR)/$(BIN)/python -m benchmarks.gpu

bench: build
	$(BIN)/python -m benchmarks

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	git ls-files '*.cpp' '*.h' '*.inl' '*.cu' '*.cuh' | xargs $(BIN)/clang-format --dry-run -Werror

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	git ls-files '*.cpp' '*.h' '*.inl' '*.cu' '*.cuh' | xargs $(BIN)/clang-format -i

# In place, beside the Python sources; ninja compiles what changed.
build: $(STAMP)
	$(BIN)/python setup.py --quiet build_ext --inplace

$(STAMP): pyproject.toml Makefile
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/pip install --quiet "$(TORCH)" \
	  || $(BIN)/pip install --quiet "$(TORCH)" --index-url $(TORCH_INDEX)
	$(BIN)/pip install --quiet --group dev
	@# This checkout on the environment's path, so that `import rnn_ext` finds it from anywhere.
	$(BIN)/python -c 'import site; open(site.getsitepackages()[0] + "/rnn_ext_checkout.pth", "w").write("$(CURDIR)\n")'
	touch $@

clean:
	rm -rf build out rnn_ext/*.so *.egg-info
