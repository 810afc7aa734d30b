# make studio | make test | make tiny | make students | make bench. Each sets up what it needs; nothing comes from a model hub.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
TINY := assets/tiny-wan
ARGS ?=
# In this order: some start at the one before. tiny_step24 is only a stage on the way.
STUDENTS := cfg step24 step12 step6 consistency4 dmd4 dmd2 dmd1

.PHONY: studio test lint tiny students bench clean

studio: $(VENV)/ready
	$(RUN) app.py $(ARGS)

test: $(VENV)/ready-dev lint
	$(RUN) -m pytest $(ARGS)

lint: $(VENV)/ready-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: $(VENV)/ready-dev
	$(RUN) -m tests.bench $(ARGS)

# Trains TinyWan from random weights: autoencoder, then transformer, each resumable (run it again after a stop).
tiny: $(VENV)/ready
	test -f $(TINY)/model_index.json || $(RUN) -m trainers.worlds.tiny_wan init $(TINY) --seed 0
	$(RUN) -m trainers presets/train/tiny_vae.yaml
	$(RUN) -m trainers.worlds.tiny_wan install runs/tiny-vae/export $(TINY)
	$(RUN) -m trainers.worlds.evaluate autoencoder --model $(TINY)
	$(RUN) -m trainers.worlds.tiny_wan prepare $(TINY) runs/tiny-data --num-clips 8192
	$(RUN) -m trainers presets/train/tiny_base.yaml
	$(RUN) -m trainers.worlds.tiny_wan install runs/tiny-base/export $(TINY)
	$(RUN) -m trainers.worlds.evaluate prompts --model $(TINY)

# Distils TinyWan into its students, each resumable, and measures them beside it.
students: $(VENV)/ready
	test -f runs/tiny-data/index.json || \
	  $(RUN) -m trainers.worlds.tiny_wan prepare $(TINY) runs/tiny-data --num-clips 8192
	set -e; for name in $(STUDENTS); do \
	  $(RUN) -m trainers presets/train/tiny_$$name.yaml; \
	  test $$name = step24 || mkdir -p assets/students/tiny-$$name; \
	  test $$name = step24 || cp -r runs/tiny-$$name/export/. assets/students/tiny-$$name/; \
	done
	$(RUN) -m trainers.worlds.evaluate students $(patsubst %,tiny-%,$(filter-out step24,$(STUDENTS)))

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than Python 3.11; set PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip

$(VENV)/ready: requirements.txt | $(VENV)/bin/python
	$(RUN) -m pip install --quiet -r requirements.txt
	touch $@

$(VENV)/ready-dev: pyproject.toml $(VENV)/ready
	$(RUN) -m pip install --quiet --group dev
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
