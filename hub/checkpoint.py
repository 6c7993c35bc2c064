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
"""What a folder holds, and whether it is whole, found out without loading it."""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open

from .errors import BadInput


MODEL_TYPE = "latent_attention"
ARCHITECTURES = ["LatentAttentionForCausalLM"]
# From a pickle to safetensors, in the same folder. A model may hold tied weights, which only its class can sort out.
CONVERSIONS = {
    "model": "import modeling_latent; from transformers import AutoModelForCausalLM as M; "
    "M.from_pretrained('{0}').save_pretrained('{0}')",
    "adapter_model": "import torch, safetensors.torch as s; s.save_file("
    "torch.load('{0}/adapter_model.bin', weights_only=True), '{0}/adapter_model.safetensors', {{'format': 'pt'}})",
}


@dataclass
class Checkpoint:
    """A folder that was found fit to upload; an adapter also has the base model that it was trained on."""

    folder: Path
    base: str | None = None
    base_folder: Path | None = None
    merge: bool = False

    @property
    def is_adapter(self) -> bool:
        """Whether an adapter is what gets uploaded."""
        return self.base is not None and not self.merge


def check_checkpoint(args: argparse.Namespace) -> Checkpoint:
    """Finds out what the folder is and whether it is whole, without loading it."""
    folder = args.checkpoint
    if (folder / "adapter_config.json").is_file():
        checkpoint = find_base(args)
    elif not (folder / "config.json").is_file():
        raise BadInput(
            f"CHECKPOINT is {str(folder)!r}, a folder with a config.json (or adapter_config.json) is needed"
        )
    elif args.merge:
        raise BadInput(f"--merge is given but {folder} holds no adapter_config.json; leave --merge out")
    else:
        checkpoint = Checkpoint(folder)
    if checkpoint.is_adapter and args.max_shard_size:
        raise BadInput(
            f"--max-shard-size is {args.max_shard_size}, but an adapter is one file; leave it out, or give --merge"
        )
    model_folder = checkpoint.base_folder or folder
    check_config(model_folder / "config.json")
    check_weights(model_folder, "model")
    return checkpoint


def check_config(path: Path):
    """Only language models are uploaded, as they were trained: the export and its card are made for one."""
    config = read_json(path)
    for field, allowed in (("model_type", [MODEL_TYPE]), ("architectures", [ARCHITECTURES, None])):
        if config.get(field) not in allowed:
            raise BadInput(f"{field} in {path} is {config.get(field)!r}, only {allowed[0]!r} is allowed")
    if not config.get("is_causal", True):
        raise BadInput(f"is_causal in {path} is False, only True is allowed: the model could not generate")
    if config.get("quantization_config"):
        raise BadInput(
            f"quantization_config in {path} is given, only weights that are not quantized are allowed; upload those "
            "that these were made from, and who loads them quantizes them"
        )


def find_base(args: argparse.Namespace) -> Checkpoint:
    """An adapter's base: from a local folder only to be merged, else from the local cache, so without network."""
    folder, config_file = args.checkpoint, args.checkpoint / "adapter_config.json"
    config = read_json(config_file)
    base, task_type = config.get("base_model_name_or_path"), config.get("task_type")
    revision = config.get("revision")  # of the base; none stands for the newest
    if task_type not in ("CAUSAL_LM", None):
        raise BadInput(
            f"task_type in {config_file} is {task_type!r}, only 'CAUSAL_LM' is allowed: of a head for another task "
            "nothing would be left in the upload"
        )
    check_weights(folder, "adapter_model")
    if base and Path(base).is_dir():
        if args.merge:
            return Checkpoint(folder, base, Path(base), merge=True)
        raise BadInput(
            f"base_model_name_or_path in {config_file} is the folder {base!r}, which no reader has; upload the base "
            "first and put its repository id there, or give --merge"
        )
    try:
        snapshot = huggingface_hub.snapshot_download(base or "", revision=revision, local_files_only=True)
    except (HFValidationError, LocalEntryNotFoundError) as error:
        at = f" --revision {revision}" if revision else ""
        raise BadInput(
            f"base_model_name_or_path in {config_file} is {base!r}, neither a folder nor a model in the local cache; "
            f"run `hf download {base}{at}` first"
        ) from error
    return Checkpoint(folder, base, Path(snapshot), args.merge)


def read_json(path: Path) -> dict:
    """A JSON file that must hold an object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} cannot be read as JSON ({error}); restore the file") from error
    if not isinstance(content, dict):
        raise BadInput(f"{path} holds a {type(content).__name__}, not a JSON object; restore the file")
    return content


def check_weights(folder: Path, name: str):
    """Refuses pickles, and safetensors files that are missing or cut short."""
    index = folder / f"{name}.safetensors.index.json"
    shards = {f"{name}.safetensors"}
    if index.is_file():
        shards = set(read_json(index).get("weight_map", {}).values())
    elif not (folder / f"{name}.safetensors").is_file() and (pickles := sorted(folder.glob("*model*.bin"))):
        raise BadInput(
            f"{pickles[0]} is a pickle, which can run code when it is loaded; convert it first: "
            f'python -c "{CONVERSIONS[name].format(folder)}"'
        )
    for shard in sorted(shards):
        check_shard(folder / shard)


def check_shard(path: Path):
    """A safetensors file states its size in its header, so that reading the header shows a file that was cut."""
    if not path.is_file():
        raise BadInput(f"{path} is missing; copy the whole checkpoint again")
    try:
        with safe_open(path, framework="pt"):
            pass
    except SafetensorError as error:
        raise BadInput(f"{path} is cut short or damaged ({error}); copy the checkpoint again") from error
