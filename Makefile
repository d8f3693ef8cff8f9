# Everything a newcomer needs: `make run` and `make test`. Both set up what they use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Tests at the same time; 0 is one after the other. Those that measure come last, and always alone. Two at a time are no faster
# on two processors, where servers and tracing need both, and tests that wait for milliseconds then miss them.
TESTS_AT_ONCE ?= 0
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.DEFAULT_GOAL := help
.PHONY: help run test check unit prove bench bench-ratelimit bench-websocket bench-worker lock clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(VENV)/runtime ## start the service, its admin listener and a demo backend; Ctrl-C stops all
	@exec $(BIN)/python -m service run

test: check ## lint, types, layers, then every test but the long proofs, with the coverage gate
	$(BIN)/coverage erase
	HYPOTHESIS_PROFILE=thorough $(BIN)/coverage run -m pytest -m "not prove and not alone" -n $(TESTS_AT_ONCE) --dist loadfile
	HYPOTHESIS_PROFILE=thorough $(BIN)/coverage run -m pytest -m "alone and not prove"
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

check: $(VENV)/development ## ruff, mypy --strict and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: $(VENV)/development ## the tests worth running on every save
	$(BIN)/pytest tests/unit -n $(TESTS_AT_ONCE)

prove: $(VENV)/development ## the long proofs: load, chaos, soak
	HYPOTHESIS_PROFILE=thorough $(BIN)/pytest -m prove

bench: $(VENV)/development ## time the library beside its peers, in one run
	$(BIN)/python -m bench

bench-ratelimit: $(VENV)/development ## the rate limiter beside its peers: five minutes, and the machine to itself
	$(BIN)/python -m bench ratelimit

bench-worker: $(VENV)/development ## the parking worker beside its peers: an hour, and the machine to itself
	$(BIN)/python -m bench worker

bench-websocket: $(VENV)/development ## WebSockets, events and channels beside their peers: an hour, and the machine to itself
	$(BIN)/python -m bench websocket

lock: $(VENV)/development ## pin the ranges of pyproject.toml, with hashes
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-package seawall \
	    --extra service pyproject.toml --custom-compile-command "make lock" --output-file requirements.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-package seawall \
	    --extra service --group dev pyproject.toml --custom-compile-command "make lock" --output-file requirements-dev.txt

clean: ## remove the environment, the database and every cache
	rm -rf $(VENV) var dist .coverage* .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis

$(VENV)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "Seawall needs Python 3.11 or newer; this is $$($(PYTHON) --version). Set PYTHON=/path/to/python3.11."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/runtime: $(VENV)/python requirements.txt
	$(PIP) install --require-hashes -r requirements.txt
	@touch $@

$(VENV)/development: $(VENV)/python requirements-dev.txt
	$(PIP) install --require-hashes -r requirements-dev.txt
	@touch $@ $(VENV)/runtime
