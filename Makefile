# Everything a developer types. `make` alone lists it.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup setup-node demo test lint fmt rust doc deny python python-lint node node-lint examples bench fuzz sim clean

export PYTHON_ENV := $(CURDIR)/.venv
# One interpreter for every build of the binding, so that nothing is built twice.
export PYO3_PYTHON := $(CURDIR)/.venv/bin/python
export PATH := $(CURDIR)/.venv/bin:$(CURDIR)/.cache/tools/bin:$(PATH)
export CARGO_TERM_COLOR ?= auto
STEP := scripts/step
# Thousands of runs pay for a longer build of our own crates; the others are optimised anyway.
SIM_OPTIMISED := --config profile.dev.package.keybrake.opt-level=2 --config profile.dev.package.keybrake-testkit.opt-level=2

help: ## Show this list
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Check what is needed, make .venv, build the Python package into it
	@scripts/setup

demo: setup ## Watch a refund loop stopped at its cap, a duplicate, a crash, a stop, and why
	@scripts/demo

test: ## Everything CI checks: format, lints, Rust, docs, licences, Python, Node, examples
	@scripts/test

lint: setup ## Only format and lints, all languages
	@$(STEP) fmt cargo fmt --all --check
	@$(STEP) clippy cargo clippy --workspace --all-targets --locked -- -D warnings
	@scripts/python-lint
	@scripts/setup-node
	@scripts/node-lint

fmt: setup setup-node ## Format all languages
	cargo fmt --all
	cd node && node_modules/.bin/biome check --write .
	cd examples/node && ../../node/node_modules/.bin/biome check --write .
	ruff format python examples/python scripts
	ruff check --fix python examples/python scripts

rust: ## Only the Rust tests
	@scripts/rust-tests

doc: ## Build the API documentation; a warning is an error
	@RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked

deny: ## Check licences, banned crates and their sources
	@scripts/deny

python-lint: setup ## Only ruff, mypy --strict and the check of the stub against the binary
	@scripts/python-lint

python: setup ## Only the Python tests; ARGS="-k fork" passes through
	@cd python && pytest $(ARGS)

node: setup-node ## Only the Node tests; ARGS="stripe -t streaming" passes through
	@cd node && node_modules/.bin/vitest run $(ARGS)

node-lint: setup-node ## Only biome and tsc
	@scripts/node-lint

setup-node: ## Install the npm packages, build the native module and the npm package
	@scripts/setup-node

examples: setup ## Run every example against the simulator
	@cd python && pytest tests/test_docs.py

bench: ## Measure authorize and settle, and governed against ungoverned calls
	@scripts/bench

fuzz: ## Coverage-guided fuzzing (nightly Rust and cargo-fuzz); TARGET=name SECONDS_EACH=60
	@scripts/fuzz

sim: ## Simulate a fleet with faults: SEEDS=10000, or SEED=n TRACE=1 for one run (docs/simulation.md)
	@cargo build --quiet --locked -p keybrake-testkit --features sim --bin simulate $(SIM_OPTIMISED)
	@SEED="$(SEED)" SEEDS="$(SEEDS)" FIRST="$(FIRST)" TRACE="$(TRACE)" MUTANT="$(MUTANT)" target/debug/simulate

clean: ## Remove what was built
	rm -rf target .venv .cache
