VENV := .venv
PYTHON := $(VENV)/bin/python
PIP := $(PYTHON) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
OUT := out/demo
CODE := modeling_latent configuration examples tests hub_upload.py setup.py
# Two cores train faster with their threads bound to nothing else.
export TOKENIZERS_PARALLELISM := false

.PHONY: demo test lint clean

demo: $(VENV)/train.stamp
	$(PYTHON) examples/train.py --output_dir $(OUT) --config configuration/latent-tiny --max_steps 10
	$(PYTHON) examples/generate.py $(OUT)

test: $(VENV)/test.stamp
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
