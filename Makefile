# Two commands for a fresh machine with Python 3.11+ and no compiler:
#   make demo    install into .venv and run the shipped language model
#   make test    install what the tests need, then lint, type-check and test
# Both keep their set-up in .venv and repeat it only when pyproject.toml changes; `make clean` starts over.

VENV ?= .venv
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; break; }; done)
PROMPT ?= The old general looked at the map and said,
TOKENS ?= 120
TORCH_VERSION := 2.13.0
TORCH_INDEX := https://download.pytorch.org/whl/cpu
PYTEST_ARGS ?=
# Run a second time for a CPU without AVX-512 (products, convolutions and attention take too long to compile twice;
# products and attention name such a CPU in tests of their own).
NARROW_TESTS := $(addprefix tests/ops/test_,$(addsuffix .py,attention dequant matmul packed quantized rope \
	indexing random_ops reductions scans sorting unique_rows views)) tests/compiler

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input -q
ENV_READY := $(VENV)/.tilewright-env
RUN_READY := $(VENV)/.tilewright-run
TEST_READY := $(VENV)/.tilewright-test

.PHONY: demo test lint format types check clean help
.DELETE_ON_ERROR:

help:
	@sed -n '2,4s/^# *//p' Makefile

demo: $(RUN_READY)
	$(BIN)/tilewright run --prompt "$(PROMPT)" -n $(TOKENS) --temp 0.8 --top-p 0.95 --seed 7

test: lint types check

lint: $(TEST_READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(TEST_READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(TEST_READY)
	$(BIN)/mypy

check: $(TEST_READY)
	$(BIN)/python -m pytest $(PYTEST_ARGS)
	@if grep -qw avx2 /proc/cpuinfo 2>/dev/null; then \
	  echo "the kernels once more, compiled for a CPU without AVX-512:"; \
	  TILEWRIGHT_CPU=haswell $(BIN)/python -m pytest -q $(NARROW_TESTS) $(PYTEST_ARGS); fi

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

# An environment that is already there is used as it is, as long as its Python is new enough.
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))

$(ENV_READY):
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -c '$(NEW_ENOUGH)' 2>/dev/null || { \
	  echo "tilewright needs Python 3.11 or newer; '$(or $(PYTHON),python3)' is $$("$(or $(PYTHON),python3)" --version 2>&1)." >&2; \
	  echo "Install one, or say where it is: make demo PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv --clear $(VENV) || { \
	  echo "could not create $(VENV); on Debian and Ubuntu Python's venv module comes with: apt install python3-venv" >&2; exit 1; }
	@$(BIN)/python -c '$(NEW_ENOUGH)' || { \
	  echo "$(VENV) holds $$($(BIN)/python --version), tilewright needs 3.11 or newer: run 'make clean' and try again" >&2; exit 1; }
	@touch $@

$(RUN_READY): $(ENV_READY) pyproject.toml
	$(PIP) install -e .
	@touch $@

# torch is only a reference to compare with, so it is optional: the tests that want it skip without it. On Linux the
# +cpu build is named outright, because the plain name would bring gigabytes of CUDA libraries.
$(TEST_READY): $(RUN_READY)
	$(PIP) install -e '.[test,dev]'
	@$(BIN)/python -c 'import torch' 2>/dev/null || { \
	  case "$$(uname -s)" in Linux) local=+cpu ;; *) local= ;; esac; \
	  $(PIP) install "torch==$(TORCH_VERSION)$$local" 2>/dev/null \
	  || $(PIP) install --retries 1 --extra-index-url $(TORCH_INDEX) "torch==$(TORCH_VERSION)$$local" 2>/dev/null \
	  || echo "note: no CPU build of torch $(TORCH_VERSION) to be had here; the tests that compare with it are skipped"; }
	@touch $@
