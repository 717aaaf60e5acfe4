# Each target builds its own environment where it is missing: git, Python and a C compiler are enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint format bench bench-quick clean
.PHONY: sanitize analyze fuzz freethreaded wheels soak

demo: $(STAMP)
	$(BIN)/pagemap demo

test: $(STAMP)
	$(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(wildcard src/*.[ch] tests/targets/*.c tests/fuzz/*.[ch] bench/*.c)
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $(wildcard src/*.[ch] tests/targets/*.c tests/fuzz/*.[ch] bench/*.c)

# The package is installed in place: a change of the C sources or of the metadata builds it anew.
$(STAMP): pyproject.toml setup.py $(wildcard src/*.[ch])
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	PAGEMAP_DEV=1 $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

# The suite under UndefinedBehaviorSanitizer and AddressSanitizer; leaks by LeakSanitizer. Needs gcc and clang.
sanitize: $(STAMP)
	tools/sanitize.sh $(BIN)/python

analyze: $(STAMP)
	tools/analyze.sh $(BIN)/python

# A free-threaded CPython is built into the user's cache, once, from Debian's sources.
freethreaded:
	tools/freethreaded.sh

wheels: $(STAMP)
	tools/wheels.sh $(BIN)/python

SOAK_SECONDS ?= 600
soak: $(STAMP)
	PYTHONPATH=. $(BIN)/python tests/soak.py $(SOAK_SECONDS)

# Seconds for each of three targets; needs clang. The inputs found so far are part of the tests.
FUZZ_SECONDS ?= 60
fuzz: $(STAMP)
	tools/fuzz.sh $(BIN)/python $(FUZZ_SECONDS)

clean:
	rm -rf build dist *.egg-info $(VENV) pagemap/_pagemap*.so

# The result is build/docs/index.html. The package itself stands installed already: only what the extra names is fetched.
.PHONY: docs
docs: $(VENV)/.docs
	$(BIN)/sphinx-build -W --keep-going -q docs build/docs

$(VENV)/.docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'pagemap-scan[docs]'
	touch $@
