# A fresh clone needs Python 3.10 to 3.13 and make; 'make' alone tells what there is to do.
PYTHON ?=
ARGS ?=
export PYTHON

BOOTSTRAP = sh scripts/bootstrap.sh
RUN = .venv/bin/python

.DEFAULT_GOAL := help
.PHONY: help env demo test check lint format mutants gpu-check ops lock doctor clean clean-env

help: ## this list
	@echo "usage: make <target> [PYTHON=python3.12] [ARGS='...']"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' Makefile | awk -F'|' '{printf "%-14s%s\n", $$1, $$2}'

env: ## the environment .venv, from requirements.lock
	@$(BOOTSTRAP) env

demo: env ## environment, toy benchmark, training, evaluation, a rendered video (ARGS: more overrides for training)
	@$(RUN) scripts/demo.py $(ARGS)

test: env ## environment and the tests that take seconds each (ARGS: arguments for pytest)
	@$(RUN) -m pytest $(ARGS)

check: env ## the tests that take longer (marked slow: learning by heart, rehearsals, compilers; ARGS as for test)
	@$(RUN) -m pytest -m slow $(ARGS)

lint: env ## ruff and pyright
	@$(RUN) -m ruff check
	@$(RUN) -m ruff format --check
	@$(RUN) -m pyright

format: env ## format the sources
	@$(RUN) -m ruff check --fix
	@$(RUN) -m ruff format

mutants: env ## break lines one by one and count what the tests notice; hours (ARGS: --count 20 --packages losses)
	@$(RUN) scripts/mutants.py $(ARGS)

gpu-check: env ## build, test, measure and sanitise the CUDA kernels, in ten minutes (OUT: folder of the results)
	@PYTHON=$(RUN) sh scripts/gpu_check.sh

ops: ## build the compiled attention op again
	@$(BOOTSTRAP) ops

doctor: env ## tell whether this installation works
	@$(RUN) -m stdetr doctor

lock: ## resolve requirements.lock again from pyproject.toml
	@$(BOOTSTRAP) uv pip compile pyproject.toml --quiet --universal --python-version 3.10 --generate-hashes \
		--no-header --no-annotate --no-emit-index-url $(LOCK_EXTRAS) --output-file requirements.lock

# Every extra but torchcodec, which needs a system FFmpeg.
LOCK_EXTRAS = --extra sweep --extra export --extra track --extra timm --extra weights --extra peers --extra dev

clean: ## remove caches and build products; data, runs and the environment stay
	@rm -rf build dist cuda_ops/build .pytest_cache .ruff_cache .hypothesis
	@find src tests scripts cuda_ops -type d \( -name __pycache__ -o -name '*.egg-info' \) -prune -exec rm -rf {} + 2>/dev/null || true

clean-env: clean ## remove the environment as well
	@rm -rf .venv .bootstrap
