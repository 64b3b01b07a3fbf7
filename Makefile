# Two commands for a fresh machine that has Python 3.11 and make:
#   make plan     plan a training job (the 70B example)
#   make test     every check there is, real DeepSpeed engines on the CPU included
# A CPU build of torch is enough for the tests; where pip would fetch another, TORCH_INDEX names an index that has one.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= $(shell command -v python3.11 || command -v python3)
TORCH_INDEX ?=
ARGS ?= --model 70b --gpus a100-80 --budget
PYTEST_ARGS ?=
GPU_ARGS ?=

PLAN_ENV := .venv
TEST_ENV := build/env-test
WHEEL_ENV := build/env-wheel
TEST := $(TEST_ENV)/bin
# Compiled operators and caches stay in this checkout.
export TORCH_EXTENSIONS_DIR ?= $(CURDIR)/build/torch_extensions
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help
help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

.PHONY: plan
plan: $(PLAN_ENV)/.project ## plan a job: make plan ARGS="--model 8b --gpus h100-80"
	@$(PLAN_ENV)/bin/trainplan $(ARGS)

.PHONY: test
test: lint types contracts unit docs-check wheel ## everything that continuous integration checks

.PHONY: lint
lint: $(TEST_ENV)/.project ## style and format
	$(TEST)/ruff check .
	$(TEST)/ruff format --check .

.PHONY: types
types: $(TEST_ENV)/.project .typing/trainplan ## mypy --strict, the tests included
	$(TEST)/mypy -p trainplan.planner -p trainplan.strategies -p trainplan.api -p trainplan.cli \
	  -p trainplan.configs -m trainplan -m trainplan.__main__
	$(TEST)/mypy tests

.PHONY: contracts
contracts: $(TEST_ENV)/.project ## who may import whom
	$(TEST)/lint-imports

.PHONY: unit
unit: $(TEST_ENV)/.project ## pytest: make unit PYTEST_ARGS="-m 'not deepspeed'" leaves the engines out
	$(TEST)/pytest --hypothesis-profile=ci $(PYTEST_ARGS)

# Pages with a block that cog fills in: figures and tables are printed by the program, never typed.
COGGED = $(shell grep -rls --include='*.md' --exclude-dir=build --exclude-dir='.*' -F '[[[cog' README.md docs)

.PHONY: docs docs-check
docs: $(TEST_ENV)/.project ## fill in the generated parts of the documentation
	$(if $(COGGED),PATH="$(CURDIR)/$(TEST):$$PATH" $(TEST)/cog -r $(COGGED),@echo "no page has a generated part")
docs-check: $(TEST_ENV)/.project ## fail where they are out of date
	$(if $(COGGED),PATH="$(CURDIR)/$(TEST):$$PATH" $(TEST)/cog --check --diff --check-fail-msg "run make docs" $(COGGED),@echo "no page has a generated part")

.PHONY: wheel
wheel: $(TEST_ENV)/.project ## install the built wheel alone and use it
	rm -rf build/dist $(WHEEL_ENV)
	$(TEST)/python -m build --no-isolation --outdir build/dist . > build/wheel.log || { cat build/wheel.log; exit 1; }
	$(PYTHON) -m venv $(WHEEL_ENV)
	$(WHEEL_ENV)/bin/pip install -qq -c constraints.txt build/dist/*.whl
	cd build/dist && ../../$(WHEEL_ENV)/bin/trainplan --help > /dev/null
	cd build/dist && ../../$(WHEEL_ENV)/bin/trainplan gpus list > /dev/null
	cd build/dist && ../../$(WHEEL_ENV)/bin/trainplan $(ARGS) > /dev/null

.PHONY: bench
bench: $(TEST_ENV)/.project ## time the program
	$(TEST)/python tests/bench/run.py

.PHONY: evidence
evidence: $(TEST_ENV)/.project ## compare with engines, traces and published runs; print the tables of the evidence page
	$(TEST)/pytest -q tests/integration/test_against_deepspeed_engine.py
	$(TEST)/python -m tests.evidence.traces
	$(TEST)/python -m tests.evidence.report

.PHONY: evidence-gpu
evidence-gpu: $(TEST_ENV)/.project ## measure memory on a GPU: make evidence-gpu GPU_ARGS="--list" needs none
	$(TEST)/python -m tests.evidence $(GPU_ARGS)

.PHONY: lock
lock: ## write constraints.txt anew from what installs today
	rm -rf build/env-lock
	$(call make_env,build/env-lock,)
	build/env-lock/bin/pip install -qq -e '.[train,hub,yaml,dev]'
	{ echo "# Exact versions of everything that is installed for planning and testing; written by: make lock"; \
	  echo "# Python 3.11, Linux x86-64, CPU build of torch (its CUDA build adds packages of its own)."; \
	  build/env-lock/bin/pip freeze --all --exclude-editable --exclude pip | sed -E 's/\+cpu$$//'; } > constraints.txt

.PHONY: clean
clean: ## remove the environments and everything built
	rm -rf .venv .typing build trainplan.egg-info

# A virtual environment $(1) with torch, then DeepSpeed; $(2): pip's constraints.
# torch comes first and by its exact version: whatever depends on it would fetch the newest, with CUDA.
# DeepSpeed without its compiled operators: the few that a test needs are compiled on first use.
define make_env
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "trainplan needs Python 3.11 or newer; set PYTHON=")'
	rm -rf $(1)
	$(PYTHON) -m venv $(1)
	$(1)/bin/pip install -qq $(2) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==2.13.0
	DS_BUILD_OPS=0 $(1)/bin/pip install -qq $(2) deepspeed==0.19.8
endef

$(TEST_ENV)/.torch: constraints.txt
	@echo "making $(TEST_ENV): torch, DeepSpeed and the checkers (minutes, once)"
	$(call make_env,$(TEST_ENV),-c constraints.txt)
	@touch $@

$(TEST_ENV)/.project: $(TEST_ENV)/.torch pyproject.toml
	$(TEST)/pip install -qq -c constraints.txt -e '.[train,hub,yaml,dev]'
	@touch $@

$(PLAN_ENV)/.project: constraints.txt pyproject.toml
	@echo "making $(PLAN_ENV) (once)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "trainplan needs Python 3.11 or newer; set PYTHON=")'
	@$(PYTHON) -m venv $(PLAN_ENV)
	@$(PLAN_ENV)/bin/pip install -qq -c constraints.txt -e .
	@touch $@

# The repository root is the package `trainplan`; mypy finds it by this link.
.typing/trainplan:
	mkdir -p .typing
	ln -sfn .. $@
