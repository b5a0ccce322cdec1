# Two commands set everything up: `make demo` makes a cloned voice speak, `make test` passes the tests.
# Packages are installed by uv if it is on PATH (faster), else by pip.

PYTHON ?= python3
VENV ?= .venv
BIN := $(if $(filter Windows_NT,$(OS)),$(VENV)/Scripts,$(VENV)/bin)
UV := $(shell command -v uv)
# pip would compile all of PyTorch and the rest, 30 s; Python compiles what it imports.
INSTALL := $(if $(UV),$(UV) pip install --quiet --python $(VENV),$(BIN)/python -m pip install --quiet --no-compile)

# Without bytecode, each of the hundreds of processes that the tests start would compile the sources again.
unexport PYTHONDONTWRITEBYTECODE

# Test processes share the cores, and threads that spin while they wait would slow the others down.
test pytest: export OMP_WAIT_POLICY = PASSIVE
test pytest: export OPENBLAS_NUM_THREADS = 1

.PHONY: demo test pytest lint style docs soak floors bench client openapi data media clean

demo: $(VENV)/.lite
	$(BIN)/afterwords demo --out hello.wav

# mypy takes half a minute. It runs next to the tests, many of which wait, and its output is printed after theirs. In a
# new environment, tests are collected by one process first: it compiles what they import, which each would do again.
test: $(VENV)/.dev style
	@$(BIN)/mypy >$(VENV)/types.log 2>&1 & types=$$!; \
	[ -e $(VENV)/collected.log ] || $(BIN)/python -m pytest --collect-only -qq >$(VENV)/collected.log 2>&1; \
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder; tested=$$?; \
	wait $$types; typed=$$?; echo mypy; cat $(VENV)/types.log; exit $$((tested ? tested : typed))

pytest: $(VENV)/.dev
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

lint: style
	$(BIN)/mypy

style: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/python -m scripts.check_prose
	$(BIN)/zizmor --offline --quiet .github
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec deploy/compose.yaml
	if [ -x $(BIN)/hadolint ]; then $(BIN)/hadolint deploy/Dockerfile; fi

docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

soak: $(VENV)/.dev floors
	$(BIN)/python -m pytest -m soak
	$(BIN)/python -m scripts.make_reliability

# The lowest versions that pyproject.toml allows, in an environment of their own: they install, and the parts that lean
# most on other packages work with them.
FLOORS := $(VENV)/floors
FLOORS_BIN := $(subst $(VENV),$(FLOORS),$(BIN))

floors:
	$(PYTHON) -m venv --clear $(FLOORS)
	$(FLOORS_BIN)/python -m pip install --quiet uv
	$(FLOORS_BIN)/uv pip install --quiet --python $(FLOORS) --resolution lowest-direct ".[server,play,login,lite]"
	$(FLOORS_BIN)/uv pip install --quiet --python $(FLOORS) pytest hypothesis psutil trustme
	$(FLOORS_BIN)/python -m pytest -q -o filterwarnings=default tests/server/test_embedding.py \
		tests/server/store/test_store.py tests/server/routes tests/audio/test_audio.py tests/audio/test_writer.py
	$(FLOORS_BIN)/afterwords backends

DNSMOS := speechmos==0.0.1.1 # for its weights; its code, which needs much more, is not used

bench: $(VENV)/.dev
	$(INSTALL) --no-deps $(DNSMOS)
	$(BIN)/python -m benchmarks.run

client: $(VENV)/.dev
	$(BIN)/python -m scripts.make_client

openapi: $(VENV)/.dev
	$(BIN)/python -m scripts.make_openapi

data: $(VENV)/.dev
	$(INSTALL) --no-deps $(DNSMOS)
	$(INSTALL) onnx torch
	$(BIN)/python -m scripts.make_lite_data

media: $(VENV)/.dev
	$(BIN)/python -m scripts.make_media

$(VENV)/pyvenv.cfg:
	$(if $(UV),$(UV) venv --quiet --seed --allow-existing --python $(PYTHON) $(VENV),$(PYTHON) -m venv $(VENV))
	$(if $(UV),,$(BIN)/python -m pip install --quiet --upgrade pip)

$(VENV)/.lite: pyproject.toml | $(VENV)/pyvenv.cfg
	$(INSTALL) --editable ".[lite]"
	touch $@

$(VENV)/.dev: pyproject.toml scripts/system-packages | $(VENV)/pyvenv.cfg
	sh scripts/system-packages
	$(INSTALL) --editable ".[lite,pocket,cuda,mlx,play,transcribe,server,wyoming,postgres,ray,otel,billing]" --group dev --group docs
	touch $@

clean:
	rm -rf $(VENV) dist build site .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
