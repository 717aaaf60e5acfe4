# Each target builds its own environment where it is missing: git, Python and a C compiler are enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint format bench bench-quick clean

demo: $(STAMP)
	$(BIN)/pagemap demo

test: $(STAMP)
	$(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(wildcard src/*.[ch] tests/targets/*.c bench/*.c)
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $(wildcard src/*.[ch] tests/targets/*.c bench/*.c)

# The package is installed in place: a change of the C sources or of the metadata builds it anew.
$(STAMP): pyproject.toml setup.py $(wildcard src/*.[ch])
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	PAGEMAP_DEV=1 $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

clean:
	rm -rf build dist *.egg-info $(VENV) pagemap/_pagemap*.so
