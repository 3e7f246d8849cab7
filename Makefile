SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TESTS := $(VENV)/.ready-tests
DOCS := $(VENV)/.ready-docs

# real MNIST and CIFAR-10 for the tests that need them, where a copy lies beside the project
ifneq ($(wildcard ../shared/data/unpack.py),)
export FMDIFF_DATA ?= $(CURDIR)/.data
DATA := .data/.ready
endif

.PHONY: help install demo test test-slow test-faults test-browser test-soak docs check lint format clean
help:  ## show this
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 14

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e .
	touch $@

$(TESTS): $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

$(DOCS): $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[docs]'
	touch $@

.data/.ready: | $(READY)
	$(BIN)/python ../shared/data/unpack.py .data >/dev/null
	touch $@

install: $(READY)  ## set up in .venv what running needs

demo: $(READY)  ## train and sample moons and handwritten digits, in about three minutes
	PATH="$(CURDIR)/$(BIN):$$PATH" bash scripts/demo.sh

test: $(TESTS) $(DATA)  ## run the test suite
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-slow: $(TESTS) $(DATA)  ## the tests that take minutes
	$(BIN)/python -m pytest -n 2 --dist worksteal -m 'slow and not fault'

test-faults: $(TESTS) $(DATA)  ## everything fmdiff must survive, a line per fault
	$(BIN)/python -m pytest -n 2 --dist worksteal -m 'fault and not soak'

test-browser: $(TESTS)  ## the pages in a real browser, where chromium is installed
	$(BIN)/python -m pytest -m slow tests/report/test_report_browser.py tests/page || test $$? = 5

check: $(TESTS) $(DATA)  ## lint, types, tests, slow tests and faults in one go; one table at the end
	$(BIN)/python scripts/check.py

test-soak: $(TESTS)  ## hundreds of killed trainings, for hours
	$(BIN)/python -m pytest -m soak

docs: $(DOCS) $(DATA)  ## build the documentation into docs/_build/html, and run its tutorials
	$(BIN)/python -m sphinx --fresh-env --fail-on-warning --keep-going --quiet docs docs/_build/html

lint: $(TESTS)  ## ruff, mypy and the layers of the package
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(TESTS)  ## let ruff format and sort
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the environment and caches, never outputs/
	rm -rf $(VENV) .data build docs/_build *.egg-info .pytest_cache .mypy_cache .ruff_cache
