# Two commands set everything up: `make demo` makes a cloned voice speak, `make test` passes the tests.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# Some machines forbid bytecode, and then each of the hundreds of programs that tests start compiles the sources anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test lint style docs soak floors bench client openapi data clean

demo: $(VENV)/.lite
	$(BIN)/afterwords demo --out hello.wav

# Types take half a minute to check: beside the tests, many of which wait, and told after them.
test: $(VENV)/.dev style
	@$(BIN)/mypy >$(VENV)/types.log 2>&1 & types=$$!; \
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder; tested=$$?; \
	wait $$types; typed=$$?; echo mypy; cat $(VENV)/types.log; exit $$((tested ? tested : typed))

lint: style
	$(BIN)/mypy

style: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

soak: $(VENV)/.dev floors
	$(BIN)/python -m scripts.make_reliability

# The lowest versions that pyproject.toml allows, in an environment of their own: they install, and the parts that lean
# most on other packages work with them.
FLOORS := $(VENV)/floors

floors:
	$(PYTHON) -m venv --clear $(FLOORS)
	$(FLOORS)/bin/python -m pip install --quiet uv
	$(FLOORS)/bin/uv pip install --quiet --python $(FLOORS) --resolution lowest-direct ".[server,play,login,lite]"
	$(FLOORS)/bin/uv pip install --quiet --python $(FLOORS) pytest hypothesis psutil trustme
	$(FLOORS)/bin/python -m pytest -q -o filterwarnings=default tests/server/test_embedding.py \
		tests/server/store/test_store.py tests/server/routes tests/audio/test_audio.py tests/audio/test_writer.py
	$(FLOORS)/bin/afterwords backends

DNSMOS := speechmos==0.0.1.1 # for its weights; its code, which needs much more, is not used

bench: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --no-deps $(DNSMOS)
	$(BIN)/python -m benchmarks.run

client: $(VENV)/.dev
	$(BIN)/python -m scripts.make_client

openapi: $(VENV)/.dev
	$(BIN)/python -m scripts.make_openapi

data: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --no-deps $(DNSMOS)
	$(BIN)/python -m pip install --quiet onnx torch
	$(BIN)/python -m scripts.make_lite_data

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.lite: pyproject.toml $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet ".[lite]"
	touch $@

$(VENV)/.dev: pyproject.toml scripts/system-packages $(VENV)/bin/python
	scripts/system-packages
	$(BIN)/python -m pip install --quiet --editable ".[lite,cuda,mlx,play,transcribe,server]" --group dev --group docs
	touch $@

clean:
	rm -rf $(VENV) dist build site .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
