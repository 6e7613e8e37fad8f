# `make test` and `make demo` do all the set-up on a bare machine; no other step is needed.
# The set-up is done once and again whenever pyproject.toml changes; the wheel is built and installed anew every time, in seconds.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
TORCH := torch==2.13.0
BIN := .venv/bin
WORKERS ?= 2
SHARED = --numprocesses $(WORKERS) --dist worksteal # so that tests which share a fixture mostly stay together

.PHONY: help setup wheel test test-slow test-versions release lint demo oncall-demo picture bench bench-gpu bench-detectors faults clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-15s %s\n", $$1, $$2}'

setup: .venv/.stamp ## virtual environment, the pinned torch, Prometheus where apt can install it

wheel: setup ## builds resmon's wheel from this checkout and installs it into .venv
	bash .ci/wheel

test: wheel ## the tests that take seconds, against the wheel
	cd .venv/tested && ../bin/python -m pytest -m "not slow" $(SHARED)

test-slow: wheel ## the others
	cd .venv/tested && ../bin/python -m pytest -m slow $(SHARED)

test-versions: wheel ## the oldest and newest Python and torch that this machine can install (docs/versions.md)
	bash .ci/versions

release: setup ## checks that this commit can be released and builds what is uploaded into dist/; uploads nothing
	bash .ci/release

lint: setup ## ruff and mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

demo: wheel ## train on real digits with the live view, then let it blow up
	$(BIN)/resmon demo

oncall-demo: wheel ## from a bad step to the pager: agent, Prometheus, Alertmanager and a page, on this machine
	$(BIN)/python examples/oncall.py

picture: wheel ## the pictures in docs/, anew from the demonstration
	$(BIN)/python -m tests.page.picture
	$(BIN)/python -m tests.page.numbers
	$(BIN)/python -m tests.portrait.notebooks

bench: wheel ## step time with and without resmon and its alternatives
	$(BIN)/python -m benchmarks.run
	$(BIN)/python -m benchmarks.house
	$(BIN)/python -m benchmarks.reads
	$(BIN)/python -m benchmarks.nonfinite
	$(BIN)/python -m benchmarks.replay
	$(BIN)/python -m benchmarks.page

bench-gpu: wheel ## likewise on an NVIDIA GPU, and how often the host waits for it
	$(BIN)/python -m benchmarks.run --device cuda

bench-detectors: wheel ## how soon a change in a stream is told, against river's detectors at equal false alarms
	$(BIN)/python -m benchmarks.detectors

faults: wheel ## put faults into trainings: what resmon finds, what it names, and what it says of healthy ones
	$(BIN)/python -m benchmarks.faults

clean: ## remove what the set-up and the tools made; runs/ stays
	rm -rf .venv resmon/*/_native.*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch stands in the one command that installs everything, so that nothing can replace the pinned version.
.venv/.stamp: pyproject.toml .ci/packages hatch_build.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo 'resmon needs Python 3.11 or newer; name one: make PYTHON=python3.12 ...' >&2; exit 1; }
	PYTHON=$(PYTHON) bash .ci/packages
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@bash .ci/progress "installing $(TORCH) and what resmon, its tests and its tools need into .venv: some two minutes, the first time" \
		$(BIN)/python -m pip install --quiet $(TORCH) '.[dev]'
	touch $@
