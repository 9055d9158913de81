# Needs Python 3.11, git and make; everything else is fetched into .uv/ and .venv/ by the first command.
SHELL := /bin/bash
.DEFAULT_GOAL := help

BIN := .venv/bin
STAMP := .venv/.synced
PYTEST_ARGS ?=
# quiet start of TensorFlow; plots show in exported HTML too
export TF_CPP_MIN_LOG_LEVEL ?= 3
export PLOTLY_RENDERER ?= plotly_mimetype+notebook_connected

.PHONY: help env run test check lint sync types lab bench

help: ## list the commands
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | awk -F'\t' '{printf "  make %-7s %s\n", $$1, $$2}'

env: $(STAMP) ## build or update the environment in .venv/ (the other commands do it by themselves)

$(STAMP): requirements.lock requirements.in requirements-serve.in setup.py settings.ini tools/environment.sh
	@bash tools/environment.sh

run: $(STAMP) ## simulated merchant, trained model, service on port 8000: everything in one command
	@$(BIN)/smartrouter serve --check
	@$(BIN)/smartrouter world --unless-present
	@$(BIN)/smartrouter rules sync
	@$(BIN)/smartrouter retrain --params params/retrain/embedded.yaml --unless-present
	@exec $(BIN)/smartrouter serve --hello

test: $(STAMP) ## all tests, notebooks included
	$(BIN)/python -m pytest $(PYTEST_ARGS)

check: lint sync types test ## all that CI does, from cheap to dear

lint: $(STAMP) ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

sync: $(STAMP) ## notebooks are clean, and the package is what they export
	$(BIN)/python -m pytest tests/test_house.py -k "sync or clean"

types: $(STAMP) ## mypy: types of the package and the service
	$(BIN)/mypy

lab: $(STAMP) ## JupyterLab on the notebooks
	@$(BIN)/smartrouter world --unless-present
	@bash tools/lab.sh

bench: $(STAMP) ## the speed and quality table, with the machine it was measured on
	$(BIN)/smartrouter bench
