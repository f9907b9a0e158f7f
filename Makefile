# setup  install everything that developing needs into .venv
# demo   install what running needs and play the main job; ONCE=1 ends by itself
# test   install, then run every test that this machine can run
# lint   style, types, floors (import-linter) and the documentation, warnings as errors
# bench  the platform's benchmark, short form; BENCH_ARGS= for the full one
# docs   build the documentation into site/
#
# A fresh machine needs Python 3.11 or newer with venv, make, and a package index for pip.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN_READY := $(VENV)/.ready-run
DEV_READY := $(VENV)/.ready-dev
PYTEST_ARGS ?= -n 2 --dist loadfile
BENCH_ARGS ?= --quick

.PHONY: help setup demo test lint bench docs browser fresh-kernels clean

help:
	@sed -n 's/^# \{0,1\}//p;/^$$/q' $(firstword $(MAKEFILE_LIST))

setup: $(DEV_READY)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("shoal needs Python 3.11 or newer; set PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(RUN_READY): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all]'
	@touch $@

$(DEV_READY): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@ $(RUN_READY)

demo: $(RUN_READY) fresh-kernels
	$(BIN)/shoal demo $(if $(filter-out 0,$(ONCE)),--once)

# Exit status 5 of pytest means that it found no test: that is a failure, said in words.
test: $(DEV_READY) browser fresh-kernels
	@$(BIN)/python -m pytest $(PYTEST_ARGS); status=$$?; \
	if [ $$status -eq 5 ]; then echo "make test: pytest found no test to run" >&2; fi; \
	exit $$status

# numba notices that a kernel's own file changed, not that one it calls from another file did.
fresh-kernels:
	@for room in src/shoal/*/; do \
	  newest=$$(ls -t $${room}_*.py 2>/dev/null | head -n 1); \
	  [ -z "$$newest" ] || find "$$room" -name '*.nb[ic]' ! -newer "$$newest" -delete; \
	done

# The browser tests drive Debian's chromium. It is installed only where that takes no question
# (root and apt-get); elsewhere those tests skip and say so. BROWSER=0 leaves the machine alone.
browser:
	@if [ "$(BROWSER)" = 0 ] || command -v chromium >/dev/null 2>&1; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then \
	  echo "installing chromium for the browser tests (BROWSER=0 skips this)"; \
	  (apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium) >/dev/null 2>&1 \
	    || echo "chromium could not be installed; the browser tests will skip"; \
	else echo "chromium is not installed; the browser tests will skip"; fi

lint: $(DEV_READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict src
	$(BIN)/lint-imports --no-logo
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --site-dir site

bench: $(DEV_READY) fresh-kernels
	$(BIN)/python benchmarks/walle.py $(BENCH_ARGS)

docs: $(DEV_READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir site

clean:
	rm -rf site dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
