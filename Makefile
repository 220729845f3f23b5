# Every target sets up what it needs, in .venv, from nothing: python3 (3.11 or newer) suffices.
# Where packages come from is for pip's own settings to say (pip config, PIP_* variables).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO := outputs/demo
# The vLLM to test against: VLLM=COMMAND is one that is there, otherwise one is built in VLLM_VENV.
VLLM_VENV ?= .venv-vllm
ifeq ($(origin VLLM), undefined)
VLLM := $(VLLM_VENV)/bin/vllm
BUILT_VLLM := $(VLLM)
endif

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-notebooks test-vllm check docs format setup clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | column -t -s '|'

demo: $(VENV)/.installed  ## train and measure a small drafter on the CPU, into outputs/demo
	rm -rf $(DEMO)
	$(BIN)/python train.py output_dir=$(DEMO)

test: $(VENV)/.installed-dev  ## the default tests: no network, no GPU
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(VENV)/.installed-dev  ## the tests that take longer than 10 seconds each
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m slow

test-notebooks: $(VENV)/.installed-docs  ## every notebook, from top to bottom
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m notebook tests/test_notebooks.py

test-vllm: $(VENV)/.installed-dev | $(BUILT_VLLM)  ## the tests against a real vLLM, which is built first
	OMP_NUM_THREADS=1 VLLM=$(VLLM) $(BIN)/python -m pytest -m vllm tests/vllm

check: $(VENV)/.installed-dev  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

docs: $(VENV)/.installed-docs  ## the documentation site, strictly, into outputs/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "outputs/site/index.html"

format: $(VENV)/.installed-dev  ## format and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

setup: $(VENV)/.installed-dev  ## only the environment, with everything for development

clean:  ## the environments and caches; runs in outputs stay
	rm -rf $(VENV) .venv-vllm .pytest_cache .ruff_cache .hypothesis dist build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps make a second call instant; a changed pyproject.toml installs again. Bytecode is left to
# the first import: most of what is installed is never imported, and compiling it all takes longer.
$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV): a few minutes the first time"
	$(BIN)/python -m pip install --quiet --no-compile --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[dev]'
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[docs,notebooks]'
	touch $@

$(VLLM_VENV)/bin/vllm:
	@echo "building a vLLM server in $(VLLM_VENV): some GB, some minutes"
	$(PYTHON) tests/vllm/build.py $(VLLM_VENV)
