# Two commands on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test test-slow test-real lint format bench docs clean browser

demo: $(VENV)/.installed
	$(BIN)/featstore demo

# One and a half workers per core, because many tests wait for processes and servers.
WORKERS = $(shell $(PYTHON) -c "import os; print(max(2, (os.cpu_count() or 2) * 3 // 2))")

# The tests start a hundred interpreters: byte code is cached for them, whatever the environment sets.
test: $(VENV)/.test browser
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow"

test-slow: $(VENV)/.test
	$(PIP) --constraint constraints.txt --editable '.[umap]' # maps by UMAP are tested here alone
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal -m slow

# On recorded audio and with trained weights, against scikit-learn; not part of any other lane.
test-real: $(VENV)/.test
	@sh tests/real/install.sh $(BIN)/python
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m real tests/real

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.lint
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks

# The site, into site/. The variable silences a notice: Material for MkDocs gets fixes until May 2027; Zensical is its successor.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# Chromium for the tests of pages; where it cannot be installed, they are skipped.
browser:
	@sh tests/report/install-chromium.sh

clean:
	rm -rf $(VENV) featstore-demo site

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) --constraint constraints.txt --editable '.[report]'
	touch $@

$(VENV)/.test: $(VENV)/.installed
	$(PIP) --constraint constraints.txt --editable '.[test]'
	$(PIP) --constraint constraints.txt --no-deps dasheng # its torchaudio fails beside a torch without CUDA, and transformers with it
	touch $@

$(VENV)/.lint: $(VENV)/.test # mypy looks into the libraries of every extra
	$(PIP) --constraint constraints.txt --editable '.[lint]'
	touch $@

$(VENV)/.docs: $(VENV)/.installed
	$(PIP) --constraint constraints.txt --editable '.[docs]'
	touch $@

$(VENV)/.bench: $(VENV)/.installed
	$(PIP) --constraint constraints.txt --editable '.[bench]'
	touch $@
