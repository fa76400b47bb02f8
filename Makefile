# What a person who works on this project types. `make help` lists it.
#
# Everything runs in .venv, which is made on the first call with the first Python >= 3.11 found (or PYTHON=...), from
# pyproject.toml and constraints.txt. A second call installs nothing, unless one of these two files has changed.

VENV  := .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed
DEV   := $(VENV)/.installed-dev
CODE  := sta_lightning tests scripts docs/conf.py
# Reports are written by sta demo and sta benchmark, not by hand.
PROSE := $(filter-out docs/api/% %/report.md,$(wildcard *.md docs/*.md docs/*/*.md))

.DEFAULT_GOAL := help
.PHONY: help demo test lint format types docs check install clean distclean

help:  ## this list
	@echo "usage: make TARGET [PYTHON=/path/to/python] [ARGS='...']"
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  \1|\2/p' Makefile | awk -F'|' '{printf "%-12s %s\n", $$1, $$2}'

demo: $(STAMP)  ## the whole method on the embedded suite (ARGS='--force' does every step again)
	@$(BIN)/sta demo $(ARGS)

# A file's tests share what is dear to make: they stay in one process.
test: $(DEV)  ## the tests, a process a core (ARGS='tests/cli -x' runs some of them)
	@$(BIN)/python -m pytest -n auto --maxprocesses=8 --dist loadfile $(ARGS)

lint: $(DEV)  ## linter, import contracts and format check of code and prose; changes nothing
	@$(BIN)/ruff check $(CODE)
	@$(BIN)/ruff format --check $(CODE)
	@$(BIN)/lint-imports --no-cache --no-logo
	@$(BIN)/mdformat --check $(PROSE)

format: $(DEV)  ## rewrite code and prose in the project's format, and mend what the linter can mend
	@$(BIN)/ruff check --fix $(CODE)
	@$(BIN)/ruff format $(CODE)
	@$(BIN)/mdformat $(PROSE)

types: $(DEV)  ## strict type check of the package
	@$(BIN)/mypy

docs: $(DEV)  ## the site, in build/docs; a link or a reference that leads nowhere is an error
	@$(BIN)/sphinx-build -q -W --keep-going -b html -d build/doctrees docs build/docs
	@echo "open build/docs/index.html"

check: lint types docs test  ## all of the above that CI runs

install: $(DEV)  ## only make .venv and install all that these targets need

clean:  ## remove caches and build outputs; keeps .venv and runs/
	rm -rf build docs/api dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find sta_lightning tests scripts docs -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean  ## clean, and remove .venv too
	rm -rf $(VENV)

# What is imported is compiled then: of 150 MB of Python that is a small part.
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --no-compile -c constraints.txt --no-build-isolation

# What `make demo` needs. The candidates are run, not only looked up: a name on the PATH may be a shim that leads nowhere.
$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python && $(BIN)/python -c 'import pip' 2>/dev/null || { \
	  new='import sys; sys.exit(sys.version_info < (3, 11))'; found=''; seen=''; \
	  for candidate in $(if $(PYTHON),"$(PYTHON)",python3.12 python3.11 python3 python python3.13 python3.14); do \
	    version=$$("$$candidate" -c 'import platform; print(platform.python_version())' 2>/dev/null) || continue; \
	    seen="$$seen $$candidate is $$version;"; \
	    if "$$candidate" -c "$$new" 2>/dev/null; then found="$$candidate"; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo "sta_lightning needs Python 3.11 or newer; found:$${seen:- none;} install one, or name one: make PYTHON=/path/to/python3.12" >&2; \
	    exit 1; \
	  fi; \
	  echo "Making $(VENV) with $$found, and installing (once; a few minutes, about 6 GB)"; \
	  "$$found" -m venv --clear $(VENV) || { \
	    echo "$$found cannot make a virtual environment: install its venv module (Debian, Ubuntu: apt install python3-venv)" >&2; \
	    rm -rf $(VENV); exit 1; }; \
	}
	@# The build tool first and from the constraints too: build isolation would fetch whatever is newest.
	@$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt setuptools
	@$(INSTALL) -e .
	@touch $@

$(DEV): $(STAMP)
	@$(INSTALL) -e '.[dev,docs]'
	@touch $@
