# The things that a developer does, each of which first sets up what is missing.
PYTHON ?= python3.11
PYTHON := $(shell command -v $(PYTHON) 2>/dev/null || command -v python3)
BIN := .venv/bin
STAMP := .venv/.complete
# Written bytecode spares each process that a test starts a third of its start; some images forbid it for all of Python.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help setup demo check test test-long stress bench guard fmt frameworks lock audit

help: ## Say what there is
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile

setup: $(STAMP) ## Make .venv with everything in it, at the locked versions

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Midstream needs Python 3.11 or newer; this is " + sys.version.split()[0] + " (set PYTHON=...)")'
	@echo "Setting up .venv (once, about a minute)..."
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $(STAMP)

demo: setup ## One answer, cut twice in mid-sentence, resumed at the exact token
	@$(BIN)/midstream demo

check: setup ## Formatting, lint, types, boundaries between the packages, licences and advisories of what is locked
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/python .ci/check_packages.py
	@$(BIN)/midstream metrics --markdown | diff docs/reference/metrics.md - || (echo "docs/reference/metrics.md is out of date: midstream metrics --markdown > docs/reference/metrics.md"; exit 1)
	@$(BIN)/python deploy/grafana/make_dashboards.py --check
	@$(BIN)/midstream settings --markdown | diff docs/reference/settings.md - || (echo "docs/reference/settings.md is out of date: midstream settings --markdown > docs/reference/settings.md"; exit 1)

# What failed beside the others is tried once more, one after the other: a fault fails again, a machine that was busy does not.
AGAIN = { test $$? = 1 && echo "== Once more, one after the other: what failed beside the others" && \
	$(BIN)/python -m pytest --last-failed --last-failed-no-failures none; }

# Seven processes also on two cores: most of the time tests wait. A part (ARGS) is run by one, which starts at once.
test: setup ## The tests, or a part: make test ARGS="tests/unit -k ids"; what this machine lacks is skipped with its reason
	@$(BIN)/python -m pytest -n $(or $(WORKERS),$(if $(ARGS),0,7)) --dist loadfile $(or $(ARGS),-m "not long") $(if $(ARGS),,|| $(AGAIN))

test-long: setup ## The tests that take minutes: faults and odd input at random, all versions of Redis, frameworks
	@$(BIN)/python -m pytest -n $(or $(WORKERS),5) --dist loadfile -m long $(ARGS) || $(AGAIN)

stress: setup ## Faults of every kind, at random but seeded, with exact invariants: make stress SEED=7 MINUTES=10 ARGS="--redis cluster"
	@$(BIN)/python -m tests.stress --seed $(or $(SEED),1) --minutes $(or $(MINUTES),1) $(ARGS)

bench: setup ## What it costs, beside the ordinary way to do it: make bench ARGS=--quick
	@$(BIN)/midstream bench $(ARGS)

guard: setup ## What one event costs, counted: fails where a change made it dearer
	@$(BIN)/midstream bench guard

fmt: setup ## Format the code
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

frameworks: .venv-frameworks/.made ## Make .venv-frameworks, in which the tests run the examples of agent frameworks

.venv-frameworks/.made: pyproject.toml
	@$(PYTHON) -m venv .venv-frameworks
	@.venv-frameworks/bin/python -m pip install --quiet --disable-pip-version-check -e '.[frameworks]'
	@touch $@

lock: ## Renew requirements.lock from pyproject.toml (needs uv)
	@uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes --quiet --no-annotate --no-header -o requirements.lock

# --strict: a package that the database cannot be asked about fails, too.
audit: ## Ask a database for advisories about requirements.lock (needs pip-audit and the internet)
	@pip-audit --strict --require-hashes --disable-pip --requirement requirements.lock
