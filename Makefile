# Each target works by itself on a bare machine with Python 3.11 or newer, g++ and pip.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

HELD := ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 NLRN_INSTRUCTION_SET=avx2
QUICK := $(addprefix tests/test_,$(addsuffix .py,ops cpu non_local model inference tiling metrics \
	degradations publish recipe))
# The tests of a file run in one process, so that what they share (a service, a cluster, an export) is made once
# A worker more than cores: some of the time is waiting, for deadlines and for what is started
PARALLEL := -n 3 --dist loadfile --no-loadscope-reorder
# Lines that the tests run in their own processes; the service and what else is started as a program is not counted.
# To count takes a sixth of the time: make coverage and make test-slow do it.
COVERAGE := --cov=nlrn --cov-report=term --cov-fail-under=85

# Compiled modules are kept, whatever the shell says: every worker and every command would compile them anew
unexport PYTHONDONTWRITEBYTECODE

.PHONY: core install demo docs quick test coverage test-avx2 test-slow test-napari check kernel-aarch64 container clean

# What `pip install .` brings, and no more
core: $(VENV)/core
# The same, and all that the targets below need
install: $(VENV)/installed

$(VENV)/core: pyproject.toml constraints.txt setup.py $(wildcard src/nlrn/ops/csrc/*)
	$(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV): pip downloads 0.24 to 2.8 GB (docs/install.md), silently"
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
	$(BIN)/codespell -D - -D words.txt
	$(BIN)/lint-imports --no-logo

# Lint and the laws of operator and network
quick: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m pytest -n 2 -m 'not data' $(QUICK)

test: check
	$(BIN)/python -m pytest $(PARALLEL)
	$(MAKE) test-avx2

coverage: install
	$(BIN)/python -m pytest $(PARALLEL) $(COVERAGE)

# The widget of napari, in an environment of its own: napari's plugins of pytest and Qt's types stay out of the other
$(VENV)-napari/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)-napari
	$(VENV)-napari/bin/pip install --quiet --disable-pip-version-check -c constraints.txt \
		-e ".[napari,arrays]" "napari[pyqt6]" pytest hypothesis
	touch $@

test-napari: $(VENV)-napari/installed
	$(VENV)-napari/bin/python -m pytest -p no:napari -p no:npe2 -p no:napari-plugin-engine -W ignore tests/test_napari.py

# The numeric tests again, held to AVX2; skipped on a machine that has no more than that.
test-avx2: install
	@if $(BIN)/python -c "import sys; from nlrn.ops.cpu import INSTRUCTION_SETS as s; sys.exit('avx2' not in list(s)[1:])"; \
	then $(HELD) $(BIN)/python -m pytest $(PARALLEL) -m numeric $$($(BIN)/python tests/selection.py); \
	else echo "held to AVX2: this processor has no more than that"; fi

test-slow: check
	$(BIN)/python -m pytest $(PARALLEL) --slow $(COVERAGE)
	$(MAKE) test-avx2

# The kernel for aarch64, its laws in an emulator (Debian: apt-get install g++-aarch64-linux-gnu qemu-user)
kernel-aarch64: install
	$(BIN)/python -m pytest -n 0 --slow tests/test_kernel_builds.py -k aarch64-under-qemu

# The steps of the Dockerfile in chroots (Debian: apt-get install debootstrap); as root
container: core
	$(BIN)/python scripts/container_in_chroot.py build/container

clean:
	rm -rf $(VENV) build dist src/nlrn/ops/*.so demo-out docs/_build .mypy_cache .ruff_cache .import_linter_cache .pytest_cache .hypothesis src/*.egg-info
