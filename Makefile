# Every target sets itself up: a virtual environment in .venv, the pinned libraries of constraints.txt, this package.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || echo python3)
VENV ?= .venv
PIP_INSTALL = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: quickstart alignment judge test lint clean

quickstart: $(VENV)/.installed-quickstart
	TRANSFORMERS_VERBOSITY=error $(VENV)/bin/python scripts/quickstart.py $(ARGS)

alignment: $(VENV)/.installed-benchmarks
	TRANSFORMERS_VERBOSITY=error $(VENV)/bin/python scripts/run_alignment.py $(ARGS)

judge: $(VENV)/.installed-benchmarks
	TRANSFORMERS_VERBOSITY=error $(VENV)/bin/python scripts/measure_judge.py $(ARGS)

test: $(VENV)/.installed-tests
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/python -m pytest $(ARGS)

lint: $(VENV)/.installed-tests
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

$(VENV)/.installed-%: pyproject.toml constraints.txt
	@echo "installing into $(VENV) (a few minutes the first time)"
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, got " + sys.version)'
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) "torch==2.13.0"
	$(PIP_INSTALL) --editable ".[$*]"
	touch $@

clean:
	rm -rf $(VENV) build dist
