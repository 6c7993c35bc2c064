# Copyright 2026 The Latent Attention Authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""The README and the guides: code and commands run, links lead somewhere, numbers come from files and formulas."""

import importlib
import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from common import tiny_config
from test_heads import word_tokenizer


ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXPORT, SCALING = ROOT / "docs" / "export.md", ROOT / "docs" / "scaling.md"
PROGRAMS = {"examples/train.py": "train", "examples/visualize.py": "visualize", "hub_upload.py": "hub_upload"}
# What makes a command short enough for a test; the last of two equal flags counts.
SHORTER = {
    "train": "--dataset texts --max_steps 2 --save_steps 1 --block_size 16 --use_cpu --report_to none",
    "visualize": "--output_dir out/attention",
    "hub_upload": "",
}


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text_of(page), flags=re.DOTALL)


def having(language: str):
    """A parameter for the pages that have blocks in this language."""
    # deep_docs.py runs the code of exports, which takes a minute, and test_scaling.py that of several processes.
    pages = [page for page in PAGES if blocks(page, language) and page not in (EXPORT, SCALING)]
    return pytest.mark.parametrize("page", pages, ids=lambda page: page.stem)


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Path:
    """A folder with tiny stand-ins for what the commands name: a checkpoint, a configuration and texts."""
    tokenizer = word_tokenizer()
    tokenizer.eos_token = tokenizer.pad_token
    config = tiny_config(
        layer_pattern=["local", "both"], vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0, pad_token_id=1
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "out" / "demo")
    tokenizer.save_pretrained(tmp_path / "out" / "demo")
    settings = {**tiny_config(vocab_size=300, bos_token_id=0, eos_token_id=0, pad_token_id=1).to_dict(), "dtype": None}
    settings.pop("auto_map")  # a configuration's folder has no code
    (tmp_path / "configuration" / "latent-tiny").mkdir(parents=True)
    (tmp_path / "configuration" / "latent-tiny" / "config.json").write_text(json.dumps(settings))
    (tmp_path / "texts").mkdir()
    for i in range(30):
        (tmp_path / "texts" / f"{i}.txt").write_text(f"w0{i % 10} w05 def add w03 " * 20, encoding="utf-8")
    (tmp_path / "README.md").write_text("w05 w09 w02 w17 " * 8, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_snippets(page: Path) -> None:
    """One after another, each with the names of those before it."""
    namespace = {"__name__": page.stem}
    for snippet in blocks(page, "python"):
        exec(compile(snippet, page.name, "exec"), namespace)


@having("python")
def test_snippets_run(page, workplace):
    run_snippets(page)


def test_the_notebook_runs(workplace):
    notebook = json.loads(text_of(ROOT / "docs" / "quickstart.ipynb"))
    namespace = {"__name__": "quickstart"}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), "quickstart.ipynb", "exec"), namespace)


@having("bash")
def test_commands_run(page, workplace):
    for line in "".join(blocks(page, "bash")).splitlines():
        interpreter, program, *flags = shlex.split(line)
        assert interpreter == "python"
        name = PROGRAMS[program]
        importlib.import_module(name).main([*flags, *SHORTER[name].split()])


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", text_of(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if not target.startswith("https://"):
            name, _, anchor = target.partition("#")
            file = (page.parent / name).resolve() if name else page
            assert file.exists(), f"{page.name} links to {name}, which does not exist"
            assert not anchor or anchor in anchors(file), f"{page.name} links to {target}, which has no such heading"


def test_the_demo_is_shown_as_it_was_printed():
    shown = text_of(ROOT / "docs" / "training.md").split("<!-- docs/demo.txt: start -->\n")[1]
    printed = (ROOT / "docs" / "demo.txt").read_text(encoding="utf-8")
    assert shown.split("<!-- docs/demo.txt: end -->")[0] == f"```\n{printed}```\n"


def test_the_size_of_the_cache_is_what_the_formula_says():
    page = text_of(ROOT / "docs" / "generation.md")
    config = AutoConfig.from_pretrained(ROOT / "configuration" / "latent-135m")
    size = config.state_bytes(dtype=torch.bfloat16)
    names = {"Hkv": "num_key_value_heads", "H": "num_attention_heads", "d": "head_dim", "D": "hidden_size"}
    names |= {"C": "chunk_size", "M": "num_latents", "K": "conv_kernel_size", "L": "mlp_conv_kernel_size"}
    names |= {"S": "num_sink_tokens"}
    values = {name: getattr(config, field) for name, field in names.items()} | {"b": 2}
    formula = page.split("with `b` bytes per number:\n\n```\n")[1].split("```")[0]
    parts = {}
    for line in formula.strip().replace("·", "*").replace("−", "-").splitlines():
        part, expression, _ = re.split(r"\s{2,}", line)
        # "2C" is 2 * C; "H·M" got its sign above
        parts[part] = eval(re.sub(r"(\d)([A-Z])", r"\1*\2", expression), {}, values)
    without = {"local": "memory", "latent": "window", "both": None}
    assert size == sum(parts[part] for kind in config.layer_kinds for part in parts if part != without[kind])
    said = " ".join(page.split())
    layers = f"{config.num_hidden_layers} layers of the pattern `{json.dumps(config.layer_pattern)}`"
    assert f"{layers}, `S` {config.num_sink_tokens}, " in said
    assert f"{size:,} bytes" in said
    llama = LlamaConfig(**{key: getattr(config, key) for key in ("num_hidden_layers", "num_key_value_heads")})
    per_token = 2 * llama.num_key_value_heads * config.head_dim * 2
    assert f"= {per_token} bytes per layer and token" in said
    tokens = size / (per_token * llama.num_hidden_layers)
    assert f"as much after {tokens:.0f} tokens, {32_768 / tokens:.0f} times as much at 32,768" in said
