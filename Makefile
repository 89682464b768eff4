# Two commands from a fresh clone, each doing its own set-up in .venv: `make demo` and `make test`.
PYTHON ?= python3
WORKERS ?= 2
BIN := .venv/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

WHEELS := $(BIN)/pip download --quiet --disable-pip-version-check --no-deps --dest .venv/wheels

# What decoding depends on most, with the lowest versions that pyproject.toml allows.
DECODING := tests/test_globals.py $(addprefix tests/decoding/test_,$(addsuffix .py,decode formats jpeg2000 metadata png structure tiff))

.PHONY: demo test test-gpu test-minimum lint clean

demo: .venv/demo
	$(BIN)/python -m fiqa_trt.machine.samples make samples
	$(BIN)/fiqa-trt score samples -o scores.parquet --restart
	$(BIN)/python -m fiqa_trt.machine.samples show scores.parquet

# A file of tests belongs to one worker, as what its tests share is made once for each.
test: lint .venv/front-end .venv/rtx
	$(BIN)/pytest --numprocesses $(WORKERS) --dist loadfile

# What only a machine with an NVIDIA GPU can show, with whatever of TensorRT is installed there.
test-gpu: .venv/dev
	$(BIN)/pytest -m gpu -rA

test-minimum: .venv/minimum/done
	.venv/minimum/bin/python -m pytest $(DECODING)

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv samples scores.parquet scores.parquet.partial

$(BIN)/pip:
	$(PYTHON) -m venv .venv

.venv/demo: pyproject.toml constraints.txt | $(BIN)/pip
	$(INSTALL) --editable .
	@touch $@

.venv/dev: pyproject.toml constraints.txt | $(BIN)/pip
	$(INSTALL) --editable '.[dev]'
	@touch $@

.venv/minimum/done: pyproject.toml constraints-minimum.txt
	$(PYTHON) -m venv .venv/minimum
	.venv/minimum/bin/pip install --quiet --disable-pip-version-check --constraint constraints-minimum.txt \
		--editable . pytest hypothesis
	@touch $@

# Torch-TensorRT without a GPU, and the sources of every version that is supported; see tests/front_end.txt.
.venv/front-end: tests/front_end.txt | .venv/dev
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $@ --requirement $<
	for version in 2.11 2.12 2.13 2.14; do $(WHEELS) "torch-tensorrt==$$version.*" || exit 1; done
	@touch $@

# TensorRT for RTX, which builds without a GPU, and the Torch-TensorRT that compiles to it; see tests/rtx.txt.
.venv/rtx: tests/rtx.txt | .venv/dev
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $@ --requirement $<
	@touch $@
