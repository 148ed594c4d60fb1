# Everything a clone needs, with nothing but Python >= 3.11 (venv, pip) and make.
# Another interpreter: make test PYTHON=/path/to/python3.13

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
INSTALL := $(PIP) --build-constraint constraints.txt

# A stamp is newer than what it was made from, so a second run starts at once.
READY := $(VENV)/.ready
DEMO := $(VENV)/.installed-demo
ALL := $(VENV)/.installed-all

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all check audit format bench files pictures docs constraints clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(ALL)  ## Make .venv with everything: service, tests, checks, documentation

demo: $(DEMO)  ## Start the service, ask it for real columns, draw the Z peak, stop it
	@$(BIN)/python demo/run.py

# Every test process and every server that tests start imports the package: compile it once.
# More processes than cores: part of the time servers are waited for.
# In the order of folders, the slow files come first, and no long one is alone at the end.
PROCESSES = 4
PYTEST = $(BIN)/python -m compileall -q src && \
	$(BIN)/python -m pytest --numprocesses $(PROCESSES) --dist loadfile --no-loadscope-reorder

test: $(ALL)  ## Run the tests; choose some with ARGS="-k name"
	@$(PYTEST) -m "not long" $(ARGS)

test-all: $(ALL)  ## Run the long tests too, before a release
	@$(PYTEST) $(ARGS)

check: $(ALL)  ## Lint, format, types, import rules, project layout, spelling, prose, licences
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/unit/test_imports.py
	$(BIN)/sp-repo-review . --show errskip
	$(BIN)/codespell
	$(BIN)/python tools/check_prose.py
	$(BIN)/python tools/licences.py

audit: $(READY)  ## Look up known vulnerabilities of what is pinned; needs the network
	@$(PIP) pip-audit
	$(BIN)/pip-audit --strict --requirement constraints.txt --no-deps --disable-pip

format: $(ALL)  ## Put the source into its final form, as far as the linter can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(ALL)  ## Measure speed and memory; a part with ARGS="engine", see CONTRIBUTING.md
	@$(BIN)/python -m benchmarks $(ARGS)

files: $(ALL)  ## Hold every sample file against uproot; writes docs/reference/files.md
	@$(BIN)/python -W ignore -m tests.every_file

pictures: $(ALL)  ## Take the pictures of the pages; needs chromium, node, xrootd
	@$(BIN)/python -m tools.pictures

docs: $(ALL)  ## Build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

constraints:  ## Find the newest versions that fit together, and pin them
	$(PYTHON) tools/pin.py

clean:  ## Remove .venv, caches and everything built
	rm -rf $(VENV) site dist build dimuon-mass.png \
		.mypy_cache .ruff_cache .pytest_cache .hypothesis .nox
	find src tests demo benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

$(READY): constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python >= 3.11 is needed, this is %d.%d: make PYTHON=python3.13" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	@echo "Making $(VENV); this takes a minute or two, once."
	@$(PYTHON) -m venv --clear $(VENV)
	@$(PIP) --upgrade pip
	@touch $@

$(DEMO): $(READY) pyproject.toml
	@$(INSTALL) --editable . --group demo
	@touch $@

$(ALL): $(READY) pyproject.toml
	@$(INSTALL) --editable '.[postgresql,xrootd,jobqueue,kubernetes,gateway,rucio]' --group dev
	@touch $(DEMO) $@
