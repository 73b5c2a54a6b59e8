# make setup            the environment, in .venv
# make test             the tests
# make lint             ruff (lint and format) and mypy
# make reproduce-table  the data, the ten cells of Table 2, the report
#
# make reproduce-table PROTOCOL=short SEEDS=3 DATA_ARCHIVE=/somewhere/cifar-10-python.tar.gz

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PROTOCOL ?=
SEEDS ?=
JOBS ?=
DATA_ARCHIVE ?=
RUNS ?= runs

.PHONY: setup test lint format reproduce-table clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@

test: setup
	$(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

reproduce-table: setup
	$(BIN)/python scripts/reproduce_table.py --runs "$(RUNS)" $(if $(PROTOCOL),--protocol "$(PROTOCOL)") \
		$(if $(SEEDS),--seeds "$(SEEDS)") $(if $(JOBS),--jobs "$(JOBS)") \
		$(if $(DATA_ARCHIVE),--archive "$(DATA_ARCHIVE)")

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
