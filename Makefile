# `make test` is all that CI runs. It needs only python3 (3.11 or newer): the packages come from the interpreter in use
# where it has them all, else from .venv, which is made at the first call.

PYTHON ?= python3
# The tests start thousands of processes, which would compile all modules again and again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: test test-ui check format native lock vendor pictures clean

test:
	@set -e; python=$$($(PYTHON) -m lab.bootstrap --dev); \
	$$python -m ruff format --check .; \
	$$python -m ruff check .; \
	$$python -m mypy --strict; \
	$$python -m pytest --numprocesses auto --benchmark-disable

test-ui: ## only the tests in a real browser; needs Chromium and its driver: apt-get install chromium chromium-driver
	@set -e; python=$$($(PYTHON) -m lab.bootstrap --dev); \
	$$python -m pytest -m browser -rs tests/browser

check: ## everything of `test` but the tests
	@set -e; python=$$($(PYTHON) -m lab.bootstrap --dev); \
	$$python -m ruff format --check .; \
	$$python -m ruff check .; \
	$$python -m mypy --strict

native: ## compile the hot modules (docs/native.md)
	@set -e; python=$$($(PYTHON) -m lab.bootstrap --dev); \
	$$python run_lab.py native

format:
	@set -e; python=$$($(PYTHON) -m lab.bootstrap --dev); \
	$$python -m ruff check --fix --quiet . || true; \
	$$python -m ruff format .

# New exact versions of all packages, from pyproject.toml. Wants pip-tools, which is no requirement of the project.
COMPILE = -m piptools compile --quiet --upgrade --strip-extras --allow-unsafe --annotation-style=line --no-header \
	--no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-emit-options

lock:
	@set -e; python=$$($(PYTHON) -m lab.bootstrap --dev); \
	$$python -m pip install --quiet pip-tools; \
	$$python $(COMPILE) --output-file requirements.txt pyproject.toml; \
	$$python $(COMPILE) --extra dev --output-file requirements-dev.txt pyproject.toml; \
	$$python $(COMPILE) --extra engines --output-file requirements-engines.txt pyproject.toml; \
	sed -i '1i # Exact versions of all packages that runs on other engines need; see `make lock`.' \
		requirements-engines.txt; \
	sed -i '1i # Exact versions of all packages that a run needs; see `make lock`.' requirements.txt; \
	sed -i '1i # Exact versions of all packages that tests and checks need, those of a run among them; see `make lock`.' \
		requirements-dev.txt

vendor: ## the JavaScript of others again, as vendor.toml lists it; needs npm
	$(PYTHON) lab/show/static/vendor/fetch.py

pictures: ## the pictures of the docs again, from real runs; needs chromium
	@set -e; python=$$($(PYTHON) -m lab.bootstrap --dev); \
	$$python docs/pictures/take.py

clean:
	rm -rf .native .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks
	find lab nodeproc tests -name __pycache__ -type d -prune -exec rm -rf {} +
