# Every target creates .venv if needed, with the versions in constraints.txt.
# PYTHON chooses the interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Two workers on two cores, each with one thread, so that they do not compete for the cores.
WORKERS ?= 2
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal
# An environment variable, because pip then also uses it when it builds packages.
CONSTRAINED := PIP_CONSTRAINT=constraints.txt

.PHONY: demo docs docs-serve test test-fast test-slow test-latest lint types bench wheel lock clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	$(BIN)/python -m so_clip experiment=demo

# The documentation site, in site/. A broken link, or a name that does not exist, is an error.
docs: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# The site at http://127.0.0.1:8000, built again when a page changes.
docs-serve: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs serve

# Linter, type checker and the fast tests, at the same time.
test: $(VENV)/.installed-dev
	$(MAKE) --no-print-directory --jobs 2 lint types test-fast

test-fast: $(VENV)/.installed-dev
	$(PYTEST) -m "not slow"

# The slow tests: killed processes, wheels, browsers, launchers, benchmarks, long batteries.
test-slow: $(VENV)/.installed-dev
	$(PYTEST) -m slow

# All tests with the newest version of every dependency, in a new environment.
test-latest:
	rm -rf .venv-latest
	$(PYTHON) -m venv .venv-latest
	.venv-latest/bin/pip install --quiet --editable '.[dev]'
	OMP_NUM_THREADS=1 .venv-latest/bin/python -m pytest -n $(WORKERS) --dist worksteal

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

# This takes long. Use an otherwise idle machine.
bench: $(VENV)/.installed-dev
	$(BIN)/python scripts/bench_engine.py
	$(BIN)/python scripts/bench_report.py
	$(BIN)/python scripts/bench_decode.py
	$(BIN)/python scripts/bench_adapters.py

wheel: $(VENV)/.installed-dev
	$(BIN)/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

# Write constraints.txt with the newest version of every dependency.
# A suffix after + names one build (such as CUDA), so it is removed.
lock:
	rm -rf .venv-lock
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install --quiet --editable '.[dev]'
	{ echo '# Made by `make lock`. The versions that `make demo`, `make test` and CI install.'; \
	  .venv-lock/bin/pip freeze --exclude-editable | sed 's/+.*//'; } > constraints.txt
	rm -rf .venv-lock

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(CONSTRAINED) $(BIN)/pip install --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(CONSTRAINED) $(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) dist build site .mypy_cache .ruff_cache .pytest_cache
