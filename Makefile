# `make demo` and `make test` set up .venv by themselves; all needs Python >= 3.11 and make.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test test-all lint bench clean
.DELETE_ON_ERROR:

demo: $(READY)
	$(BIN)/vst demo demo

test: $(READY)
	$(BIN)/pytest -q -m "not slow"

test-all: $(READY)
	$(BIN)/pytest -q

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python benchmarks/bench_kernels.py
	$(BIN)/python benchmarks/bench_store.py

clean:
	rm -rf .venv build dist demo .pytest_cache .mypy_cache .ruff_cache *.egg-info

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "virchow_st needs Python 3.11 or newer; try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	@echo "installing virchow_st with torch (about 6 GB, a few minutes the first time)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@
