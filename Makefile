# Every target first sets up .venv with the interpreter PYTHON (3.11 or newer).
PYTHON ?= python3
BIN := .venv/bin
OUTPUT ?= demo
SIZE ?= cpu
# Modules are compiled as they are imported: most never are.
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt --editable
# Two processes of one thread each: the models of the tests are so small that more threads would slow each other down.
# Each takes half of the tests and, when done, half of what the other has left.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal
# Tests start many processes, which would all compile the package again.
unexport PYTHONDONTWRITEBYTECODE

# Types are checked beside the tests, on a core that waits otherwise.
MAKEFLAGS += --jobs=2

.PHONY: demo test test-fast test-slow test-kernels quality style bench paper gpu model-cards pages clean

demo: .venv/runs
	$(BIN)/hf-whittle demo --output-dir $(OUTPUT)

test: quality test-fast

test-fast: .venv/installed
	$(PYTEST)

test-slow: .venv/installed
	$(PYTEST) -m slow

# Numerical tests with the kernels of other CPUs.
test-kernels: .venv/installed
	.ci/kernels $(BIN)/python

quality: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

style: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/installed
	$(BIN)/python -m tests.benchmarks

# The experiments of docs/paper.md, on one core (SIZE=cpu) or on a GPU (SIZE=gpu); each goes on where it was interrupted.
paper: .venv/installed
	$(BIN)/python -m examples.paper --size $(SIZE)

# On a GPU within six minutes, on a CPU with smaller sizes; the result is gpu.json.
gpu: .venv/installed
	$(BIN)/python -m tests.gpu

model-cards: .venv/installed
	$(BIN)/python model_cards/render.py

pages: .venv/installed
	$(BIN)/python docs/render.py

# Runtime dependencies without development tools.
.venv/runs: pyproject.toml constraints.txt | .venv/bin/pip
	$(INSTALL) .
	touch $@

.venv/installed: pyproject.toml constraints.txt | .venv/bin/pip
	$(INSTALL) ".[dev]"
	touch $@ .venv/runs

.venv/bin/pip:
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'hf_whittle needs Python 3.11 or newer, found ' + sys.version.split()[0] + '; set PYTHON=')"
	$(PYTHON) -m venv .venv

clean:
	rm -rf .venv
