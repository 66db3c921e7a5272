# The two commands of the README are `make demo` and `make test`; both set up .venv first.
PYTHON ?= python3
VENV ?= .venv
STAMP := $(VENV)/.installed
TOOLS := $(VENV)/.tools
INSTALL = $(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable

.PHONY: demo test lint clean

demo: $(STAMP)
	$(VENV)/bin/hashpose-demo

test: $(STAMP)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest

lint: $(TOOLS)
	$(VENV)/bin/python -m ruff check hashpose_ns tests benchmarks examples
	$(VENV)/bin/python -m ruff format --check hashpose_ns tests benchmarks examples
	$(VENV)/bin/python .ci/mypy_ratchet
	$(VENV)/bin/lint-imports

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) ".[test]"
	touch $@

$(TOOLS): $(STAMP)
	$(INSTALL) ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) demo_output
