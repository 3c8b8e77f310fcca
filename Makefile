# Every target sets itself up: a virtual environment in .venv, the pinned libraries of constraints.txt, this package.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || echo python3)
VENV ?= .venv
PIP_INSTALL = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# The GPU targets run in a Python that has torch for its GPU and Triton already: nothing is installed. Beside these
# gpu-test needs NumPy and pytest (and Hypothesis for one of its files), gpu-bench what pyproject.toml lists for this
# package, matplotlib and tqdm, and flash-linear-attention for a comparison with it.
GPU_PYTHON ?= python3
GPU_RUN = PYTHONPATH=src:kernels:$$PYTHONPATH TRANSFORMERS_VERBOSITY=error $(GPU_PYTHON)

.PHONY: quickstart alignment robustness judge othello kernel-bench length-bench train-bench pipeline-bench state-tracking evaluate app diffusers-tests gpu-bench gpu-test test test-full lint clean

quickstart: $(VENV)/.installed-quickstart
	TRANSFORMERS_VERBOSITY=error $(VENV)/bin/python scripts/quickstart.py $(ARGS)

alignment: $(VENV)/.installed-benchmarks
	TRANSFORMERS_VERBOSITY=error $(VENV)/bin/python scripts/run_alignment.py $(ARGS)

robustness: $(VENV)/.installed-benchmarks
	TRANSFORMERS_VERBOSITY=error $(VENV)/bin/python scripts/robustness.py $(ARGS)

judge: $(VENV)/.installed-benchmarks
	TRANSFORMERS_VERBOSITY=error $(VENV)/bin/python scripts/measure_judge.py $(ARGS)

othello: $(VENV)/.installed-benchmarks
	TRANSFORMERS_VERBOSITY=error $(VENV)/bin/python scripts/othello.py $(ARGS)

kernel-bench: $(VENV)/.installed-benchmarks
	TRANSFORMERS_VERBOSITY=error $(VENV)/bin/python scripts/benchmark_kernels.py --device cpu $(ARGS)

length-bench: $(VENV)/.installed-benchmarks
	TRANSFORMERS_VERBOSITY=error $(VENV)/bin/python scripts/benchmark_prompt_length.py --device cpu --threads 2 $(ARGS)

train-bench: $(VENV)/.installed-benchmarks
	TRANSFORMERS_VERBOSITY=error $(VENV)/bin/python scripts/benchmark_training.py --device cpu --threads 2 $(ARGS)

# make evaluate ARGS="--samples a folder --reference another": FID and the like, see docs/evaluation.md
evaluate: $(VENV)/.installed-metrics
	TRANSFORMERS_VERBOSITY=error $(VENV)/bin/python scripts/evaluate.py $(ARGS)
# make state-tracking ARGS="--tasks s5_swaps --layers 1": some of it; all of it takes hours on two cores
state-tracking: $(VENV)/.installed-benchmarks
	TRANSFORMERS_VERBOSITY=error $(VENV)/bin/python scripts/state_tracking.py $(ARGS)
pipeline-bench: $(VENV)/.installed-benchmarks
	TRANSFORMERS_VERBOSITY=error $(VENV)/bin/python scripts/benchmark_pipeline.py --device cpu --threads 2 $(ARGS)

# make app ARGS="a folder or Hub id": a page in the browser
app: $(VENV)/.installed-app
	TRANSFORMERS_VERBOSITY=error $(VENV)/bin/python scripts/app.py $(ARGS)

# make diffusers-tests ARGS="a checkout of Diffusers' repository": its own tests with our classes; an hour or more
diffusers-tests: $(VENV)/.installed-tests
	$(VENV)/bin/python scripts/run_diffusers_tests.py $(ARGS)

gpu-bench:
	$(GPU_RUN) scripts/benchmark_kernels.py --device cuda $(ARGS)

# All of it, the large grids too; compiling ahead of time needs no GPU and is tested by `make test` and `test-full`.
gpu-test:
	CROSSWKV_TEST_DEVICE=cuda CUBLAS_WORKSPACE_CONFIG=:4096:8 $(GPU_RUN) -m pytest tests/crosswkv_kernels -m "" \
		--ignore tests/crosswkv_kernels/test_ahead_of_time.py $(ARGS)

test: $(VENV)/.installed-tests
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder $(ARGS)

test-full: $(VENV)/.installed-tests
	$(VENV)/bin/python -m pytest --numprocesses 2 --dist load -m full $(ARGS)

lint: $(VENV)/.installed-tests
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

$(VENV)/.installed-%: pyproject.toml constraints.txt
	@echo "installing into $(VENV) (a few minutes the first time)"
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, got " + sys.version)'
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) "pip>=26"  # the one of Python 3.11 takes minutes to resolve what this one does in seconds
	$(PIP_INSTALL) "torch==2.13.0"
	$(PIP_INSTALL) --editable ".[$*]"
	touch $@

clean:
	rm -rf $(VENV) build dist
