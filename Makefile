# make run   the quickstart, on a fresh machine with Python 3.11 to 3.13
# make test  the whole test suite
# make lint  ruff and mypy
PYTHON ?= $(shell for p in python3.12 python3.11 python3; do $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: run test lint clean
run: $(STAMP)
	$(BIN)/cl-run

test: $(STAMP)
	$(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Bytecode is compiled at installation: otherwise the first start compiles for many seconds.
$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { echo "cl-run needs Python 3.11, 3.12 or 3.13 as python3; or say make PYTHON=/path/to/python"; exit 2; }
	@echo "installing into $(VENV): about 6 GB, a minute or two"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@UV_COMPILE_BYTECODE=1 $(BIN)/uv pip install --quiet --python $(BIN)/python --editable ".[dev]"
	@$(BIN)/python -m compileall -q cl_runner
	@touch $(STAMP)

clean:
	rm -rf $(VENV) build dist *.egg-info
