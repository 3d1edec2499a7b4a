# Needs git, make, Python 3.11 or newer and its venv module; everything else goes into $(VENV).
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# The first of these that is a Python 3.11, 3.12 or 3.13; python3 if none is, for the message below.
RIGHT_PYTHON := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
  "$$p" -c '$(RIGHT_PYTHON)' 2>/dev/null && { echo "$$p"; exit; }; done; echo python3)
VENV ?= .venv
RUN ?= runs/quickstart
NAME ?=
ARGS ?=
EXTRAS := adapters,diffusion,speech,graph,eval,convert,demo,synthesis,video

override VENV_PYTHON := $(VENV)/bin/python
override RUN_STAMP := $(VENV)/.installed-run
override DEV_STAMP := $(VENV)/.installed-dev
PIP_INSTALL = $(VENV_PYTHON) -m pip install --disable-pip-version-check -c constraints.txt

.PHONY: help quickstart test test-all lint format demonstrations bench-environments bench-data bench-encoders bench-training bench-throughput bench-startup bench-constraint bench-eval clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-19s %s\n", $$1, $$2}'

quickstart: $(RUN_STAMP) ## Make the data, train the small generalist, evaluate it and write its page (again: continue)
	@$(VENV_PYTHON) -m training.quickstart --run "$(RUN)" $(ARGS)

lint: $(DEV_STAMP) ## Formatting, lint and types
	$(VENV_PYTHON) -m ruff format --check .
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m mypy

format: $(DEV_STAMP) ## Rewrite the files as ruff wants them
	$(VENV_PYTHON) -m ruff format .
	$(VENV_PYTHON) -m ruff check --fix .

test: lint ## Lint, then the fast tests (at most five minutes on two cores)
	OMP_NUM_THREADS=1 $(VENV_PYTHON) -m pytest -m "not slow" -n 2 --durations=20

test-all: lint ## Lint, then every test, slow ones too
	OMP_NUM_THREADS=1 $(VENV_PYTHON) -m pytest -n 2 --durations=20

demonstrations: $(DEV_STAMP) ## The papers' claims at CPU size, slowly: make demonstrations NAME=instruction_diversity
	$(VENV_PYTHON) -m demonstrations $(NAME) $(ARGS)

bench-environments: $(DEV_STAMP) ## Environments of the loaders and trainers that ours are measured against
	$(VENV_PYTHON) -m benchmarks.environments

bench-encoders: $(DEV_STAMP) ## Towers beside their libraries, loading beside transformers'; also as runs/benchmarks/encoders.json
	$(VENV_PYTHON) -m benchmarks.encoders $(ARGS)

bench-training: $(DEV_STAMP) ## Lightning's trainer beside a plain loop, and how the cost grows
	$(VENV_PYTHON) -m benchmarks.lightning_overhead $(ARGS)
	$(VENV_PYTHON) -m benchmarks.scaling $(ARGS)

bench-throughput: $(DEV_STAMP) ## Trainers side by side on a small LLaVA (HF Trainer, TRL, Lightning); TRL wants bench-environments first
	$(VENV_PYTHON) -m benchmarks.train_throughput $(ARGS)

bench-startup: $(DEV_STAMP) ## train.py fit --help, and a first training step, beside the imports of torch, lightning and transformers
	$(VENV_PYTHON) -m benchmarks.startup $(ARGS)

bench-constraint: $(DEV_STAMP) ## What constrained decoding adds to a decode step; also as runs/benchmarks/constrained_decoding.json
	$(VENV_PYTHON) -m benchmarks.constrained_decoding $(ARGS)

bench-eval: $(DEV_STAMP) ## Answering and decoding beside transformers, and scoring; also as runs/benchmarks/eval_throughput.json
	$(VENV_PYTHON) -m benchmarks.eval_throughput $(ARGS)

bench-data: $(DEV_STAMP) ## Loaders side by side; the table also as runs/benchmarks/data_loading.json
	$(VENV_PYTHON) -m benchmarks.data_loading $(ARGS)

clean: ## Remove caches and build output; runs/ and the environment stay
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
	find . -path "./$(VENV)" -prune -o -name __pycache__ -type d -print0 | xargs -0 -r rm -rf

$(VENV_PYTHON):
	@python='$(PYTHON)'; \
	fail() { echo "make: $$1" >&2; exit 1; }; \
	command -v "$$python" >/dev/null || fail "no '$$python' found. Python 3.11, 3.12 or 3.13 is needed."; \
	"$$python" -c '$(RIGHT_PYTHON)' || \
	  fail "Python 3.11, 3.12 or 3.13 is needed, '$$python' is $$("$$python" -V 2>&1). Name one: make PYTHON=python3.12 ..."; \
	"$$python" -c 'import ensurepip, venv' 2>/dev/null || \
	  fail "'$$python' has no venv module. On Debian and Ubuntu: sudo apt install python3-venv"; \
	echo "$$python -m venv $(VENV)"; \
	"$$python" -m venv "$(VENV)"

$(RUN_STAMP): pyproject.toml constraints.txt | $(VENV_PYTHON)
	$(PIP_INSTALL) -e '.[$(EXTRAS)]'
	@touch $@

$(DEV_STAMP): pyproject.toml constraints.txt | $(VENV_PYTHON)
	$(PIP_INSTALL) -e '.[$(EXTRAS),dev]'
	@touch $(RUN_STAMP) $@
