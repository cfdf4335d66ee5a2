# Thin: each target is a line or two of a tool. PYTHON is only used to make the environment.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: setup demo serve test lint proto clean

setup: $(VENV)/test

demo: $(VENV)/test
	$(BIN)/python examples/replay.py

serve: $(VENV)/test
	$(BIN)/pkpo-server $(FLAGS)

test: $(VENV)/test
	$(BIN)/python -m pytest
	NUMBA_DISABLE_JIT=1 $(BIN)/python -m pytest tests/core

lint: $(VENV)/lint
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/mypy examples
	$(BIN)/buf lint proto

# The stubs, by the generator that proto/requirements.txt pins.
proto: $(VENV)-proto/installed
	PATH="$(CURDIR)/$(VENV)-proto/bin:$$PATH" python -m grpc_tools.protoc -Iproto \
	  --python_out=proto --grpc_python_out=proto --mypy_out=proto --mypy_grpc_out=proto pkpo/v1/reward_transform.proto

clean:
	rm -rf $(VENV) $(VENV)-proto

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/test: $(VENV)/bin/python pyproject.toml
	$(INSTALL) --editable '.[test]'
	touch $@

$(VENV)/lint: $(VENV)/test
	$(INSTALL) --editable '.[test,lint]'
	touch $@

$(VENV)-proto/installed: proto/requirements.txt
	$(PYTHON) -m venv $(VENV)-proto
	$(VENV)-proto/bin/python -m pip install --quiet --disable-pip-version-check -r proto/requirements.txt
	touch $@
