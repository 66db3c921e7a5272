# The two commands of the README are `make demo` and `make test`; both set up .venv first.
PYTHON ?= python3
VENV ?= .venv
STAMP := $(VENV)/.installed
TOOLS := $(VENV)/.tools
PAGES := $(VENV)/.pages
INSTALL = $(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable

.PHONY: demo test lint docs clean

demo: $(STAMP)
	$(VENV)/bin/hashpose-demo

test: $(STAMP)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest

lint: $(TOOLS)
	$(VENV)/bin/python -m ruff check hashpose_ns tests benchmarks examples docs/*.py
	$(VENV)/bin/python -m ruff format --check hashpose_ns tests benchmarks examples docs/*.py
	$(VENV)/bin/python .ci/mypy_ratchet
	$(VENV)/bin/lint-imports

docs: $(PAGES)
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -W ignore -m mkdocs build --quiet
	@echo "The pages are in site/; see them with $(VENV)/bin/python -m mkdocs serve"

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) ".[test]"
	touch $@

$(TOOLS): $(STAMP)
	$(INSTALL) ".[dev]"
	touch $@

$(PAGES): $(STAMP)
	$(INSTALL) ".[docs]"
	touch $@

clean:
	rm -rf $(VENV) demo_output site
