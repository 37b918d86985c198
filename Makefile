# make demo | make test | make lint | make docs | make bench: each starts from nothing but Python 3.11 and make.
PYTHON ?= python3.11
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo test test-all coverage lint docs bench clean

demo: $(INSTALLED)
	$(BIN)/epizoo demo --output demo

test: $(INSTALLED)
	$(BIN)/pytest --numprocesses auto --dist worksteal -m "not slow"

# The slow ones too: what CI runs.
test-all: $(INSTALLED)
	$(BIN)/pytest --numprocesses auto --dist worksteal

# The same, with the branches that were taken: build/coverage/index.html.
coverage: $(INSTALLED)
	$(BIN)/pytest --numprocesses auto --dist worksteal --cov --cov-report=html --cov-report=term:skip-covered

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

docs: $(INSTALLED)
	$(BIN)/sphinx-build --quiet --fresh-env --fail-on-warning --keep-going docs build/docs

bench: export TF_ENABLE_ONEDNN_OPTS = 1
bench: .venv-bench/.installed
	.venv-bench/bin/python -m benchmarks.patches
	.venv-bench/bin/python -m benchmarks.dense
	.venv-bench/bin/python -m benchmarks.detection
	.venv-bench/bin/python -m benchmarks.export
	.venv-bench/bin/python -m benchmarks.speed
	.venv-bench/bin/python -m benchmarks.speed --voxel-size 1 --people 8

# editable_mode=compat: this folder is what Python sees, with tests, benchmarks, and tuning under that name.
$(INSTALLED): setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --config-settings editable_mode=compat --editable ".[preprocessing,beam,test,docs]"
	touch $@

# The peers of the benchmarks (PyTorch among them) stay out of the working environment.
.venv-bench/.installed: setup.cfg pyproject.toml
	test -x .venv-bench/bin/python || $(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --upgrade pip
	.venv-bench/bin/python -m pip install --quiet --config-settings editable_mode=compat --editable ".[bench,onnx,tflite]"
	touch $@

clean:
	rm -rf .venv .venv-bench demo build *.egg-info
