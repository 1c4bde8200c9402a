# The two commands: `make train` and `make test`. Both set up .venv on first use.
PY := .venv/bin/python
TINY := launch/configs/tiny-cpu.yaml
CONFIG ?= $(TINY)

.PHONY: help train train-real ui tiny-model check unit test test-slow test-ui test-real test-faults lint style types docs docs-serve dashboard chaos bench bench-sync bench-packing bench-algorithm cluster-up cluster-train cluster-down setup setup-dev setup-real clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

setup:  ## install the pinned CPU set into .venv
	@requirements/install.sh

setup-dev: setup  ## the same with the tools for tests and lint
	@requirements/install.sh dev

setup-real: setup  ## the same with a real small model (98 MB) and real tasks
	@requirements/install.sh real

train: setup  ## train; CONFIG=... and ARGS="key=value ..." change what
	$(PY) launch/train.py --config $(CONFIG) $(ARGS)

train-real: setup-real  ## train a language model of 135 million parameters on easy tasks, in 15 minutes
	$(PY) launch/train.py --config launch/configs/smollm2-cpu.yaml $(ARGS)

ui: setup  ## chat with trained models and look at runs in a browser; ARGS="--port 8000"
	$(PY) launch/ui.py $(ARGS)

check: setup-dev  ## lint, types and unit tests side by side, in a minute or so: before every commit
	@$(MAKE) --no-print-directory -j 3 --output-sync=target style types unit

unit: setup-dev  ## the unit tests alone; ARGS="-k name" picks some
	$(PY) -m pytest tests/unit -n 2 --dist worksteal -m "not slow" $(ARGS)

test: setup-dev tiny-model  ## run the tests, two files at a time; ARGS="-k name" picks some
	$(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow and not ui and not real" $(ARGS)

# Each test has a limit of time, and on a fresh machine the first one would build the model within it.
tiny-model: setup
	@$(PY) -c "from adagrpo_ray.config import load_config as c; from adagrpo_ray.model.pretrained import resolve_model as m; m(c('$(TINY)'))"

test-slow: setup-dev  ## the tests that make test leaves out: whole runs under faults, more combinations (half an hour)
	$(PY) -m pytest -m slow $(ARGS)

test-ui: setup-dev  ## the web pages in headless Chromium, which apt-get installs where there is none (5 minutes)
	@command -v chromium >/dev/null || $(if $(filter 0,$(shell id -u)),,sudo) apt-get install -y chromium
	$(PY) -m pytest -m ui $(ARGS)

test-real: setup-dev setup-real  ## the tests on a real model of 135 million parameters
	$(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m real $(ARGS)

test-faults: setup-dev  ## the tests that inject faults, ten times in a row on a busy machine (hours); ARGS="--times 3 tests/faults/test_fleet.py"
	$(PY) -m tests.support.repeated $(ARGS)

lint: style types  ## ruff, mypy and the check of plain English

style: setup-dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	$(PY) -m tests.support.language

types: setup-dev
	.venv/bin/mypy

docs: setup-dev  ## the documentation as a site in site/, with every setting; a broken link is an error
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --quiet && echo site/index.html

docs-serve: setup-dev  ## the same at http://127.0.0.1:8000, built again as pages change
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs serve --watch SECURITY.md --watch adagrpo_ray/config --watch adagrpo_ray/runs

dashboard: setup  ## write Grafana's dashboard out of the registry of metrics
	$(PY) -c "from pathlib import Path; from adagrpo_ray.tracking.grafana import as_json; \
		Path('cluster/grafana/adagrpo.json').write_text(as_json())"

chaos: setup-dev  ## a run of 30 steps under 16 faults against the same run left alone; ARGS="--steps 10 --faults 4"
	$(PY) -m tests.support.chaos $(ARGS)

bench: setup-dev setup-real  ## tokens per second against TRL and the limits, on a toy and a real model; 256 actors simulated (an hour)
	$(PY) tests/benchmarks/bench.py $(ARGS)

bench-sync: setup  ## bytes and seconds of a sync for the adapter of a 1.7 B model
	$(PY) tests/benchmarks/sync.py $(ARGS)

bench-packing: setup-real  ## seconds of an update by how samples are packed, on a real model (20 minutes)
	$(PY) tests/benchmarks/packing.py $(ARGS)

bench-algorithm: setup-dev  ## GRPO, DAPO and adaptive variants at equal cost on the embedded task (an hour)
	$(PY) tests/benchmarks/algorithm.py $(ARGS)

cluster-up:  ## a Ray cluster in containers: a head, rollout workers, a learner; settings are in docker/.env
	@docker/cluster.sh up

cluster-train: setup  ## the same as train, as a job on that cluster; the adapter comes to runs/
	RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=docker/secrets/ray_token $(PY) launch/submit.py -- --config $(CONFIG) \
		run.output_dir=/runs rollout.actors=$(or $(ROLLOUTS),2) learner.ranks=$(or $(LEARNERS),1) \
		rollout.resources.rollout=1 learner.resources.learner=1 $(ARGS)

cluster-down:  ## stop that cluster; runs stay
	@docker/cluster.sh down

clean:  ## remove .venv and caches; runs stay
	rm -rf .venv site .pytest_cache .mypy_cache .ruff_cache .hypothesis
