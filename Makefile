# Every target sets up .venv first. PYTHON is the interpreter to make it with (3.11 or newer).
PYTHON ?= python3
BIN := .venv/bin
OUTPUT ?= demo

.PHONY: demo test quality style bench model-cards clean

demo: .venv/installed
	$(BIN)/hf-whittle demo --output-dir $(OUTPUT)

# Two processes of one thread each: the tests' models are too small for more.
test: quality
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

quality: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

style: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/installed
	$(BIN)/python -m tests.benchmarks

model-cards: .venv/installed
	$(BIN)/python model_cards/render.py

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'hf_whittle needs Python 3.11 or newer, found ' + sys.version.split()[0] + '; set PYTHON=')"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv
