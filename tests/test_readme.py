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
"""The README: its code runs, its numbers come from files and formulas."""

import json
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, LlamaConfig

import modeling_latent
from common import tiny_config
from test_heads import word_tokenizer


ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_the_demo_is_shown_as_it_was_printed():
    shown = README.split("<!-- docs/demo.txt: start -->\n")[1].split("<!-- docs/demo.txt: end -->")[0]
    assert shown == "```\n" + (ROOT / "docs" / "demo.txt").read_text(encoding="utf-8") + "```\n"


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_every_snippet_runs(snippet, tmp_path, monkeypatch):
    tokenizer = word_tokenizer()
    model = modeling_latent.LatentAttentionForCausalLM(tiny_config(vocab_size=len(tokenizer)))
    model.save_pretrained(tmp_path / "out" / "demo")
    tokenizer.save_pretrained(tmp_path / "out" / "demo")
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet, "README", "exec"), {"__name__": "readme"})


def test_the_size_of_the_cache_is_what_the_formula_says():
    config = AutoConfig.from_pretrained(ROOT / "configuration" / "latent-135m")
    size = config.state_bytes(dtype=torch.bfloat16)
    names = {"Hkv": "num_key_value_heads", "H": "num_attention_heads", "d": "head_dim", "D": "hidden_size"}
    names |= {"C": "chunk_size", "M": "num_latents", "K": "conv_kernel_size", "L": "mlp_conv_kernel_size"}
    names |= {"S": "num_sink_tokens"}
    values = {name: getattr(config, field) for name, field in names.items()} | {"b": 2}
    formula = README.split("with `b` bytes per number:\n\n```\n")[1].split("```")[0]
    parts = {}
    for line in formula.strip().replace("·", "*").replace("−", "-").splitlines():
        part, expression, _ = re.split(r"\s{2,}", line)
        # "2C" is 2 * C; "H·M" got its sign above
        parts[part] = eval(re.sub(r"(\d)([A-Z])", r"\1*\2", expression), {}, values)
    without = {"local": "memory", "latent": "window", "both": None}
    assert size == sum(parts[part] for kind in config.layer_kinds for part in parts if part != without[kind])
    layers = f"{config.num_hidden_layers} layers of the pattern `{json.dumps(config.layer_pattern)}`"
    assert f"{layers}, `S` {config.num_sink_tokens}, " in README
    assert f"{size:,} bytes" in README
    llama = LlamaConfig(**{key: getattr(config, key) for key in ("num_hidden_layers", "num_key_value_heads")})
    per_token = 2 * llama.num_key_value_heads * config.head_dim * 2
    assert f"= {per_token} bytes per layer and token" in README
    tokens = size / (per_token * llama.num_hidden_layers)
    assert f"as much after {tokens:.0f} tokens, {32_768 / tokens:.0f} times as much at 32,768" in README
