# Two commands do everything on a fresh machine: `make demo` and `make test`.
# Each builds .venv if it isn't there; PYTHON picks the interpreter (3.11 or newer).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PLUGINS := $(sort $(wildcard plugins/ptkit-*))
STAMP := $(VENV)/.installed

.PHONY: demo test test-wheels setup lint types contracts unit bench format clean

demo: setup
	$(BIN)/ptkit run recipes/quickstart.toml

test: setup lint types contracts unit

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt $(PLUGINS:%=%/pyproject.toml)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ptkit needs Python 3.11 or newer; set PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		--group dev -e . $(PLUGINS:%=-e %)
	touch $(STAMP)

lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types:
	$(BIN)/mypy

contracts:
	$(BIN)/lint-imports

unit:
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto

test-wheels: # from built wheels, in a fresh environment; needs the package index
	PYTHON=$(PYTHON) tests/wheels.sh

bench: setup
	for name in startup loading tokenizer million_rows; do \
		$(BIN)/python tests/benchmarks/$$name.py || exit 1; done

format:
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache dist
