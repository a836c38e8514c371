# Every target sets up .venv by itself. PYTHON chooses the interpreter that makes it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Two workers on two cores, each with one thread, so that they do not fight for the cores.
WORKERS ?= 2

.PHONY: demo test lint types bench wheel clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	$(BIN)/python -m so_clip experiment=demo

test: $(VENV)/.installed-dev lint types
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

# All of the machine, for the better part of an hour; leave it alone meanwhile.
bench: $(VENV)/.installed-dev
	$(BIN)/python scripts/bench_engine.py
	$(BIN)/python scripts/bench_report.py
	$(BIN)/python scripts/bench_decode.py

wheel: $(VENV)/.installed-dev
	$(BIN)/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache
