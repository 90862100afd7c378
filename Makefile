# Each target works alone on a bare machine with Python 3.11 or newer, g++ and pip.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: core install demo docs test test-slow check kernel-aarch64 container clean

# What `pip install .` brings, and no more
core: $(VENV)/core
# The same, and all that the targets below need
install: $(VENV)/installed

$(VENV)/core: pyproject.toml constraints.txt setup.py $(wildcard src/nlrn/ops/csrc/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/installed: $(VENV)/core
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

demo: core
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

# The kernel for aarch64, its laws in an emulator (Debian: apt-get install g++-aarch64-linux-gnu qemu-user)
kernel-aarch64: install
	$(BIN)/python -m pytest -n 0 tests/test_kernel_builds.py -k aarch64-under-qemu

# The steps of the Dockerfile in chroots (Debian: apt-get install debootstrap); as root
container: core
	$(BIN)/python scripts/container_in_chroot.py build/container

clean:
	rm -rf $(VENV) build dist src/nlrn/ops/*.so demo-out docs/_build .mypy_cache .ruff_cache .pytest_cache .hypothesis src/*.egg-info
