# make studio | make test | make tiny | make students | make rewards | make bench | make bench-gpu.
# Each sets up what it needs; nothing comes from a model hub.
# make lock writes requirements.lock anew.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
TINY := assets/tiny-wan
ARGS ?=
# In this order: some start at the one before. tiny_step24 is only a stage on the way.
STUDENTS := cfg step24 step12 step6 consistency4 dmd4 dmd2 dmd1
IMAGE_STUDENTS := cfg dmd4

.PHONY: studio test lint tiny students rewards bench bench-gpu lock clean

studio: $(VENV)/ready
	$(RUN) app.py $(ARGS)

test: $(VENV)/ready lint
	$(RUN) -m pytest $(ARGS)

lint: $(VENV)/ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: $(VENV)/ready
	$(RUN) -m tests.bench $(ARGS)

bench-gpu: $(VENV)/ready
	$(RUN) -m tests.bench_gpu $(ARGS)

# Trains TinyWan from random weights: autoencoder, transformer, then the transformer that continues images. Each is resumable
# (run it again after a stop).
tiny: $(VENV)/ready
	test -f $(TINY)/model_index.json || $(RUN) -m trainers.tiny.wan init $(TINY) --seed 0
	$(RUN) -m trainers presets/train/tiny_vae.yaml
	$(RUN) -m trainers.tiny.wan install runs/tiny-vae/export $(TINY)
	$(RUN) -m trainers.evaluation autoencoder --model $(TINY)
	$(RUN) -m trainers.tiny.wan prepare $(TINY) runs/tiny-data --num-clips 8192
	$(RUN) -m trainers presets/train/tiny_base.yaml
	$(RUN) -m trainers.tiny.wan install runs/tiny-base/export $(TINY)
	$(RUN) -m trainers.evaluation prompts --model $(TINY)
	test -d $(TINY)-i2v/transformer || $(RUN) -m trainers.tiny.wan init-i2v $(TINY) $(TINY)-i2v
	$(RUN) -m trainers presets/train/tiny_i2v_base.yaml
	$(RUN) -m trainers.tiny.wan install runs/tiny-i2v-base/export $(TINY)-i2v
	$(RUN) -m trainers.evaluation images tiny-wan-i2v --seeds 0
	$(RUN) -m trainers.tiny.clip train assets/tiny-clip --num-steps 1200

# Distils TinyWan into its students, each resumable, and measures them beside it.
students: $(VENV)/ready
	test -f runs/tiny-data/index.json || \
	  $(RUN) -m trainers.tiny.wan prepare $(TINY) runs/tiny-data --num-clips 8192
	set -e; for name in $(STUDENTS); do \
	  $(RUN) -m trainers presets/train/tiny_$$name.yaml; \
	  test $$name = step24 || mkdir -p assets/students/tiny-$$name; \
	  test $$name = step24 || cp -r runs/tiny-$$name/export/. assets/students/tiny-$$name/; \
	done
	set -e; for name in $(IMAGE_STUDENTS); do \
	  $(RUN) -m trainers presets/train/tiny_i2v_$$name.yaml; \
	  mkdir -p assets/students/tiny-i2v-$$name; \
	  cp -r runs/tiny-i2v-$$name/export/. assets/students/tiny-i2v-$$name/; \
	done
	$(RUN) -m trainers.evaluation students $(patsubst %,tiny-%,$(filter-out step24,$(STUDENTS)))
	$(RUN) -m trainers.evaluation images tiny-wan-i2v $(patsubst %,tiny-i2v-%,$(IMAGE_STUDENTS))

# Rewards on tiny-weak4, which is tiny_dmd4 at step 100 (save_every=100, then --export 100) and ships.
rewards: $(VENV)/ready
	$(RUN) -m trainers presets/train/tiny_draft.yaml
	mkdir -p assets/students/tiny-draft
	cp -r runs/tiny-draft/export/. assets/students/tiny-draft/
	$(RUN) -m trainers presets/train/tiny_nft.yaml
	mkdir -p assets/students/tiny-nft
	cp -r runs/tiny-nft/export/. assets/students/tiny-nft/
	set -e; for stage in chain-dmd5 chain-draft; do \
	  $(RUN) -m trainers presets/train/tiny_$$(echo $$stage | tr - _).yaml; \
	  mkdir -p assets/students/tiny-$$stage; \
	  cp -r runs/tiny-$$stage/export/. assets/students/tiny-$$stage/; \
	done
	$(RUN) -m trainers.evaluation lora-alpha tiny-chain-draft --factors 0 0.5 1
	$(RUN) -m trainers.evaluation lora-alpha tiny-draft --seeds 0 1 --plot assets/lora-alpha.svg
	$(RUN) -m trainers.evaluation lora-alpha tiny-nft --seeds 0 1 --factors 0.5 1

# What uv makes and what pip makes holds the same versions; uv is only faster.
ifneq ($(shell command -v uv),)
MAKE_VENV = uv venv --quiet --seed --python "$$(command -v $(PYTHON))" $(VENV)
INSTALL = uv pip install --quiet --python $(RUN)
else
MAKE_VENV = $(PYTHON) -m venv $(VENV)
INSTALL = $(RUN) -m pip install --quiet
endif

# A .venv without `ready` was not finished, or was being changed: it is made anew.
$(VENV)/ready: requirements.lock
	@$(PYTHON) -c '' || { echo "error: $(PYTHON) is missing; set PYTHON=/path/to/python3.11"; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than Python 3.11; set PYTHON=/path/to/python3.11"; exit 2; }
	test -f $@ || { rm -rf $(VENV) && $(MAKE_VENV); }
	rm -f $@
	$(INSTALL) --require-hashes -r requirements.lock
	touch $@

# After a change of requirements.txt or of the group dev; ARGS=--upgrade takes the newest of all.
lock:
	uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest \
	  --generate-hashes --custom-compile-command "make lock" $(ARGS) \
	  requirements.txt --group dev --output-file requirements.lock

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
