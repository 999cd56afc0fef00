# Everything a person does with this project. `make help` lists it.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# uv where it is there: it installs in a tenth of the time. --seed gives the environment a pip as well.
UV     := $(shell command -v uv 2>/dev/null)
PIP    := $(if $(UV),$(UV) pip install --quiet --python $(BIN)/python,$(BIN)/pip install --quiet --disable-pip-version-check)
NATIVE := $(shell find core CMakeLists.txt pyproject.toml src/mmkit/_native -name '*.[ch]' -o -name '*.pyx' -o -name '*.pxd' -o -name 'CMakeLists.txt' -o -name pyproject.toml)
BUILD_REQUIRES := 'scikit-build-core>=0.10' 'cython>=3.1' ninja

.DEFAULT_GOAL := tour
.PHONY: tour install test test-core check check-c mutants sanitize fuzz bench docs dist clean help

tour: install  ## Install into .venv if need be, and show what memory calls do on this machine
	@$(BIN)/mmkit tour

install: $(VENV)/.installed  ## Make .venv and install mmkit there, editable (C sources are rebuilt when changed)

$(VENV)/bin/python:
	$(if $(UV),$(UV) venv --quiet --seed --python $(PYTHON) $(VENV),$(PYTHON) -m venv $(VENV))

$(VENV)/.installed: $(VENV)/bin/python $(NATIVE)
	@echo "Installing mmkit into $(VENV): about half a minute the first time"
	@$(PIP) $(BUILD_REQUIRES)
	@$(PIP) --no-build-isolation -e '.[test]'
	@touch $@

test: install test-core  ## Run the C tests, then the Python tests
	$(BIN)/python -m pytest

build/core: core/CMakeLists.txt
	cmake -S core -B $@ -DMMK_WERROR=ON

test-core: build/core  ## Build and run the tests of the C core alone, without Python
	cmake --build build/core --parallel
	ctest --test-dir build/core --output-on-failure --parallel 2

$(VENV)/.checkers: $(VENV)/.installed
	$(PIP) --no-build-isolation -e '.[check]'
	@touch $@

check: $(VENV)/.checkers check-c  ## Run every linter and type checker
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest mmkit._native --ignore-disjoint-bases \
		--allowlist tests/typing/stubtest_allowlist.txt --ignore-unused-allowlist
	$(BIN)/lint-imports
	PATH="$(abspath $(BIN)):$$PATH" cython-lint src/mmkit/_native
	$(BIN)/clang-format --dry-run --Werror $(shell find core -name '*.[ch]')
	@# It leaves comments as they are.
	! LC_ALL=C.UTF-8 grep -rnE --include='*.[ch]' '^.{121,}$$' core

# Warnings are errors with every compiler that is here; the cross-compiler shows that aarch64 still builds. The
# fuzzer runs for a moment: `make fuzz` is the long run.
check-c:
	sh core/tests/compile_everywhere.sh
	sh core/tests/exported_symbols.sh build/core
	sh core/fuzz/run.sh 5

mutants: test-core  ## Break faults and channels on purpose, in many ways, and see the tests notice (minutes)
	sh core/tests/fault_mutants.sh $(abspath build/core)
	sh core/tests/channel_mutants.sh $(abspath build/core)

sanitize: install  ## Run the C tests under ASan+UBSan and under TSan, the Python tests under ASan
	sh tests/sanitize.sh $(BIN)/python

fuzz:  ## Fuzz the parser of maps and smaps under ASan and UBSan, ten minutes
	sh core/fuzz/run.sh 600

bench: install  ## Run every benchmark against its peers (minutes)
	$(PIP) --no-build-isolation -e '.[bench]'
	set -e; for race in benchmarks/bench_*.py; do $(BIN)/python $$race; done

docs: install  ## Build the documentation into docs/_build
	$(PIP) --no-build-isolation -e '.[docs]'
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build
	@echo "Read them from docs/_build/index.html"

dist: $(VENV)/bin/python  ## Build an sdist and a wheel into dist/
	$(PIP) build
	$(BIN)/python -m build

clean:  ## Remove everything that was built
	rm -rf $(VENV) build dist docs/_build

help:  ## List these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
