# Each target builds its own environment where it is missing: git, Python and a C compiler are enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
C_SOURCES := $(shell git ls-files '*.c' '*.h')

.PHONY: demo test lint format bench bench-quick docs kernels kernels-quick sanitize analyze fuzz freethreaded tsan wheels soak clean

demo: $(STAMP)
	$(BIN)/pagemap demo

test: $(STAMP)
	$(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(C_SOURCES)
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $(C_SOURCES)

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
	tools/freethreaded.sh plain

# What threads share, with that CPython and the extension under ThreadSanitizer. Needs clang.
tsan:
	tools/freethreaded.sh tsan

wheels: $(STAMP)
	tools/wheels.sh $(BIN)/python

SOAK_SECONDS ?= 600
soak: $(STAMP)
	PYTHONPATH=. $(BIN)/python tests/soak.py $(SOAK_SECONDS)

# Seconds for each of three targets; needs clang. The inputs found so far are part of the tests.
FUZZ_SECONDS ?= 60
fuzz: $(STAMP)
	tools/fuzz.sh $(BIN)/python $(FUZZ_SECONDS)

# The result is build/docs/index.html. The package itself stands installed already: only what the extra names is fetched.
docs: $(VENV)/.docs
	$(BIN)/sphinx-build -W --keep-going -q docs build/docs

$(VENV)/.docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'pagemap-scan[docs]'
	touch $@

# Every alternative on the same memory: docs/benchmarks.md with its figures. Under ten minutes on a quiet machine.
bench: $(STAMP)
	$(BIN)/python -m bench

bench-quick: $(STAMP)
	$(BIN)/python -m bench --quick

# The suite on Debian's kernels under QEMU: docs/kernels.md. As root the packages that it needs are installed.
kernels: $(STAMP)
	$(BIN)/python tests/kernels/matrix.py --write docs/kernels.md

# The oldest, the newest and one between, minutes. A machine that cannot run guests, or get kernels, says so and passes.
kernels-quick: $(STAMP)
	$(BIN)/python tests/kernels/matrix.py --quick --limit 600 --results build/kernels-quick || [ $$? -eq 77 ]

clean:
	rm -rf build dist *.egg-info $(VENV) pagemap/_pagemap*.so
