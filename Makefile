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
SOURCES := csrc/ tests/native/

.PHONY: demo test test-native test-sanitizers test-python cuda lint format bench build clean

demo: build
	$(BIN)/python examples/char_rnn.py

test: test-native test-sanitizers test-python

test-python: build
	$(BIN)/python -m pytest tests

test-native: $(STAMP)
	$(CMAKE) -S . -B build/native -G Ninja >/dev/null
	$(CMAKE) --build build/native
	$(BIN)/ctest --test-dir build/native --output-on-failure

# tanh over all floats adds nothing here, and the planner has no pointers.
test-sanitizers: $(STAMP)
	for s in address,undefined thread; do \
	  $(CMAKE) -S . -B build/$$s -G Ninja -DRNN_EXT_SANITIZE=$$s >/dev/null && \
	  $(CMAKE) --build build/$$s --target test_recurrence test_cuda_emulator test_cuda_device test_cuda_example && \
	  $(BIN)/ctest --test-dir build/$$s -R 'test_recurrence|test_cuda' --output-on-failure || exit 1; \
	done

# What a machine with nvcc can say of CUDA code without a GPU: it compiles, for every architecture.
cuda: $(STAMP)
	$(CMAKE) -S . -B build/native -G Ninja >/dev/null
	$(CMAKE) --build build/native --target cuda

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
