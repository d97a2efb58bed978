# Needs Linux and a Python (3.10 or newer) with pip; everything else goes into .venv.
#
#   make demo                 the main job on a real model, from nothing to a report
#   make test                 linters, types, import layers and all tests
#   make perf                 the bounds of the design that exist so far, as ratios
#   make results              the long ablations of docs/results/
#   make corruptions          faults planted in every kind of artifact, and whether verify finds them
#   make oracles              the readers and writers against other programs (compiles llama.cpp: 20 min)
#   make lint                 what pre-commit and `make test` check before any test
#   make test-container-set   the unit tier under the pins of the TensorRT-LLM 1.2.1 container
#   make clean                remove what the others made, virtual environments included

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
CONTAINER_VENV ?= .venv-container
ORACLES_VENV ?= .venv-oracles
TORCH := torch==2.13.0
DEMO_OUT ?= demo-out
PYTEST_ARGS ?=

RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/installed
CONTAINER_INSTALLED := $(CONTAINER_VENV)/installed
ORACLES_INSTALLED := $(ORACLES_VENV)/installed
# The version is part of the installed metadata.
PACKAGING := pyproject.toml compressor/__init__.py

.PHONY: help install demo test lint test-unit test-slow-tiers perf results corruptions oracles test-container-set clean

help:
	@sed -n 's/^#   //p' $(firstword $(MAKEFILE_LIST))

# $(call install,VENV,CONSTRAINTS): torch comes first and alone, from $(TORCH), so that no other
# requirement chooses a newer build with gigabytes of CUDA libraries.
define install
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv --clear $(1)
	$(1)/bin/python -m pip install --quiet --disable-pip-version-check --constraint $(2) $(TORCH)
	$(1)/bin/python -m pip install --quiet --disable-pip-version-check --constraint $(2) --editable '.[dev]'
	touch $(1)/installed
endef

$(INSTALLED): $(PACKAGING) constraints/default.txt
	$(call install,$(VENV),constraints/default.txt)

$(CONTAINER_INSTALLED): $(PACKAGING) constraints/tensorrt-llm-1.2.txt
	$(call install,$(CONTAINER_VENV),constraints/tensorrt-llm-1.2.txt)

install: $(INSTALLED)

demo: $(INSTALLED)
	$(RUN) -m tests.assets
	$(VENV)/bin/compress-export --config recipes/demo.yaml -o $(DEMO_OUT)
	@echo "report: $(DEMO_OUT)/bench/report.md"

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	PYTHONPATH=. $(VENV)/bin/lint-imports --no-cache
	$(VENV)/bin/typos

# Two workers of one thread each for the many small tests, and for the files that run whole commands; one
# process with all cores for the real model.
test-unit: $(INSTALLED)
	$(RUN) -m pytest tests/unit --numprocesses 2 $(PYTEST_ARGS)

test-slow-tiers: $(INSTALLED)
	$(RUN) -m tests.assets
	$(RUN) -m pytest tests/integration --numprocesses 2 --dist loadfile $(PYTEST_ARGS)
	$(RUN) -m pytest tests/packaging tests/real_model tests/gpu $(PYTEST_ARGS)

# One after the other, also under make -j: they share two cores.
test:
	$(MAKE) lint
	$(MAKE) test-unit
	$(MAKE) test-slow-tiers

perf: $(INSTALLED)
	$(RUN) -m tests.assets
	$(RUN) -m tests.performance

results: $(INSTALLED)
	$(RUN) -m tests.assets
	$(RUN) -m tests.performance.results

corruptions: $(INSTALLED)
	$(RUN) -m tests.corruptions

# llama.cpp has an environment of its own, compiled without what the tests do not use. Instructions that
# differ from one processor to the next stay out, so that its answers do not.
LLAMA_CPP_BUILD := -DLLAVA_BUILD=OFF;-DGGML_NATIVE=OFF;-DGGML_OPENMP=OFF;-DGGML_LLAMAFILE=OFF
LLAMA_CPP_BUILD := $(LLAMA_CPP_BUILD);-DGGML_CPU_REPACK=OFF;-DCMAKE_CXX_FLAGS_RELEASE=-O1

$(ORACLES_INSTALLED): constraints/oracles.txt
	$(PYTHON) -m venv --clear $(ORACLES_VENV)
	$(ORACLES_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-binary llama-cpp-python \
	  --config-settings 'build.targets=llama;llama-common' \
	  --config-settings 'cmake.args=$(LLAMA_CPP_BUILD)' --requirement constraints/oracles.txt
	touch $(ORACLES_INSTALLED)

oracles: $(INSTALLED) $(ORACLES_INSTALLED)
	$(RUN) -m tests.assets
	ORACLE_PYTHON=$(ORACLES_VENV)/bin/python $(RUN) -m pytest tests/oracles $(PYTEST_ARGS)

test-container-set: $(CONTAINER_INSTALLED)
	$(CONTAINER_VENV)/bin/python -m pytest tests/unit --numprocesses 2 $(PYTEST_ARGS)

clean:
	rm -rf $(VENV) $(CONTAINER_VENV) $(ORACLES_VENV) $(DEMO_OUT) .assets build dist
	rm -rf .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
