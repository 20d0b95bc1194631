# The build of torch. Any build of this version works; for a GPU, set your own, for example
#   make demo TORCH="torch==2.13.0+cu130 --index-url <index of the torch builds>"
# Every pip command uses the pins of constraints.txt, so that none replaces the build chosen here.
TORCH ?= torch==2.13.0

PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# popi's default model ships with the package: nothing here needs a model hub.
export HF_HUB_OFFLINE ?= 1

# If an image sets this, every command started by a test would compile popi again.
unexport PYTHONDONTWRITEBYTECODE

# Tests run in one process per core, with all tests of a file in one process because they share servers. Files run in the
# order of collection, whole commands first: a long file at the end would leave the other processes idle.
WORKERS ?= -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# A warning (a broken link, an undocumented name) fails the build. The variable silences an advertisement.
SITE := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The texts that proselint reads. Its checks of typography are off, since they trip over code.
PROSE := $(wildcard *.md) examples/README.md clients/js/README.md docs

.PHONY: demo test slow slow-vllm check bench bench-gateway torture results docs site pictures format clean help lock licences sbom audit packages release

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 22

demo: $(VENV)/.stamp  ## the whole loop in minutes: train, evaluate, report in runs/demo/
	$(BIN)/popi demo

test: $(VENV)/.stamp-dev  ## all tests except the slow ones
	$(BIN)/python -m pytest -m "not slow" $(WORKERS)

slow: $(VENV)/.stamp-dev  ## the slow tests
	$(BIN)/python -m pytest -m slow

slow-vllm: $(VENV)/.stamp-dev  ## the tests against a real vLLM: .ci/vllm make slow-vllm
	$(BIN)/python -m pytest -m slow -s tests/end_to_end/test_real_vllm.py

check: $(VENV)/.stamp-dev  ## lint, format, types, generated docs up to date, prose of the docs, the site builds
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/generate.py --check
	$(BIN)/proselint check --config docs/proselint.json $(PROSE)
	$(SITE) --site-dir $(VENV)/site

site: $(VENV)/.stamp-dev  ## the documentation site, in site/: open site/index.html
	$(SITE)

pictures: $(VENV)/.stamp-dev  ## the pictures in docs/images/ of popi's output and pages (needs Chromium)
	$(BIN)/python docs/pictures.py

format: $(VENV)/.stamp-dev  ## format the sources for `make check`
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.stamp-dev  ## speed and memory of a step, compared to the released pattern and TRL (BENCH="--quick", …)
	$(BIN)/python benchmarks/step.py $(BENCH)

bench-gateway: $(VENV)/.stamp-dev  ## the gateway against the upstream alone and LiteLLM's proxy (which it installs)
	$(BIN)/python benchmarks/gateway.py

# TORTURE: options for the harness, such as --quick or --only disk. PART: which of the two.
PART ?= training $(if $(wildcard benchmarks/torture/serving.py),serving)
torture: $(VENV)/.stamp-dev  ## faults in training and serving, from SIGKILL to a full disk; must lose nothing (TORTURE=--quick, PART=training)
	for part in $(PART); do $(BIN)/python benchmarks/torture/$$part.py $(TORTURE) || exit 1; done

results: $(VENV)/.stamp-dev  ## all tables of docs/results.md and README.md from this commit; takes hours (QUICK=1: small, in minutes)
	$(BIN)/python docs/make_results.py $(if $(QUICK),--quick) $(if $(ONLY),--only $(ONLY))

docs: $(VENV)/.stamp-dev  ## regenerate the generated parts of docs/ and the JSON Schemas
	$(BIN)/python docs/generate.py
	if [ -d clients/js/node_modules ]; then cd clients/js && npm run --silent generate; fi

lock: $(VENV)/.stamp-release  ## requirements*.lock, with hashes, from pyproject.toml and constraints.txt
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python release/lock.py

licences: $(VENV)/.stamp-release $(VENV)-locked/.stamp  ## docs/licences.md: the licence of every package in the lock
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python release/sbom.py $(VENV)-locked/bin/python --licences docs/licences.md

sbom: $(VENV)/.stamp-release $(VENV)-locked/.stamp  ## dist/popi.cdx.json: the bill of materials (CycloneDX) of the lock
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python release/sbom.py $(VENV)-locked/bin/python --out dist/popi.cdx.json

audit: $(VENV)/.stamp-release  ## known vulnerabilities of the packages in the lock, where the service can be reached
	$(BIN)/python release/audit.py

packages: $(VENV)/.stamp-dev  ## sdist and wheel in dist/
	$(BIN)/python release/release.py --only packages

release: $(VENV)/.stamp-release  ## all steps of a release; takes hours, publishes nothing (RELEASE="--from STEP", ...)
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python release/release.py $(RELEASE)

clean:  ## remove the environment and caches; runs/ stays
	rm -rf $(VENV) $(VENV)-locked .pytest_cache .mypy_cache .ruff_cache

# Stamps make repeated calls fast: pip only runs again when the pins or dependencies change.
$(VENV)/.stamp: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "popi needs Python 3.11 or newer; name one with PYTHON=..." >&2; exit 1; }
	@echo "installing into $(VENV) (a few minutes the first time) ..."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH)
	$(PIP) -e '.[train]'
	@touch $@

$(VENV)/.stamp-dev: $(VENV)/.stamp
	$(PIP) -e '.[train,serve,otel,dev,docs]'
	@touch $@

$(VENV)/.stamp-release: $(VENV)/.stamp-dev
	$(PIP) -e '.[release]'
	@touch $@

# A separate environment with only the locked packages, which the bill of materials describes.
$(VENV)-locked/.stamp: requirements.lock
	rm -rf $(VENV)-locked
	$(PYTHON) -m venv --without-pip $(VENV)-locked
	$(BIN)/python -m pip --python $(VENV)-locked install --quiet --disable-pip-version-check --no-deps $(TORCH)
	$(BIN)/python -m pip --python $(VENV)-locked install --quiet --disable-pip-version-check --no-deps \
		--require-hashes -r requirements.lock
	@touch $@
