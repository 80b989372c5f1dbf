# Two commands on a fresh machine: `make demo` and `make test`. Both make .venv first.
PYTHON ?= python3
# This version installs as a CPU build where that is at hand; any torch >= 2.6 will do (make TORCH=torch).
TORCH ?= torch==2.13.0
VENV ?= .venv
# The oldest transformers that pyproject.toml allows, in an environment of its own.
OLDEST := $(shell sed -n 's/.*"transformers>=\([0-9.]*\),.*/\1/p' pyproject.toml)
BIN := $(VENV)/bin
LMMS := $(shell sed -n 's/^lmms = \["\(.*\)"\]/\1/p' pyproject.toml)
LMMS_NEEDS := 'filelock<4' datasets evaluate loguru tenacity sqlitedict pytablewriter sacrebleu python-dotenv pyyaml httpx \
  openai openpyxl tqdm-multiprocess jsonlines decord
VLMEVAL := ms-vlmeval==$(shell sed -n 's/^WORKS_WITH = "\(.*\)"/\1/p' damro/integrations/vlmeval/__init__.py)
# torchvision is that of torch 2.13.
VLMEVAL_NEEDS := pandas openpyxl xlsxwriter sty tabulate termcolor validators portalocker python-dotenv requests Levenshtein \
  opencv-python-headless datasets decord imageio jieba joblib json_repair math-verify networkx num2words openai pylatexenc \
  qwen_vl_utils regex rouge scipy scikit-learn timeout-decorator torchvision==0.28.0
# A process a core; the tests of a file stay together, since they share models.
PARALLEL := -n auto --maxprocesses 8 --dist loadfile
# Everything here works offline: no hub is asked for anything.
export HF_HUB_OFFLINE = 1
export TOKENIZERS_PARALLELISM = false

.PHONY: demo test test-oldest test-lmms test-vlmeval test-browser check gallery docs install format clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

demo: install
	$(BIN)/damro demo

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q $(PARALLEL)

# Golden vectors, decoding and families with the oldest transformers; not the tests that take long.
test-oldest: $(VENV)-oldest/.installed
	OMP_NUM_THREADS=1 $(VENV)-oldest/bin/python -m pytest -q $(PARALLEL) -m 'not slow' \
	  tests/test_damro_golden.py tests/test_decoding_*.py

$(VENV)-oldest/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(VENV)-oldest/bin/python -m pip install --quiet --disable-pip-version-check --editable . 'transformers==$(OLDEST)' pytest pytest-xdist hypothesis
	touch $@

# damro inside lmms-eval, which needs an older filelock, in an environment of its own. Of what lmms-eval names, only what
# these tasks import. No part of .ci/run, like test-vlmeval: an environment and the tests take five minutes on two cores,
# for interfaces that move with others' releases and not with this code. What both need of damro is tested without them.
test-lmms: $(VENV)-lmms/.installed
	OMP_NUM_THREADS=1 $(VENV)-lmms/bin/python -m pytest -q tests/test_integrations_lmms_installed.py

$(VENV)-lmms/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)-lmms
	$(VENV)-lmms/bin/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(VENV)-lmms/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[serve]' pytest $(LMMS_NEEDS)
	$(VENV)-lmms/bin/python -m pip install --quiet --disable-pip-version-check --no-deps "$(LMMS)"
	touch $@

# damro inside VLMEvalKit, and VLMEvalKit asking damro's endpoint, in an environment of its own: VLMEvalKit imports every
# benchmark that it has, and with them much that damro does not need. Left out is what it names and does not import.
test-vlmeval: $(VENV)-vlmeval/.installed
	OMP_NUM_THREADS=1 PYTHONPATH=$(CURDIR)/tests/vlmeval_site $(VENV)-vlmeval/bin/python -m pytest -q tests/test_integrations_vlmeval.py

$(VENV)-vlmeval/.installed: pyproject.toml damro/integrations/vlmeval/__init__.py
	$(PYTHON) -m venv $(VENV)-vlmeval
	$(VENV)-vlmeval/bin/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(VENV)-vlmeval/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[serve]' pytest $(VLMEVAL_NEEDS)
	$(VENV)-vlmeval/bin/python -m pip install --quiet --disable-pip-version-check --no-deps "$(VLMEVAL)"
	touch $@

# Drives the pages in a real headless Chromium; needs Debian's chromium and chromium-driver, and installs Gradio.
test-browser: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,app]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/test_pages_explain_browser.py tests/test_pages_app_browser.py tests/test_pages_app.py tests/test_cli_app.py

gallery: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,vit]' scikit-image
	$(BIN)/python docs/gallery.py

docs: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) $(VENV)-oldest $(VENV)-lmms $(VENV)-vlmeval .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
