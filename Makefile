# make repro: everything, from a bare machine to the report. make test: the tests. `make setup` is implied by both.
PYTHON ?= python3
BIN := .venv/bin
# DVC runs the stages' `python`: the environment's must come first, and no other environment leak in.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export VIRTUAL_ENV := $(CURDIR)/.venv
unexport PYTHONPATH PYTHONHOME
# uv does not read pip's settings: hand over where local wheels lie, if anywhere.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)

.PHONY: setup repro repro-parallel test browser lint bench lock clean

setup: $(BIN)/.installed

$(BIN)/.installed: requirements.txt constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("error: Python 3.11 or newer is needed, $(PYTHON) is " + sys.version.split()[0] + ": try make PYTHON=python3.12") if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --compile-bytecode --python $(BIN)/python -r requirements.txt -c constraints.txt
	touch $@

# Several stages at a time: on a CPU as many as there are cores, up to 4; with GPUs one on each. WORKERS=1: one after the
# other, with live progress bars; GPUS=0,1: on these.
repro repro-parallel: setup
	$(BIN)/python -m tools.compose --check
	$(BIN)/python -m tools.parallel $(if $(GPUS),--gpus $(GPUS)) $(if $(WORKERS),--workers $(WORKERS))

test: setup  # files two at a time, each on one core
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

# For tests/test_page.py, which is skipped where there is no Chromium.
browser:
	@command -v "$(POFX_BROWSER)" || command -v chromium || command -v chromium-browser || command -v google-chrome || { \
	  command -v apt-get > /dev/null || { echo "error: install Chromium, or set POFX_BROWSER=/path/to/it" >&2; exit 1; }; \
	  as=; [ "$$(id -u)" = 0 ] || as=sudo; \
	  $$as apt-get update -qq && DEBIAN_FRONTEND=noninteractive $$as apt-get install -qq -y --no-install-recommends chromium; \
	}

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: setup  # one by one: a peer that cannot be had leaves its own rows empty, not the others'
	@grep -v '^#' requirements-bench.txt | while read -r peer; do \
	    $(BIN)/uv pip install --quiet --python $(BIN)/python "$$peer" -c constraints.txt \
	    || echo "warning: $$peer cannot be installed, its rows will say so" >&2; done
	$(BIN)/python -m benchmarks.run

lock: setup  # renew constraints.txt from requirements.txt and requirements-bench.txt
	env -u UV_FIND_LINKS uv pip compile --quiet --upgrade --universal --python-version 3.11 --no-annotate --no-header requirements.txt requirements-bench.txt -o constraints.txt

clean:  # outputs and scratch; DVC's cache stays, so that `make repro` restores what was trained
	rm -rf data models samples features report runs dvc_plots .pytest_cache .ruff_cache
