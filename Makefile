# Two commands do all their set-up: `make demo` and `make test`. Python 3.11 and make are all they need.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
LOCK := requirements/cpu.lock
STAMP := $(VENV)/.installed-$(shell sha256sum $(LOCK) pyproject.toml 2>/dev/null | sha256sum | cut -c1-16)
SEED ?= 0

.PHONY: demo test lint format env lock clean
.DEFAULT_GOAL := help

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(STAMP)  ## pretrain a tiny base, R1-Zero on it, and a control; a quarter of an hour on two cores
	$(BIN)/r1mega pipeline configs/tiny/r1_zero/demo.toml --run-dir runs/demo-$(SEED) --set seed=$(SEED) --resume

test: $(STAMP)  ## every test that two CPU cores can run
	$(BIN)/python -m pytest $(PYTEST)

lint: $(STAMP)  ## style, types, and who may import whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(STAMP)  ## rewrite the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

env: $(STAMP)  ## the environment alone

# The lock names torch with the hashes of the CPU and of the CUDA build: whichever pip finds first is installed.
# The last line completes a CUDA build with the libraries that only it needs, and does nothing for a CPU build.
$(STAMP): $(LOCK) pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and "r1mega needs Python 3.11: make PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --require-hashes -r $(LOCK)
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	$(BIN)/python -c 'import torch, sys; sys.exit(bool(torch.version.cuda))' || $(BIN)/python -m pip install -q torch==2.13.0
	rm -f $(VENV)/.installed-*
	touch $@

lock:  ## resolve the dependencies in pyproject.toml anew (needs uv)
	tools/lock.sh

clean:  ## remove the environment
	rm -rf $(VENV)
