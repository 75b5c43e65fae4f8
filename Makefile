# Every target makes the environment it needs. The first time takes a minute or two; later it is a no-op.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
BIN := $(VENV)/bin
TORCH := torch==2.13.0

# Nothing is downloaded once the environments stand.
export HF_HUB_OFFLINE := 1
export TRANSFORMERS_OFFLINE := 1
export HF_DATASETS_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

# ---- the compressing environment -----------------------------------------------------------------

$(STAMP): pyproject.toml $(wildcard setup.py)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "error: $(PYTHON) is too old, Python 3.10 or newer is needed (make PYTHON=python3.11 ...)" >&2; exit 1; }
	@echo "== making $(VENV) (once, about two minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) \
	  || { rm -rf $(VENV); echo "error: $(PYTHON) -m venv failed; on Debian, apt-get install python3-venv" >&2; exit 1; }
	@echo "== installing $(TORCH)"
	@$(BIN)/pip install --quiet "$(TORCH)"
	@echo "== installing tamp-modifier with llm-compressor and the test tools"
	@$(BIN)/pip install --quiet "$(TORCH)" -e ".[compress,dev]"
	@touch $@

.PHONY: venv
venv: $(STAMP) ## make .venv, the compressing environment

# ---- use -----------------------------------------------------------------------------------------

.PHONY: demo
demo: $(STAMP) ## prune the model in the box with Wanda and TAMP; table and figures in output/demo
	@$(BIN)/tamp demo --output output/demo

# ---- tests ---------------------------------------------------------------------------------------

.PHONY: check
check: $(STAMP) ## ruff and mypy
	@echo "== ruff"
	@$(BIN)/ruff check .
	@echo "== mypy"
	@$(BIN)/mypy

.PHONY: test-fast
test-fast: $(STAMP) ## the tests that take seconds, under three minutes together
	@$(BIN)/python -m pytest -q -m "not slow and not serving"

.PHONY: test
test: test-compress ## the whole suite

.PHONY: test-compress
test-compress: $(STAMP)
	@$(BIN)/python -m pytest -q

# ---- benchmarks ----------------------------------------------------------------------------------

.PHONY: bench-calibration
bench-calibration: $(STAMP) ## time and memory of TAMP, Wanda and SparseGPT
	@$(BIN)/python benchmarks/calibration.py --output output/bench-calibration.json

# ---- tidy ----------------------------------------------------------------------------------------

.PHONY: clean
clean: ## remove the environments, caches and build leftovers (never output/ or runs/)
	rm -rf $(VENV) .venv-serve build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
