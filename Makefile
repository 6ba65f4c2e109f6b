PYTHON ?= python3
BIN := .venv/bin
# DVC runs the stages' `python`: the environment's must come first, and no other environment leak in.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export VIRTUAL_ENV := $(CURDIR)/.venv
unexport PYTHONPATH PYTHONHOME
# uv does not read pip's settings: hand over where local wheels lie, if anywhere.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)

.PHONY: help setup repro test lint bench quality speedrun browser lock clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(BIN)/.installed  ## the environment in .venv, which the other verbs make too if it is missing

$(BIN)/.installed: requirements.txt constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("error: Python 3.11 or newer is needed, $(PYTHON) is " + sys.version.split()[0] + ": try make PYTHON=python3.12") if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --compile-bytecode --python $(BIN)/python -r requirements.txt -c constraints.txt
	touch $@

# Several stages at a time: on a CPU as many as there are cores, up to 4; with GPUs one on each. A single worker shows
# live progress bars.
repro: setup  ## everything, up to the report; WORKERS=1: one stage after the other, GPUS=0,1: one on each GPU
	$(BIN)/python -m tools.compose --check
	$(BIN)/python -m tools.parallel $(if $(GPUS),--gpus $(GPUS)) $(if $(WORKERS),--workers $(WORKERS))

test: setup  ## the tests, two files at a time
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: setup  ## ruff, rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Peers one by one: one that cannot be had leaves its own rows empty, not the others'.
define peers
	@grep -v '^#' requirements-bench.txt | while read -r peer; do \
	    $(BIN)/uv pip install --quiet --python $(BIN)/python "$$peer" -c constraints.txt \
	    || echo "warning: $$peer cannot be installed, its rows will say so" >&2; done
endef

bench: setup  ## speed beside others' code, in twenty minutes; see docs/performance.md
	$(peers)
	$(BIN)/python -m benchmarks.run

quality: setup  ## KID against minutes beside others' code, in hours; PRESETS='cifar10': other data
	$(peers)
	$(BIN)/python -m benchmarks.quality $(PRESETS)

speedrun: setup  ## minutes until KID passes 1.0, 0.5, 0.25 on CIFAR-10; PRESETS='cifar10 night': by presets
	$(BIN)/python -m benchmarks.speedrun $(or $(PRESETS),cifar10 night)

browser:  ## install Chromium, for the tests of the report's page
	@command -v "$(POFX_BROWSER)" || command -v chromium || command -v chromium-browser || command -v google-chrome || { \
	  command -v apt-get > /dev/null || { echo "error: install Chromium, or set POFX_BROWSER=/path/to/it" >&2; exit 1; }; \
	  as=; [ "$$(id -u)" = 0 ] || as=sudo; \
	  $$as apt-get update -qq && DEBIAN_FRONTEND=noninteractive $$as apt-get install -qq -y --no-install-recommends chromium; \
	}

lock: setup  ## renew constraints.txt from requirements.txt and requirements-bench.txt
	env -u UV_FIND_LINKS uv pip compile --quiet --upgrade --universal --python-version 3.11 --no-annotate --no-header requirements.txt requirements-bench.txt -o constraints.txt

clean:  ## remove outputs and scratch; DVC's cache stays, so make repro restores them
	rm -rf data models samples features report runs dvc_plots .pytest_cache .ruff_cache
