# Two commands from a fresh clone, each doing its own set-up in .venv: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test lint clean

demo: .venv/demo
	$(BIN)/python -m fiqa_trt.samples make samples
	$(BIN)/fiqa-trt score samples -o scores.parquet --restart
	$(BIN)/python -m fiqa_trt.samples show scores.parquet

test: lint
	$(BIN)/pytest

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv samples scores.parquet scores.parquet.partial

$(BIN)/pip:
	$(PYTHON) -m venv .venv

.venv/demo: pyproject.toml constraints.txt | $(BIN)/pip
	$(INSTALL) --editable '.[demo]'
	@touch $@

.venv/dev: pyproject.toml constraints.txt | $(BIN)/pip
	$(INSTALL) --editable '.[dev]'
	@touch $@
