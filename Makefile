# The CPU build of torch is taken from the package index of PyTorch where the plain index would bring CUDA:
#   make demo PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
TORCH ?= torch==2.13.0
PYTHON ?= python3
PIP_ARGS ?=
# Extras of pyproject.toml that are installed beside the package; tests of the others' are skipped.
EXTRAS ?= test,lint,plot,vision,audio
# Processes that share the tests; most of a test's time is one thread's.
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
# From this folder `compress/` would hide the installed package, which holds the compiled kernel and the commands.
export PYTHONSAFEPATH := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test lint bench wheels install reinstall clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.torch: | $(BIN)/python
	$(BIN)/pip install -q $(PIP_ARGS) "$(TORCH)" numpy setuptools cython
	touch $@

SOURCES := pyproject.toml setup.py $(wildcard kernels/*.pyx kernels/*.c kernels/*.h)
LAYOUT := $(sort $(wildcard compress/*.py compress/*/*.py cli/*.py recipes/*.py recipes/*.yaml recipes/*/*.py recipes/*/*.yaml))

# An editable install links files one by one, so the list of files is part of what it depends on, as the extras are.
$(VENV)/.layout: FORCE | $(BIN)/python
	@echo "$(EXTRAS) $(LAYOUT)" | cmp -s - $@ || echo "$(EXTRAS) $(LAYOUT)" > $@
FORCE:

$(VENV)/.installed: $(VENV)/.torch $(VENV)/.layout $(SOURCES)
	$(BIN)/pip install -q $(PIP_ARGS) --no-build-isolation --config-settings editable_mode=strict -e ".[$(EXTRAS)]"
	touch $@

install: $(VENV)/.installed

reinstall:
	rm -f $(VENV)/.installed
	$(MAKE) -s install

demo: install
	$(BIN)/python -m compress.recipes.embedded.demo

# Files are begun in the order of their names: by their number of tests, the slowest would be the last.
# Other programs that load checkpoints take part where they are installed:
#   $(BIN)/pip install sentence-transformers ".[eval]"
test: install
	COMPRESS_REQUIRE_KERNEL=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

# Other engines take part where they are installed: $(BIN)/pip install ".[bench]"
bench: install
	$(BIN)/python -m compress bench
	$(BIN)/python -m compress bench --tables 128 --bits 8 --projection bh4

lint: install
	$(BIN)/ruff check compress cli recipes tests setup.py
	$(BIN)/ruff format --check compress cli recipes tests setup.py
	$(BIN)/mypy -p compress
	PATH="$(CURDIR)/$(BIN):$$PATH" cython-lint kernels

# One wheel serves all processors of an architecture and every Python from 3.11 on. That for 64-bit Arm is built where
# a cross-compiler is (Debian: gcc-aarch64-linux-gnu).
WHEEL := $(BIN)/pip wheel -q --no-deps --no-build-isolation -w dist .
ARM_GCC := $(shell command -v aarch64-linux-gnu-gcc)
wheels: install
	rm -rf build/lib.* build/bdist.*
	$(WHEEL)
ifneq ($(ARM_GCC),)
	CC=$(ARM_GCC) LDSHARED="$(ARM_GCC) -shared" _PYTHON_HOST_PLATFORM=linux-aarch64 $(WHEEL)
endif

clean:
	rm -rf $(VENV) build dist *.egg-info demo
