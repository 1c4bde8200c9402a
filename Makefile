# The two commands: `make train` and `make test`. Both set up .venv on first use.
PY := .venv/bin/python
TINY := launch/configs/tiny-cpu.yaml
CONFIG ?= $(TINY)
# Runs pytest on two files at a time.
FILES := $(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: help train train-real train-episodes ui tiny-model check unit test test-long test-slow test-ui test-real test-gpu test-faults lint style types docs docs-serve picture dashboard chaos bench bench-sync bench-packing bench-adaptive cluster-up cluster-train cluster-down setup setup-dev setup-real clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

setup:  ## install the pinned CPU set into .venv
	@requirements/install.sh

setup-dev: setup  ## install the CPU set and the tools for tests and lint
	@requirements/install.sh dev

setup-real: setup  ## install the CPU set, a real small model (98 MB) and real tasks
	@requirements/install.sh real

train: setup  ## train; choose another task with CONFIG=... and ARGS="key=value ..."
	$(PY) launch/train.py --config $(CONFIG) $(ARGS)

train-real: setup-real  ## train a language model of 135 million parameters on easy tasks, in 15 minutes
	$(PY) launch/train.py --config launch/configs/smollm2-cpu.yaml $(ARGS)

train-episodes: setup  ## train on episodes of several turns: a tiny model learns to call a tool, and a guessing game
	$(PY) launch/train.py --config launch/configs/tiny-calculator.yaml $(ARGS)
	$(PY) launch/train.py --config launch/configs/tiny-guessing.yaml $(ARGS)

ui: setup  ## chat with trained models and view runs in a browser; ARGS="--port 8000"
	$(PY) launch/ui.py $(ARGS)

check: setup-dev  ## run lint, types and unit tests in parallel, in about a minute: before every commit
	@$(MAKE) --no-print-directory -j 3 --output-sync=target style types unit

# Without the first line each of pytest's processes may compile all modules again. No unit test reads the log, and its
# capture visits every logger of all libraries three times for each test.
unit: export PYTHONDONTWRITEBYTECODE =
unit: setup-dev  ## run only the unit tests; ARGS="-k name" selects some
	$(PY) -m pytest tests/unit -n 2 --dist worksteal -p no:logging -m "not slow" $(ARGS)

test: setup-dev tiny-model  ## run the tests, two files at a time, in ten minutes; ARGS="-k name" selects some
	$(FILES) -m "not long and not slow and not ui and not real and not gpu" $(ARGS)

test-long: setup-dev tiny-model  ## run the tests that start several programs or engines (15 minutes); CI runs them, too
	$(FILES) -m "long and not slow" $(ARGS)

# Builds the tiny model before the tests, since the first test would have to build it within its time limit.
tiny-model: setup
	@$(PY) -c "from adagrpo_ray.config import Config; from adagrpo_ray.model.pretrained import resolve_model as m; m(Config.load('$(TINY)'))"

test-slow: setup-dev  ## run the tests that CI leaves out: whole runs under faults, more combinations (half an hour)
	$(PY) -m pytest -m slow $(ARGS)

test-ui: setup-dev  ## test the web pages in headless Chromium, which apt-get installs if it is missing (5 minutes)
	@command -v chromium >/dev/null || $(if $(filter 0,$(shell id -u)),,sudo) apt-get install -y chromium
	$(PY) -m pytest -m ui $(ARGS)

test-real: setup-dev setup-real  ## run the tests on a real model of 135 million parameters (8 minutes); CI runs them, too
	$(FILES) -m real $(ARGS)

# Without `setup`, which installs the CPU set. The learner is measured by a program of its own, since its peak of memory
# would count those of the tests.
test-gpu:  ## measure the learner and test all on this machine's GPU (half an hour); PY=python, of an environment with requirements/gpu.txt and dev.txt
	@ended=0; $(PY) -m tests.gpu.learner_alone || ended=1; $(PY) -m pytest tests/gpu -q $(ARGS) || ended=1; exit $$ended

test-faults: setup-dev  ## run the tests that inject faults, ten times in a row on a busy machine (hours); ARGS="--times 3 tests/faults/test_fleet.py"
	$(PY) -m tests.support.repeated $(ARGS)

lint: style types  ## run ruff, mypy and the check of plain English

style: setup-dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	$(PY) -m tests.support.language

types: setup-dev
	.venv/bin/mypy

docs: setup-dev  ## build the documentation as a site in site/, with every setting; a broken link is an error
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --quiet && echo site/index.html

docs-serve: setup-dev  ## serve the documentation at http://127.0.0.1:8000, rebuilt when pages change
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs serve --watch SECURITY.md --watch adagrpo_ray/config --watch adagrpo_ray/runs

picture: setup-dev  ## save a picture of the run viewer with the newest run; needs make test-ui's Chromium; ARGS="runs docs/viewer.png"
	$(PY) -m tests.support.picture $(or $(ARGS),runs)

dashboard: setup  ## write Grafana's dashboard from the registry of metrics
	$(PY) -c "from pathlib import Path; from adagrpo_ray.tracking.grafana import as_json; \
		Path('cluster/grafana/adagrpo.json').write_text(as_json())"

chaos: setup-dev  ## compare a run of 30 steps under 16 faults with the same run without faults; ARGS="--steps 10 --faults 4"
	$(PY) -m tests.support.chaos $(ARGS)

bench: setup-dev setup-real  ## measure tokens per second against TRL and the limits, on a toy and a real model; simulate 256 actors (an hour)
	$(PY) tests/benchmarks/bench.py $(ARGS)

bench-sync: setup  ## measure bytes and seconds of a sync for the adapter of a 1.7 B model
	$(PY) tests/benchmarks/sync.py $(ARGS)

bench-packing: setup-real  ## measure seconds of an update for each packing of samples, on a real model (20 minutes)
	$(PY) tests/benchmarks/packing.py $(ARGS)

bench-adaptive: setup-dev setup-real  ## compare GRPO, DAPO and adaptive rules at equal cost (a day; resumable); ARGS="--section skills --estimate"
	$(PY) tests/benchmarks/adaptive.py $(ARGS)

cluster-up:  ## start a Ray cluster in containers: a head, rollout workers, a learner; settings are in docker/.env
	@docker/cluster.sh up

cluster-train: setup  ## train as a job on the cluster in containers; the adapter is written to runs/
	actors=$$(docker/cluster.sh actors) && \
		RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=docker/secrets/ray_token $(PY) launch/submit.py -- --config $(CONFIG) \
		run.output_dir=/runs $$actors \
		rollout.resources.rollout=1 learner.resources.learner=1 $(ARGS)

cluster-down:  ## stop the cluster in containers; runs stay
	@docker/cluster.sh down

clean:  ## remove .venv and caches; runs stay
	rm -rf .venv site .pytest_cache .mypy_cache .ruff_cache .hypothesis
