# Thin: each target is a line or two of a tool. PYTHON is only used to make the environment.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
VENV_VERL ?= $(VENV)-verl
PIP_INSTALL = python -m pip install --quiet --disable-pip-version-check

# Helm's library asks for 3.12, and tunix for 3.11.
PYTHON_DEPLOY ?= $(shell for p in python3.13 python3.12 $(PYTHON); do $$p -c '' 2>/dev/null && echo $$p && break; done)

PYTHON_TUNIX ?= $(PYTHON_DEPLOY)

RUN_DIR ?= runs/$(shell date +%Y%m%d-%H%M%S)

.PHONY: setup demo serve train experiments figures test test-trainer test-deploy test-verl test-trl test-tunix fuzz soak crowds manifests lint bench performance capacity overload comparison proto clean

setup: $(VENV)/test

demo: $(VENV)/test
	$(BIN)/python examples/replay.py

serve: $(VENV)/test
	$(BIN)/pkpo-server $(FLAGS)

# A server, Prometheus and the example trainer; FLAGS are the trainer's options.
train: $(VENV)-trainer/installed
	OMP_NUM_THREADS=1 $(VENV)-trainer/bin/python -m trainer_example.observed --run_dir $(RUN_DIR) $(FLAGS)

# The papers' claims on a small Gemma-2, and docs/results.md: three hours; started again, it goes on. FLAGS=--quick only tries that everything works.
experiments: $(VENV)-trainer/installed
	OMP_NUM_THREADS=1 $(VENV)-trainer/bin/python -m trainer_example.experiments $(FLAGS)

# The papers' toy results, and the data they are drawn from.
figures: $(VENV)/test
	$(BIN)/python -m examples.figures

test: $(VENV)/test
	$(BIN)/python -m pytest
	NUMBA_DISABLE_JIT=1 $(BIN)/python -m pytest tests/core

test-trainer: $(VENV)-trainer/installed
	$(VENV)-trainer/bin/python -m pytest tests/trainer

# Odd input, a million times; FLAGS='--inputs 10000' takes less than a minute.
fuzz: $(VENV)/test
	cd tests && $(abspath $(BIN))/python -m fuzz all $(FLAGS)

# Real servers under load and faults; FLAGS='--minutes 60' for an hour.
soak: $(VENV)/test
	cd tests && $(abspath $(BIN))/python -m soak $(FLAGS)

# Another caller's latency beside crowds that would fill a server, some ten minutes.
crowds: $(VENV)/test
	cd tests && $(abspath $(BIN))/python -m faults.beside --write ../docs/reliability.md

# What it cannot find (nginx, buildah, Prometheus, ...) it names.
test-deploy: $(VENV)-deploy/installed
	PATH="$(abspath $(VENV)-deploy)/bin:$$PATH" $(VENV)-deploy/bin/python -m pytest tests/deploy

# Each integration against its framework, in an environment of its own.
test-verl: $(VENV_VERL)/installed
	PATH="$(abspath $(VENV_VERL))/bin:$$PATH" OMP_NUM_THREADS=1 $(VENV_VERL)/bin/python -m pytest tests/integrations/test_verl.py tests/benchmarks/test_comparison.py

test-trl: $(VENV)-trl/installed
	OMP_NUM_THREADS=1 $(VENV)-trl/bin/python -m pytest tests/integrations/test_trl.py tests/benchmarks/test_comparison.py

test-tunix: $(VENV)-tunix/installed
	OMP_NUM_THREADS=1 $(VENV)-tunix/bin/python -m pytest tests/integrations/test_tunix.py tests/integrations/test_jax.py tests/benchmarks/test_comparison.py

# What in deploy/ is made from elsewhere: from the settings, the version, the chart, the dashboard's panels.
manifests: $(VENV)-deploy/installed
	$(VENV)-deploy/bin/python -m deploy.observability.dashboard
	$(VENV)-deploy/bin/python -m deploy.chart_files
	$(VENV)-deploy/bin/python -m deploy.kustomization

lint: $(VENV)/lint
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/mypy examples benchmarks trainer_example deploy
	$(BIN)/buf lint proto

# Some minutes, on a machine that does nothing else. FLAGS=--quick only tries that everything works.
bench: $(VENV)/test $(VENV_VERL)/installed
	VERL_PYTHON=$(VENV_VERL)/bin/python $(BIN)/python -m benchmarks $(FLAGS)

# Everything, and the page and the pictures that tell of it.
performance: $(VENV)/test $(VENV_VERL)/installed
	VERL_PYTHON=$(VENV_VERL)/bin/python $(BIN)/python -m benchmarks in_process served workers start memory budget servers growth --write docs/performance.md

# What a fleet needs, and the page that tells of it.
capacity: $(VENV)/test
	$(BIN)/python -m benchmarks fleet --write docs/capacity.md

# Three times what the server can bear, and the page that tells of it.
overload: $(VENV)/test
	$(BIN)/python -m benchmarks overload --write docs/reliability.md

# Each framework's own estimators against ours, and the page that tells of it.
comparison: $(VENV)/test $(VENV_VERL)/installed $(VENV)-trl/installed $(VENV)-tunix/installed
	$(BIN)/python -m benchmarks.comparison --venv $(VENV) --write docs/integrations/comparison.md

# The stubs, by the generator that proto/requirements.txt pins.
proto: $(VENV)-proto/installed
	PATH="$(CURDIR)/$(VENV)-proto/bin:$$PATH" python -m grpc_tools.protoc -Iproto \
	  --python_out=proto --grpc_python_out=proto --mypy_out=proto --mypy_grpc_out=proto pkpo/v1/reward_transform.proto
	PATH="$(CURDIR)/$(VENV)-proto/bin:$$PATH" python -m grpc_tools.protoc -Iproto -Itests \
	  --python_out=tests --mypy_out=tests conformance/conformance.proto

clean:
	rm -rf $(VENV) $(addprefix $(VENV)-,proto verl trl tunix trainer deploy)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/test: $(VENV)/bin/python pyproject.toml
	$(BIN)/$(PIP_INSTALL) --editable '.[test]'
	touch $@

$(VENV)/lint: $(VENV)/test
	$(BIN)/$(PIP_INSTALL) --editable '.[test,lint]'
	touch $@

# torch first, in the build that is there for CPUs.
$(VENV)-trainer/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)-trainer
	@echo "installing what the trainer needs, with torch about 1.5 GB, into $(VENV)-trainer"
	$(VENV)-trainer/bin/$(PIP_INSTALL) torch==2.13.0
	$(VENV)-trainer/bin/$(PIP_INSTALL) --editable '.[trainer,test]'
	touch $@

$(VENV)-trl/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)-trl
	@echo "installing TRL, with torch about 1.2 GB, into $(VENV)-trl"
	$(VENV)-trl/bin/$(PIP_INSTALL) torch==2.13.0
	$(VENV)-trl/bin/$(PIP_INSTALL) --editable '.[trl,local,test]'
	touch $@

$(VENV)-tunix/installed: pyproject.toml
	$(PYTHON_TUNIX) -m venv $(VENV)-tunix
	@echo "installing google-tunix, about 1.8 GB, into $(VENV)-tunix"
	$(VENV)-tunix/bin/$(PIP_INSTALL) --editable '.[tunix,local,test]'
	touch $@

$(VENV)-deploy/installed: pyproject.toml
	@$(PYTHON_DEPLOY) -c 'import sys; sys.exit(sys.version_info < (3, 12) and "$(PYTHON_DEPLOY) is too old: what tests deploy/ needs Python 3.12: PYTHON_DEPLOY=python3.12")'
	$(PYTHON_DEPLOY) -m venv $(VENV)-deploy
	$(VENV)-deploy/bin/$(PIP_INSTALL) --editable '.[deploy]'
	touch $@

# torch first, in the build that is there for CPUs; then what verl imports and does not ask for.
$(VENV_VERL)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV_VERL)
	@echo "installing verl, with torch about 2 GB, into $(VENV_VERL)"
	$(VENV_VERL)/bin/$(PIP_INSTALL) torch==2.13.0
	$(VENV_VERL)/bin/$(PIP_INSTALL) torch==2.13.0 verl==0.9.1 cachetools fastapi uvicorn 'TransferQueue>=0.1.10'
	$(VENV_VERL)/bin/$(PIP_INSTALL) --editable '.[test]'
	touch $@

$(VENV)-proto/installed: proto/requirements.txt
	$(PYTHON) -m venv $(VENV)-proto
	$(VENV)-proto/bin/$(PIP_INSTALL) -r proto/requirements.txt
	touch $@
