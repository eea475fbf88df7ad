# make run: the bundled model through the whole workflow. make test: the tests; make test-slurm: those on a SLURM cluster of their own; make test-crash: every rule killed. make docs: the documentation as a site. Each does its own set-up.
PYTHON ?= python3
CORES ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.complete
RUNTIMES := $(VENV)/.runtimes
DOCS := .venv-docs
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: setup run test test-slurm test-crash check format bench demo docs clean
.DEFAULT_GOAL := run

setup: $(STAMP)

$(STAMP): requirements.lock scripts/set_up.py
	$(PYTHON) scripts/set_up.py --venv $(VENV)

# One line for each finished step; plain snakemake prints all of Snakemake's own lines.
run: $(STAMP)
	@echo "The bundled model through the whole workflow: 4 to 10 minutes on 2 cores. Finished steps are kept."
	PYTHONPATH=scripts snakemake --cores $(CORES) --logger steps $(SNAKEMAKE)

test: $(RUNTIMES)
	python -m pytest $(PYTEST)

# Where these cannot be installed, the tests that load files in them are skipped.
$(RUNTIMES): tests/runtimes.lock $(STAMP)
	@if python -m pip install --quiet --disable-pip-version-check --no-deps -r $<; then touch $@; \
	else echo "The programs of $< could not be installed: tests that load files in them are skipped."; fi

test-slurm: $(STAMP)
	tests/slurm/run.sh $(PYTEST)

test-crash: $(STAMP)
	BITPLAN_CRASHES=all python -m pytest tests/end_to_end/test_crashes.py $(PYTEST)

check: $(STAMP)
	ruff check . && ruff format --check .
	snakefmt --check Snakefile rules
	snakemake --lint

format: $(STAMP)
	ruff check --fix . && ruff format .
	snakefmt Snakefile rules

bench: $(STAMP)
	python benchmarks/walk.py

demo: $(STAMP)
	python scripts/make_demo.py --output demo

# A link that leads nowhere stops it. Its packages have an environment of their own, so that set-up does not wait for them.
docs: $(DOCS)/.complete
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict

$(DOCS)/.complete: docs/requirements.txt
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r docs/requirements.txt
	touch $@

clean:
	rm -rf results logs site .snakemake .pytest_cache .ruff_cache
