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
"""
Prints the table of the ready-made configurations; with `--write`, puts it into the README beside this file.

    python -m configuration.summary --write
"""

import sys
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

import modeling_latent  # noqa: F401 (registers the model with the Auto classes)
from benchmarks import report


FOLDER = Path(__file__).parent
NAMES = ("latent-tiny", "latent-135m", "latent-360m", "latent-1b")
CONTEXT = 32_768
COLUMNS = (
    "configuration",
    "layers × width",
    "latents, chunk",
    "parameters",
    "of these in latent attention",
    "bytes of state, at any length",
    f"bytes of a Llama's cache at {CONTEXT:,} tokens",
)


def count_parameters(config) -> tuple[int, int]:
    """Of the whole model, tied embeddings counted once, and of its latent attention sub-layers. Allocates nothing."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    return sum(sizes.values()), sum(size for name, size in sizes.items() if ".latent_attention." in name)


def llama_cache_bytes(config) -> int:
    """Keys and values of every layer and token, in bfloat16."""
    token = 2 * config.num_key_value_heads * config.head_dim * torch.bfloat16.itemsize
    return config.num_hidden_layers * CONTEXT * token


def row(name: str) -> str:
    config = AutoConfig.from_pretrained(FOLDER / name)
    shape = f"{config.num_hidden_layers} × {config.hidden_size} | {config.num_latents}, {config.chunk_size}"
    numbers = (*count_parameters(config), config.state_bytes(), llama_cache_bytes(config))
    return f"| `{name}` | {shape} | " + " | ".join(f"{number:,}" for number in numbers) + " |\n"


def table() -> str:
    header = f"| {' | '.join(COLUMNS)} |\n|---|---|---|" + "---:|" * 4 + "\n"
    return header + "".join(row(name) for name in NAMES)


def write(readme: Path) -> None:
    readme.write_text(report.fill_in(readme.read_text(encoding="utf-8"), "table", table()), encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        write(FOLDER / "README.md")
    else:
        print(table(), end="")
