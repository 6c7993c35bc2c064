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
"""The model card: the checkpoint's own, completed, or one from the template beside this file."""

import platform
from pathlib import Path

import huggingface_hub
import torch
import transformers
import yaml
from huggingface_hub import ModelCard, ModelCardData

from modeling_latent import LatentAttentionConfig

from .checkpoint import Checkpoint, read_json
from .errors import BadInput
from .request import Request


PROJECT = Path(__file__).resolve().parents[1]
DEFAULT_LICENSE = "apache-2.0"
CARD_TEMPLATE = Path(__file__).with_name("card_template.md")
# The fields of the configuration that a card has in a table.
CARD_FIELDS = (
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "layer_pattern",
    "num_latents",
    "chunk_size",
    "num_sink_tokens",
    "max_chunk_repeats",
    "conv_kernel_size",
    "mlp_conv_kernel_size",
    "norm_type",
    "vocab_size",
)
# The lengths of text, in tokens, for which a card states the memory.
CARD_CONTEXTS = (4_096, 32_768, 131_072)
# What the Trainer's record calls a fact, and what a card calls it.
TRAINING_FACTS = {
    "global_step": "optimizer steps",
    "epoch": "epochs",
    "train_batch_size": "batch size per device",
    "num_input_tokens_seen": "tokens",
    "total_flos": "floating-point operations",
    "best_metric": "best metric",
}


def make_card(request: Request, checkpoint: Checkpoint, model: torch.nn.Module, has_tokenizer: bool) -> ModelCard:
    """Complete the metadata of the checkpoint's own card, or where it has none, fill the template."""
    data = ModelCardData(
        license=request.license,
        library_name="peft" if checkpoint.is_adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["custom_code", "latent-attention"],
        language=request.language or None,
        datasets=request.dataset or None,
        base_model=checkpoint.base.repo_id if checkpoint.base else None,
    )
    if (checkpoint.folder / "README.md").is_file():
        card = complete_card(checkpoint, data)
    else:
        facts = card_facts(request, checkpoint, model)
        card = ModelCard.from_template(data, template_path=CARD_TEMPLATE, has_tokenizer=has_tokenizer, **facts)
    if not card.data.license:
        print(
            f"note        the license is {DEFAULT_LICENSE}, as neither --license nor a card says another; weights "
            "that were made from another model's keep that one's"
        )
        card.data.license = DEFAULT_LICENSE
    return card


def complete_card(checkpoint: Checkpoint, data: ModelCardData) -> ModelCard:
    """Add `data` to the checkpoint's own card. Lists are joined; a single value of `data` replaces the card's."""
    path = checkpoint.folder / "README.md"
    try:
        card = ModelCard.load(path)
    except (ValueError, yaml.YAMLError) as error:
        raise BadInput(f"the metadata at the top of {path} is not valid ({error}); correct or remove it") from error
    if checkpoint.base:
        # PEFT wrote down where it found the base, which may be a folder on this machine.
        card.data.pop("base_model")
    # The Hub makes the tags that begin like this from `base_model`.
    card.data.tags = [tag for tag in map(str, card.data.tags or []) if not tag.startswith("base_model:")]
    for name, value in data.to_dict().items():
        if isinstance(value, list):
            old = card.data.get(name) or []
            value = list(dict.fromkeys(([old] if isinstance(old, str) else old) + value))
        card.data[name] = value
    return card


def card_facts(request: Request, checkpoint: Checkpoint, model: torch.nn.Module) -> dict:
    """Gather what the template says about this model; all of it is read, none of it guessed."""
    config, dtype = model.config, model.dtype
    llama_token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * dtype.itemsize
    versions = {"torch": torch, "transformers": transformers, "huggingface_hub": huggingface_hub}
    return {
        "title": request.repo_id.split("/")[1],
        "repo_id": request.repo_id,
        "base": checkpoint.base.repo_id if checkpoint.is_adapter else None,
        "load_line": load_line(request.repo_id, "COMMIT_HASH", checkpoint),
        "configuration": {name: getattr(config, name) for name in CARD_FIELDS},
        "has_windows": config.has_windows,
        "latents_are_in": latents_are_in(config),
        "parameters": model.num_parameters(),
        "dtype": str(dtype).removeprefix("torch."),
        "cache": [(tokens, config.state_bytes(1, dtype), llama_token * tokens) for tokens in CARD_CONTEXTS],
        "training": training_facts(checkpoint.folder),
        "evaluation": evaluation_facts(checkpoint.folder),
        "verified": not request.skip_verify,
        "versions": {"Python": platform.python_version(), **{name: m.__version__ for name, m in versions.items()}},
    }


def latents_are_in(config: LatentAttentionConfig) -> str | None:
    """Say in words which layers have latents; `None` if none has."""
    layers = config.layers_with_latents
    if len(layers) == config.num_hidden_layers:
        return "every layer"
    return f"layers {', '.join(map(str, layers))} (counted from 0)" if layers else None


def load_line(repo_id: str, revision: str, checkpoint: Checkpoint) -> str:
    """Write the Python expression that loads exactly one commit, and for an adapter exactly one of its base, too."""
    line = 'AutoModelForCausalLM.from_pretrained("{}", revision="{}", trust_remote_code=True)'
    if not checkpoint.is_adapter:
        return line.format(repo_id, revision)
    base = line.format(checkpoint.base.repo_id, checkpoint.base.folder.name)
    return f'PeftModel.from_pretrained({base}, "{repo_id}", revision="{revision}")'


def training_facts(folder: Path) -> dict:
    """Read what the Trainer recorded, if it was one that wrote the checkpoint."""
    path = folder / "trainer_state.json"
    state = read_json(path) if path.is_file() else {}
    history = state.get("log_history") or []
    facts = {name: state.get(key) for key, name in TRAINING_FACTS.items()}
    for key, name in (("loss", "last training loss"), ("eval_loss", "last validation loss")):
        facts[name] = next((entry[key] for entry in reversed(history) if key in entry), None)
    return {name: value for name, value in facts.items() if value}


def evaluation_facts(folder: Path) -> dict | None:
    """Read `evaluation.json`, if there is one: `{"tool": a script of this project, "results": {metric: number}}`."""
    path = folder / "evaluation.json"
    if not path.is_file():
        return None
    evaluation = read_json(path)
    tool, results = evaluation.get("tool"), evaluation.get("results")
    scripts = [
        script.relative_to(PROJECT).as_posix()
        for tools in ("benchmarks", "examples")
        for script in (PROJECT / tools).rglob("*.py")
    ]
    if tool not in scripts or not isinstance(results, dict):
        raise BadInput(
            f"tool in {path} is {tool!r}; the card shows only results that a script of this project wrote, as "
            '{"tool": "examples/NAME.py", "results": {...}}; remove the file, or write it with such a script'
        )
    return evaluation
