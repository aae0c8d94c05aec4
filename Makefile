# The index of commands. `make` alone lists them.
SHELL := /bin/bash -o pipefail
.DEFAULT_GOAL := help

# Everything built or installed lies outside the checkout, so that a second clone finds it made.
export SPOT_TRAINING_CACHE ?= $(HOME)/.cache/spot-training
export PYTHONDONTWRITEBYTECODE := 1
PYTHON ?= python3
VENV := $(SPOT_TRAINING_CACHE)/venv-$(shell cat tests/requirements.txt | sha256sum | cut -c1-12)
PY := $(VENV)/bin/python
# What it has found out is kept by the checkout's place: it takes a minute of both processors without.
MYPY := $(PY) -m mypy --cache-dir $(SPOT_TRAINING_CACHE)/mypy-$(shell pwd | sha256sum | cut -c1-12)
RUN := PYTHONPATH=operator:. $(PY)

.PHONY: help
help: ## List the commands
	@grep -hE '^[a-z%-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{sub(/:.*/, "", $$1); printf "  make %-11s %s\n", $$1, $$2}'

# --- to see it -------------------------------------------------------------------------------------------------

.PHONY: demo
demo: install ## The whole loop: train, take the node away, see the job finish elsewhere
	@$(RUN) -m tests.kit.demo

.PHONY: cluster
cluster: venv ## A kind cluster with spot GPU nodes (made from packages where no image can be pulled)
	@$(RUN) -m tests.kit.cluster up

.PHONY: install
install: cluster ## Build the images and install the chart, the simulated guest agent and the sample pools
	@$(RUN) -m tests.kit.install up

.PHONY: reclaim
reclaim: venv ## Have the cloud take a node: NODE=worker2 IN=60 [KILL=1: its container really goes]
	@$(RUN) -m tests.kit.guest_agent.control reclaim --node $(NODE) --in-seconds $(or $(IN),60) $(if $(KILL),--kill)

.PHONY: withdraw
withdraw: venv ## Have the cloud change its mind: NODE=worker2
	@$(RUN) -m tests.kit.guest_agent.control withdraw --node $(NODE)

.PHONY: restore
restore: venv ## Bring a node back that was taken: NODE=worker2
	@$(RUN) -m tests.kit.guest_agent.control restore --node $(NODE)

.PHONY: clean
clean: venv ## Take the cluster down, and the container engine if `make cluster` started it
	@$(RUN) -m tests.kit.cluster down --engine

# --- to develop it ---------------------------------------------------------------------------------------------

.PHONY: venv
venv: $(VENV)/.done ## Make the Python environment for development and tests

# Its name is made of what is in it: there is nothing else it could depend on.
$(VENV)/.done:
	@echo "==> Python environment in $(VENV)"
	@tests/kit/bootstrap
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check --require-hashes -r tests/requirements.txt
	@touch $@

.PHONY: check
check: lint ## Format, lint, strict types, import contracts, generated files, unit tests: seconds
	@$(PY) -m pytest -q tests/unit

.PHONY: lint
lint: venv
	@$(PY) -m ruff format --check .
	@$(PY) -m ruff check .
	@$(MYPY)
	@$(MYPY) --python-version 3.10 operator/spot_training/train  # in users' images
	@PYTHONPATH=operator $(VENV)/bin/lint-imports 2>&1 | tail -n 9
	@$(RUN) -m spot_training.api.schema --check crds

.PHONY: test
test: venv ## Everything, on a real cluster that it brings up and takes down (KEEP=1 leaves it up)
	@$(RUN) -m tests.kit.suite $(if $(KEEP),--keep)

bench-%: venv ## Measure, print a table and write build/bench/NAME.json: NAME is a module of tests/bench
	@$(RUN) -m tests.bench.$*

.PHONY: soak
soak: install ## Half a day's churn in MINUTES (20), then nothing may be left; and many more runs of the state machine
	@$(RUN) -m tests.bench.soak --minutes $(or $(MINUTES),20)
	@SPOT_TRAINING_RUNS=$(or $(RUNS),5000) $(PY) -m pytest -q tests/unit/control/test_machine.py tests/unit/control/test_walks.py

.PHONY: format
format: venv ## Format the code and mend what the linter can
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

.PHONY: crds
crds: venv ## Write crds/ from the models
	$(RUN) -m spot_training.api.schema --write crds

.PHONY: manifests
manifests: venv ## Write manifests/install.yaml from the chart
	$(RUN) -m tests.kit.manifests --write manifests/install.yaml

.PHONY: lock
lock: ## Pin the newest versions that fit operator/requirements.in and tests/requirements.in (needs uv)
	for part in operator tests; do uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-header $$part/requirements.in -o $$part/requirements.txt; done
