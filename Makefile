# Each target works alone on a bare machine with Python 3.11 or newer, g++ and pip.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: install demo docs test test-slow check clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt setup.py $(wildcard src/nlrn/ops/csrc/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

demo: install
	$(BIN)/python examples/demo.py --output demo-out

docs: install
	$(BIN)/python -m sphinx -W --keep-going -q docs docs/_build
	@echo "open docs/_build/index.html"

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: check
	$(BIN)/python -m pytest -n 2

test-slow: check
	$(BIN)/python -m pytest -n 2 --slow

clean:
	rm -rf $(VENV) build dist src/nlrn/ops/*.so demo-out docs/_build .mypy_cache .ruff_cache .pytest_cache .hypothesis src/*.egg-info
