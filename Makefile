# Needs Linux and a Python (3.10 or newer) with pip; everything else goes into .venv.
#
#   make demo                 the main job on a real model, from nothing to a report, in ten minutes
#   make demo-full            the same with more text, formats and series: half an hour
#   make test                 linters, types, import layers and all tests
#   make perf                 the bounds of the design that exist so far, as ratios
#   make results              the long ablations of docs/results/
#   make corruptions          faults planted in every kind of artifact, and whether verify finds them
#   make fuzz                 hostile input of every kind, ten minutes each (FUZZ_SECONDS=600)
#   make faults               kills, full disks, lost networks and more, where commands change files
#   make extras               tasks of lm-eval, signatures and the bill's schema, with the optional libraries
#   make oracles              the readers and writers against other programs (compiles llama.cpp: 20 min)
#   make edge-env             .venv-edge, with NVIDIA's TensorRT-Edge-LLM converter and a torch for the CPU
#   make edge-oracles         the TensorRT-Edge-LLM export with the real converter
#   make gpu                  what a CUDA GPU measures, at most 8 minutes a part (PART=gemm, runtime, ...)
#   make site                 docs/ as a static site in build/site, every link checked
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
EDGE_VENV ?= .venv-edge
EXTRAS_VENV ?= .venv-extras
SITE_VENV ?= .venv-site
TORCH := torch==2.13.0
DEMO_OUT ?= demo-out
DEMO_FULL_OUT ?= demo-full-out
# Of make fuzz: for each kind of input.
FUZZ_SECONDS ?= 600
PYTEST_ARGS ?=
# Of make gpu: the Python whose torch knows the GPU, and the parts to run, all by default.
GPU_PYTHON ?= python3
PART ?=

RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/installed
CONTAINER_INSTALLED := $(CONTAINER_VENV)/installed
ORACLES_INSTALLED := $(ORACLES_VENV)/installed
EDGE_INSTALLED := $(EDGE_VENV)/installed
EXTRAS_INSTALLED := $(EXTRAS_VENV)/installed
SITE_INSTALLED := $(SITE_VENV)/installed
# The version is part of the installed metadata.
PACKAGING := pyproject.toml compressor/__init__.py

.PHONY: help install demo demo-full test lint test-unit test-slow-tiers perf results corruptions fuzz \
  extras oracles edge-env edge-oracles gpu site test-container-set clean faults

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

demo-full: $(INSTALLED)
	$(RUN) -m tests.assets
	$(VENV)/bin/compress-export --config recipes/demo-full.yaml -o $(DEMO_FULL_OUT)

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

results: $(INSTALLED) $(EDGE_INSTALLED) $(EXTRAS_INSTALLED)
	$(RUN) -m tests.assets
	$(EXTRAS_VENV)/bin/python -m tests.performance.results

corruptions: $(INSTALLED)
	$(RUN) -m tests.corruptions

fuzz: $(INSTALLED)
	$(RUN) -m tests.fuzz --keep --seconds $(FUZZ_SECONDS)
# Two workers, each with programs of one thread.
faults: $(INSTALLED)
	$(RUN) -m tests.faults

$(EXTRAS_INSTALLED): $(PACKAGING) constraints/default.txt constraints/extras.txt
	$(call install,$(EXTRAS_VENV),constraints/default.txt)
	$(EXTRAS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints/default.txt \
	  --constraint constraints/extras.txt --editable '.[dev,lm-eval,signing]' 'lm-eval[ifeval]' cyclonedx-python-lib \
	  jsonschema
	touch $(EXTRAS_INSTALLED)

extras: $(EXTRAS_INSTALLED) $(SITE_INSTALLED)
	SITE_PYTHON=$(SITE_VENV)/bin/python $(EXTRAS_VENV)/bin/python -m pytest tests/extras $(PYTEST_ARGS)

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

$(EDGE_INSTALLED): constraints/edge-llm.txt
	$(PYTHON) -m venv --clear $(EDGE_VENV)
	$(EDGE_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint $< $(TORCH)
	$(EDGE_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint $< 'tensorrt-edgellm[export]'
	touch $(EDGE_INSTALLED)

edge-env: $(EDGE_INSTALLED)
	@echo "--edge-llm-python $(EDGE_VENV)/bin/python"

edge-oracles: $(INSTALLED) $(EDGE_INSTALLED)
	EDGE_LLM_PYTHON=$(EDGE_VENV)/bin/python $(RUN) -m pytest tests/oracles/test_edge_llm.py $(PYTEST_ARGS)

# With what is installed there, and no network.
gpu:
	HF_HUB_OFFLINE=1 $(GPU_PYTHON) -m tests.gpu.study $(PART)

$(SITE_INSTALLED): constraints/site.txt
	$(PYTHON) -m venv --clear $(SITE_VENV)
	$(SITE_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --requirement constraints/site.txt
	touch $(SITE_INSTALLED)

site: $(SITE_INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(SITE_VENV)/bin/python -m mkdocs build --strict --quiet --config-file docs/site/mkdocs.yml
	$(SITE_VENV)/bin/python docs/site/check_links.py build/site

test-container-set: $(CONTAINER_INSTALLED)
	$(CONTAINER_VENV)/bin/python -m pytest tests/unit --numprocesses 2 $(PYTEST_ARGS)

clean:
	rm -rf $(VENV) $(CONTAINER_VENV) $(ORACLES_VENV) $(EDGE_VENV) $(EXTRAS_VENV) $(SITE_VENV) $(DEMO_OUT) $(DEMO_FULL_OUT) .assets
	rm -rf build dist
	rm -rf .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
