# `make demo` and `make test` set up .venv by themselves; all needs Python >= 3.11 and make.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# Versions to install; lower_bounds.txt holds the first ones that pyproject.toml allows.
CONSTRAINTS ?= constraints.txt
# Tests run in one process a core, a module in one of them (its fixtures are made once), each process
# on one thread and up to 3 GB; `make test WORKERS=0` runs them in this process, as a debugger needs it.
WORKERS ?= auto
PYTEST = $(ONE_THREAD) $(BIN)/pytest -q --numprocesses $(WORKERS) --maxprocesses 4 --dist loadfile

.PHONY: demo test test-all coverage lint docs dist release-check bench gpu tools vendor clean
.DELETE_ON_ERROR:

demo: $(READY)
	$(BIN)/vst demo demo

test: $(READY)
	$(PYTEST) -m "not slow"

test-all: $(READY)
	$(PYTEST)

# Takes about twice as long as the tests alone, so CI does it every night and not at every push.
coverage: $(READY)
	$(PYTEST) -m "not slow" --cov --cov-report=html --cov-report=term:skip-covered

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site; warnings are errors, and the tutorial is run.
docs: $(READY) .venv/.docs
	$(BIN)/python -m sphinx --fail-on-warning --keep-going -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

# What a release uploads, built in isolation and checked as the package index does.
dist: $(READY) .venv/.dist
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/python -m twine check --strict dist/*

# The wheel (which is built from the sdist) in an environment of its own, away from the source tree.
release-check: dist
	set -- dist/*.whl && $(BIN)/python tests/support/release_check.py "$$1"

# PEER_PYTHON: a Python with scanpy and spatialdata-io, which then take part in the ingest.
# SHORT_SPIN: as vst sets it for itself (cli/main.py says why).
ONE_THREAD := OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1
SHORT_SPIN := GOMP_SPINCOUNT=10000
bench: $(READY)
	mkdir -p .bench
	$(ONE_THREAD) $(BIN)/python benchmarks/bench_kernels.py --json .bench/kernels.json
	$(ONE_THREAD) $(BIN)/python benchmarks/bench_metrics.py --json .bench/metrics.json
	$(ONE_THREAD) $(BIN)/python benchmarks/bench_factorise.py --json .bench/factorise.json
	$(ONE_THREAD) $(BIN)/python benchmarks/bench_cells.py --json .bench/cells.json
	$(ONE_THREAD) $(BIN)/python benchmarks/bench_store.py --rounds 12 --folder .bench --json .bench/store.json
	$(SHORT_SPIN) $(BIN)/python benchmarks/bench_loss.py --json .bench/loss.json
	$(ONE_THREAD) $(BIN)/python benchmarks/bench_factors.py --json .bench/factors.json
	$(BIN)/python benchmarks/bench_ingest.py .bench/slide --json .bench/ingest.json \
	  $(if $(PEER_PYTHON),--peer-python $(PEER_PYTHON))
	$(BIN)/python benchmarks/report.py .bench/*.json

# Checks and measures on one GPU, in less than eight minutes; on a machine without this Makefile's
# .venv, `python benchmarks/gpu.py` with any Python that has the package.
gpu: $(READY)
	mkdir -p .bench
	$(BIN)/python benchmarks/gpu.py --json .bench/gpu.json
	$(BIN)/python benchmarks/report.py .bench/gpu.json

# The adapters of docs/examples/other-tools in the tools that they are for, each in an environment
# of its own, because their dependencies differ from ours.
tools: $(addprefix tools-, lazyslide tiatoolbox vitessce)
tools-%:
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet $* pytest pytest-xdist hypothesis '.[spatial]'
	$(ONE_THREAD) .venv-$*/bin/python -m pytest -q tests/predict/test_other_tools.py -k $*

# The schema that views of `vst export --vitessce` have to meet; needs npm and node.
tools-vitessce: $(READY)
	npm install --silent --no-audit --no-fund --ignore-scripts --prefix .venv-vitessce @vitessce/schemas@4
	$(ONE_THREAD) $(BIN)/python -m pytest -q tests/output/test_vitessce.py

# The viewer in `vst report`, fetched anew; needs npm. For another version, change both lines.
VIEWER := openseadragon-6.1.1
VIEWER_SHA512 := 83888a7b6abc07ae3649a053dfec78645dfff1bd53c4f3f27728e6b6b38b803ae561630a77d65733ed426ffc5af435724a4becffb97a1d1d671ca7c3e45dd3b3
VENDOR := virchow_st/output/report/vendor
vendor:
	mkdir -p .vendor && cd .vendor && npm pack --silent $(subst -,@,$(VIEWER))
	echo "$(VIEWER_SHA512)  .vendor/$(VIEWER).tgz" | sha512sum --check --quiet
	tar -xzf .vendor/$(VIEWER).tgz -C .vendor
	sed '/^\/\/# sourceMappingURL=/d' .vendor/package/build/openseadragon/openseadragon.min.js \
	  > $(VENDOR)/openseadragon.min.js
	cp .vendor/package/LICENSE.txt $(VENDOR)/openseadragon.LICENSE.txt
	rm -r .vendor

clean:
	rm -rf .venv .venv-* build dist demo .bench .coverage* htmlcov docs/_build .pytest_cache .mypy_cache .ruff_cache *.egg-info

.venv/.docs .venv/.dist: .venv/.%: $(READY)
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable '.[$*]'
	@touch $@

$(READY): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "virchow_st needs Python 3.11 or newer; try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	@echo "installing virchow_st with torch (about 6 GB, a few minutes the first time)"
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable '.[dev]'
	@touch $@
