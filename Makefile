# make setup            the environment, in .venv
# make test             the tests, without those marked slow
# make test-fast        those that start no process, compile nothing and are short: to be run while you work
# make test-all         all of them, as CI does
# make test-lowest      the tests that start no process, with the oldest versions that pyproject.toml allows, torch aside
# make coverage         line coverage of the tests that start no process, per file
# make docs             the documentation as a site, in site/; broken links are errors
# make lint             ruff (lint and format), mypy and the import order
# make reproduce-table  the data, the ten cells of Table 2, the report; where the data cannot be
#                       downloaded, from the sample of 2,000 images in the package
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

.PHONY: setup test test-fast test-all test-lowest coverage docs lint format reproduce-table clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@

PYTEST = $(BIN)/pytest --numprocesses auto --maxprocesses 4 \
	--dist loadfile --no-loadscope-reorder
IN_PROCESS = -m "not (slow or process or build or browser or slurm)"
FAST = -m "not (slow or process or build or browser or slurm or heavy)"
LOWEST = .venv-lowest

test: setup
	$(PYTEST) -m "not slow"

test-fast: setup
	CXX=none $(PYTEST) $(FAST)

test-all: setup
	$(PYTEST)

test-lowest:
	$(PYTHON) -m venv $(LOWEST)
	$(PYTHON) scripts/lowest_versions.py --without torch torchvision > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/pip install --quiet --disable-pip-version-check \
		--constraint $(LOWEST)/constraints.txt --editable ".[test]"
	$(LOWEST)/bin/pytest --numprocesses auto --maxprocesses 4 --dist loadfile $(IN_PROCESS)

coverage: setup
	$(PYTEST) $(IN_PROCESS) --cov --cov-report term

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "Open site/index.html"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

reproduce-table: setup
	@$(BIN)/python scripts/reproduce_table.py --runs "$(RUNS)" $(if $(PROTOCOL),--protocol "$(PROTOCOL)") \
		$(if $(SEEDS),--seeds "$(SEEDS)") $(if $(JOBS),--jobs "$(JOBS)") \
		$(if $(DATA_ARCHIVE),--archive "$(DATA_ARCHIVE)")

clean:
	rm -rf $(VENV) $(LOWEST) build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
