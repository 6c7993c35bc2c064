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
"""The model card."""

import argparse
import platform
from pathlib import Path

import huggingface_hub
import torch
import transformers
import yaml
from huggingface_hub import ModelCard, ModelCardData

from .checkpoint import Checkpoint, read_json
from .errors import BadInput


PROJECT = Path(__file__).resolve().parents[1]
DEFAULT_LICENSE = "apache-2.0"
CARD_TEMPLATE = Path(__file__).with_name("card_template.md")
CARD_FIELDS = (
    *("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"),
    *("head_dim", "layer_pattern", "num_latents", "chunk_size", "num_sink_tokens", "max_chunk_repeats"),
    *("conv_kernel_size", "mlp_conv_kernel_size", "norm_type", "vocab_size"),
)
CARD_CONTEXTS = (4_096, 32_768, 131_072)
TRAINING_FACTS = {
    **{"global_step": "optimizer steps", "epoch": "epochs", "train_batch_size": "batch size per device"},
    **{"num_input_tokens_seen": "tokens", "total_flos": "floating-point operations", "best_metric": "best metric"},
}


def make_card(
    args: argparse.Namespace, checkpoint: Checkpoint, model: torch.nn.Module, has_tokenizer: bool
) -> ModelCard:
    """The checkpoint's own card with its metadata completed, or one from the template."""
    data = ModelCardData(
        license=args.license,
        library_name="peft" if checkpoint.is_adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["custom_code", "latent-attention"],
        language=args.language or None,
        datasets=args.dataset or None,
        base_model=checkpoint.base if checkpoint.base and not Path(checkpoint.base).is_dir() else None,
    )
    path = args.checkpoint / "README.md"
    if path.is_file():
        card = complete_card(path, data, is_adapter=checkpoint.base is not None)
    else:
        facts = card_facts(args, checkpoint, model)
        card = ModelCard.from_template(data, template_path=CARD_TEMPLATE, has_tokenizer=has_tokenizer, **facts)
    if not card.data.license:
        print(
            f"note        the license is {DEFAULT_LICENSE}, as neither --license nor a card says another; weights "
            "that were made from another model's keep that one's"
        )
        card.data.license = DEFAULT_LICENSE
    return card


def complete_card(path: Path, data: ModelCardData, is_adapter: bool) -> ModelCard:
    """Lists are joined; of the rest, what the upload knows wins."""
    try:
        card = ModelCard.load(path)
    except (ValueError, yaml.YAMLError) as error:
        raise BadInput(f"the metadata at the top of {path} is not valid ({error}); correct or remove it") from error
    # Where an adapter was trained on a folder, PEFT writes that folder here. The Hub makes `base_model:` tags itself.
    if is_adapter:
        card.data.pop("base_model")
    card.data.tags = [tag for tag in map(str, card.data.tags or []) if not tag.startswith("base_model:")]
    for name, value in data.to_dict().items():
        if isinstance(value, list):
            old = card.data.get(name) or []
            value = list(dict.fromkeys(([old] if isinstance(old, str) else old) + value))
        card.data[name] = value
    return card


def card_facts(args: argparse.Namespace, checkpoint: Checkpoint, model: torch.nn.Module) -> dict:
    """What the template says about this model, all of it read, none of it guessed."""
    config, dtype = model.config, model.dtype
    llama_token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * dtype.itemsize
    versions = {"torch": torch, "transformers": transformers, "huggingface_hub": huggingface_hub}
    return {
        "title": args.repo_id.split("/")[1],
        "repo_id": args.repo_id,
        "base": checkpoint.base if checkpoint.is_adapter else None,
        "load_line": load_line(args.repo_id, "COMMIT_HASH", checkpoint),
        "configuration": {name: getattr(config, name) for name in CARD_FIELDS},
        "has_windows": config.has_windows,
        "latents_are_in": latents_are_in(config.layer_kinds),
        "parameters": model.num_parameters(),
        "dtype": str(dtype).removeprefix("torch."),
        "cache": [(tokens, config.state_bytes(1, dtype), llama_token * tokens) for tokens in CARD_CONTEXTS],
        "training": training_facts(args.checkpoint),
        "evaluation": evaluation_facts(args.checkpoint),
        "verified": not args.skip_verify,
        "versions": {"Python": platform.python_version(), **{name: m.__version__ for name, m in versions.items()}},
    }


def latents_are_in(kinds: list[str]) -> str | None:
    """In which layers, in words; `None` where none has latents."""
    layers = [index for index, kind in enumerate(kinds) if kind != "local"]
    if len(layers) == len(kinds):
        return "every layer"
    return f"layers {', '.join(map(str, layers))} (counted from 0)" if layers else None


def load_line(repo_id: str, revision: str, checkpoint: Checkpoint) -> str:
    """The Python expression that loads exactly one commit; for an adapter, one commit of its base too."""
    line = 'AutoModelForCausalLM.from_pretrained("{}", revision="{}", trust_remote_code=True)'
    if not checkpoint.is_adapter:
        return line.format(repo_id, revision)
    base = line.format(checkpoint.base, checkpoint.base_folder.name)
    return f'PeftModel.from_pretrained({base}, "{repo_id}", revision="{revision}")'


def training_facts(folder: Path) -> dict:
    """From the Trainer's own record, where there is one."""
    path = folder / "trainer_state.json"
    state = read_json(path) if path.is_file() else {}
    history = state.get("log_history") or []
    facts = {name: state.get(key) for key, name in TRAINING_FACTS.items()}
    facts["last training loss"] = next((entry["loss"] for entry in reversed(history) if "loss" in entry), None)
    facts["last validation loss"] = next((e["eval_loss"] for e in reversed(history) if "eval_loss" in e), None)
    return {name: value for name, value in facts.items() if value}


def evaluation_facts(folder: Path) -> dict | None:
    """From `evaluation.json`, `{"tool": a script of this project, "results": {metric: number}}`."""
    path = folder / "evaluation.json"
    if not path.is_file():
        return None
    evaluation = read_json(path)
    tool, results = evaluation.get("tool"), evaluation.get("results")
    scripts = [
        path.relative_to(PROJECT).as_posix()
        for tools in ("benchmarks", "examples")
        for path in (PROJECT / tools).rglob("*.py")
    ]
    if tool not in scripts or not isinstance(results, dict):
        raise BadInput(
            f"tool in {path} is {tool!r}; the card shows only results that a script of this project wrote, as "
            '{"tool": "examples/NAME.py", "results": {...}}; remove the file, or write it with such a script'
        )
    return evaluation
