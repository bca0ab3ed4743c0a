# Everything runs in .venv, made on first use with the versions that constraints.txt pins.
# Another interpreter: make PYTHON=python3.12 demo

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A file of tests runs in one process, and as many files at a time as there are cores.
PYTEST := $(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt

.PHONY: help demo test test-ci test-all lint audit docs site ci gpu clean
.DELETE_ON_ERROR:

help:
	@echo "make demo      train and test the quickstart study, and say where to look; in seconds: make demo SIZE=test"
	@echo "make test      the default test suite (a few minutes)"
	@echo "make test-all  the slow tests as well"
	@echo "make lint      ruff, and mypy on the core and the members"
	@echo "make audit     whether a pinned dependency has a known weakness; needs a network"
	@echo "make docs      renew what is generated: README's answer, tables and figures of docs/, the zoo, the grid, the scorecard"
	@echo "make ci        what CI runs: lint, the default suite, a slice of the slow tests"
	@echo "make site      the documentation as a site, in build/site; a warning is an error"
	@echo "make gpu       what there is to see on a GPU, into runs/gpu; one stage: make gpu STAGE=tests, bench or recipes"
	@echo "make clean     remove .venv and what builds and tests leave; runs/ stays"

demo: $(VENV)/.installed
	@$(BIN)/pezoo run quickstart $(if $(SIZE),size=$(SIZE))
	@echo "To go on:    $(BIN)/pezoo list"
	@echo "             or source $(BIN)/activate first, and then type pezoo alone"

test: $(VENV)/.installed-test
	@$(PYTEST)

test-ci: $(VENV)/.installed-test
	@$(PYTEST) -m "ci and not gpu"

test-all: $(VENV)/.installed-test
	@$(PYTEST) -m "not gpu"

lint: $(VENV)/.installed-test
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

audit: $(VENV)/.created
	$(INSTALL) pip-audit
	$(BIN)/pip-audit --requirement constraints.txt --no-deps --disable-pip

docs: $(VENV)/.installed
	@$(BIN)/python -m tools.docs

site: $(VENV)/.installed-test
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "open build/site/index.html; to search too: $(BIN)/python -m http.server --directory build/site"

ci:
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory test
	@$(MAKE) --no-print-directory test-ci

# Without a GPU, and smaller: make gpu DEVICE=cpu
DEVICE ?= cuda
gpu: $(VENV)/.installed-test
	@$(BIN)/python tools/gpu.py $(STAGE) --device $(DEVICE)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find pezoo encodings tests -name __pycache__ -prune -exec rm -rf {} +

# The stamps are written last, so that an interrupted step is taken again from its start.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: pezoo needs Python 3.11 or newer; $(PYTHON) --version says:" \
	    "$$($(PYTHON) --version 2>&1). Name another: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	@$(PYTHON) -m venv --clear $(VENV) || { \
	  echo "error: $(PYTHON) -m venv failed; on Debian and Ubuntu: apt install python3-venv" >&2; exit 2; }
	@touch $@

$(VENV)/.installed: $(VENV)/.created setup.cfg pyproject.toml constraints.txt
	$(INSTALL) setuptools
	$(INSTALL) --no-build-isolation --editable .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(INSTALL) --no-build-isolation --editable '.[site,test]'
	@touch $@
