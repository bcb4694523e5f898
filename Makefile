# Two commands on a fresh machine: `make run` and `make test`. Both set up what they need; a second time that costs nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
export PATH := $(CURDIR)/$(BIN):$(PATH)
# neither Prefect nor DVC phones home
export DO_NOT_TRACK := 1
export DVC_NO_ANALYTICS := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false

.PHONY: run test test-long check docs flow serve setup lock pretrain clean

run: setup  ## the main job: the whole pipeline on what params.yaml says, then its table and its report
	dvc repro
	topwork summary
	@echo "for the commands of the README: source .venv/bin/activate"

test: setup check  ## lint, types, import contract, tests
	OMP_NUM_THREADS=1 python -m pytest -n auto --dist loadgroup --no-loadscope-reorder

test-long: setup  ## many kills, long fuzzing, the real case
	python -m pytest -m "long and not gpu" --timeout 3600

check: setup
	ruff check .
	ruff format --check .
	mypy
	lint-imports

docs: setup  ## the documentation, into site/; a broken link is an error
	python docs/generate.py
	python -m zensical build --strict

flow: setup  ## the same pipeline as a Prefect flow
	python -m flows.pipeline

serve: setup  ## a Prefect server, the deployments of prefect.yaml and a worker, on this machine, until Ctrl-C
	python -m flows.serve

pretrain: setup  ## train the shipped detector again (about an hour on two cores)
	cd pretrain && dvc repro

setup: $(STAMP)

# a changed lock starts from nothing; the lock is a constraint as well, since pip would take another version of a package asked for with extras
$(VENV)/locked: requirements.lock
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements.lock --constraint requirements.lock
	touch $@

$(STAMP): $(VENV)/locked pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

lock:  ## renew requirements.lock (needs uv)
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header \
		--extra dev --extra hub pyproject.toml --output-file requirements.lock

clean:  ## remove what the pipeline made; the DVC cache stays
	rm -rf out data/demo .topwork
