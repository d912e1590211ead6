# `make demo` and `make test` start from nothing but Python >= 3.11 and make.
PYTHON ?= python3
BIN := .venv/bin
export PYTHONSAFEPATH = 1

.PHONY: demo test test-slow lint types tables bench check-tritons interop clean

demo: .venv/installed
	$(BIN)/virtualmle tune demo --home demo-home --agent engineer --trials 10

# A pytest process per core, each with a stretch of neighbouring tests, so that a file's fixtures are mostly built once;
# one that has nothing left takes half of what another has.
ON_ALL_CORES := -n logical --maxprocesses 16 --dist worksteal

test: .venv/installed
	$(BIN)/pytest -q $(ON_ALL_CORES) -m "not slow"

test-slow: .venv/installed
	$(BIN)/pytest -q -m slow

# Other people's clients, suites and frameworks against the real server: minutes to install, and about 20 minutes to run.
# `make interop ONLY="inspector python"` runs the suites whose names begin so.
interop: .venv/installed
	$(BIN)/python -P tests/interop/run.py $(if $(ONLY),--only $(ONLY))

lint: .venv/installed
	$(BIN)/ruff check .

types: .venv/installed
	$(BIN)/mypy

tables: .venv/installed
	$(BIN)/python -P -m virtualmle.sandbox.tables SANDBOX.md docs/knobs.md

bench: .venv/installed
	$(BIN)/virtualmle bench train demo
	$(BIN)/virtualmle bench eval demo
	$(BIN)/virtualmle bench overhead demo

check-tritons: .venv/installed
	$(BIN)/python -P tests/check_tritons.py --save

# PyPI's torch for Linux brings 2.5 GB of CUDA libraries. Without an NVIDIA driver, its light build is installed first; if
# that index cannot be reached, the next line installs what pip finds.
LIGHT_TORCH := $(if $(filter Linux,$(shell uname)),$(if $(shell which nvidia-smi 2>/dev/null),,yes))

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(if $(LIGHT_TORCH),-$(BIN)/python -m pip install --quiet --retries 1 torch --constraint constraints.txt \
		--index-url https://download.pytorch.org/whl/cpu)
	$(BIN)/python -m pip install --quiet --editable '.[dev]' --constraint constraints.txt
	touch $@

clean:
	rm -rf .venv .venv-triton-* .venv-interop .npm-interop build *.egg-info demo-home
