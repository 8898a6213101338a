# make install  .venv with a tested stack and this package (10 to 15 minutes: mmcv is compiled)
# make demo     trains a RepL detector on generated pictures and shows what it finds, in minutes on two CPU cores;
#               make demo ARGS=all pretrains, trains and evaluates a RepL segmentor as well
# make test     the test suite; make test-fast: a subset in less than two minutes
# make lint     ruff                   make clean   removes what the above wrote
#
# STACK=onedl or STACK=torchvision behind any of them: the same with another tested stack, in an environment of its own.

# The tested stack: openmmlab, onedl or torchvision (requirements/), each in an environment of its own.
STACK ?= openmmlab
VENV ?= .venv$(if $(filter-out openmmlab,$(STACK)),-$(STACK))
# The first Python on the path that the tested stack supports; PYTHON=... chooses another.
PYTHON ?= $(firstword $(foreach p,python3 python3.11 python3.12 python3.10,$(shell \
	$(p) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' >/dev/null 2>&1 && echo $(p))) python3)

.PHONY: install demo test test-fast lint clean
install: $(VENV)/.installed

ifeq ($(filter $(STACK),openmmlab onedl torchvision),)
$(error STACK=$(STACK): expected openmmlab, onedl or torchvision)
endif

$(VENV)/.installed: requirements/$(STACK).txt requirements/install.py setup.cfg pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo 'make: no python3 found; Python 3.10 to 3.12 is needed'; exit 1; }
	$(PYTHON) requirements/install.py $(STACK) $(VENV)
	@touch $@

demo: install
	$(VENV)/bin/python tools/demo/demo.py $(ARGS)

# one thread a process: the threads of two processes would wait for each other; worksteal: long tests come unevenly
PYTEST = OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n auto --dist worksteal
FAST = arms config contract families_doc fusion imports plan readme tables wrong_settings

test: install
	$(PYTEST) $(ARGS)

test-fast: install
	$(PYTEST) -m 'not slow' $(FAST:%=tests/test_%.py) $(ARGS)

lint: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

clean:
	rm -rf $(VENV) work_dirs/demo data/mini data/mini_cityscapes data/mini_imagenet build *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
