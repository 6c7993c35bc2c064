SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
VENV := .venv
PYTHON := $(VENV)/bin/python
PIP := $(PYTHON) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
OUT := out/demo
CODE := modeling_latent benchmarks configuration examples tests hub_upload.py setup.py
export TOKENIZERS_PARALLELISM := false

.PHONY: demo test lint clean

# What fits into five minutes on two cores, from tokenizer to text.
RECIPE := --max_steps 420 --per_device_train_batch_size 4 --learning_rate 2e-3 --warmup_steps 28 \
	--weight_decay 0.1 --adam_beta2 0.95 --eval_strategy steps --eval_steps 300 --save_steps 300 \
	--save_total_limit 1 --logging_steps 60 --report_to none

demo: $(VENV)/train.stamp
	mkdir -p $(OUT)
	$(PYTHON) examples/train.py --output_dir $(OUT) --config configuration/latent-tiny $(RECIPE) | tee $(OUT)/printed.txt
	$(PYTHON) examples/generate.py $(OUT) | tee -a $(OUT)/printed.txt

test: lint
	$(PYTHON) -m pytest tests

lint: $(VENV)/test.stamp
	$(PYTHON) -m ruff format --check $(CODE)
	$(PYTHON) -m ruff check $(CODE)

clean:
	rm -rf $(VENV) .cache out build *.egg-info

# torch first and alone: a range that another package asks for could bring in a larger build.
$(VENV)/torch.stamp: constraints.txt
	python3 -m venv $(VENV)
	$(PIP) torch==2.13.0
	touch $@

$(VENV)/train.stamp $(VENV)/test.stamp: $(VENV)/%.stamp: $(VENV)/torch.stamp setup.py
	$(PIP) --editable .[$*]
	touch $@

# Benchmarks of quality. Reduced, all tables; or on a GPU one table in full, a piece of it at a time.
TABLES := mqar passkey language_model ablations capacity
TABLE := mqar
JOBS := 4
.PHONY: quality quality-gpu

quality: $(VENV)/test.stamp
	mkdir -p out
	for table in $(TABLES); do $(PYTHON) -m benchmarks.quality.$$table || exit 1; done | tee -a out/quality.txt
	$(PYTHON) -m benchmarks.quality.tables --write

quality-gpu: $(VENV)/test.stamp
	mkdir -p out
	$(PYTHON) -m benchmarks.quality.$(TABLE) --form full --jobs $(JOBS) --minutes 8 | tee -a out/quality-gpu.txt
	$(PYTHON) -m benchmarks.quality.tables --write
