# Everything starts here: `make serve` and `make test` set themselves up on a fresh machine with Python 3.11+ and git.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SERVE_ARGS ?=

.PHONY: serve test test-slow check format lock bench demo-models support-table clean

serve: $(VENV)/.ready  ## serve on 127.0.0.1:8000 (SERVE_ARGS="--port 9000" for more)
	$(BIN)/python main.py $(SERVE_ARGS)

test: check  ## everything that must pass
	$(BIN)/python -m pytest -m "not slow" --cov --cov-report=term:skip-covered

test-slow: $(VENV)/.dev-ready  ## what takes minutes
	$(BIN)/python -m pytest -m slow

check: $(VENV)/.dev-ready  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev-ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev-ready  ## overhead per job against Inseq called directly and its command line; and load
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.service
	$(BIN)/python -m benchmarks.load

support-table: $(VENV)/.dev-ready  ## try every method on every model family again, and write docs/support.md
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.support_table > docs/support.md

demo-models: $(VENV)/.ready  ## train the bundled models again
	$(BIN)/python -m demo_models.train

# Dependencies are pinned in requirements.lock (to run) and requirements-dev.lock (to run, check and test).
lock: $(VENV)/.dev-ready  ## pin the newest versions that pyproject.toml allows
	$(BIN)/python -m pip install --quiet pip-tools
	$(BIN)/pip-compile --quiet --upgrade --strip-extras --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-header --output-file requirements.lock pyproject.toml
	$(BIN)/pip-compile --quiet --upgrade --strip-extras --extra dev --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-header --constraint requirements.lock --output-file requirements-dev.lock pyproject.toml
	sed -i 's/^\(torch==[0-9.]*\)+cpu/\1/' requirements.lock requirements-dev.lock  # any build of this version

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.ready: requirements.lock | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@touch $@

$(VENV)/.dev-ready: requirements-dev.lock | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.lock
	@touch $@ $(VENV)/.ready

clean:
	rm -rf $(VENV) .coverage .pytest_cache .mypy_cache .ruff_cache .hypothesis
