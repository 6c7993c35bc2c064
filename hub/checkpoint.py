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
"""What a folder holds, and whether that is whole, found out without loading it."""

import json
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open

from .errors import BadInput
from .request import Request


MODEL_TYPE = "latent_attention"
ARCHITECTURES = ["LatentAttentionForCausalLM"]
# These turn a pickle into safetensors in the same folder. A model's tied weights can only be sorted out by its class.
CONVERSIONS = {
    "model": "import modeling_latent; from transformers import AutoModelForCausalLM as M; "
    "M.from_pretrained('{0}').save_pretrained('{0}')",
    "adapter_model": "import torch, safetensors.torch as s; s.save_file("
    "torch.load('{0}/adapter_model.bin', weights_only=True), '{0}/adapter_model.safetensors', {{'format': 'pt'}})",
}


@dataclass(frozen=True)
class Base:
    """The model that an adapter was trained on."""

    repo_id: str | None  # where readers find it; None if it is only a folder on this machine
    folder: Path  # where its files are: that folder, or a snapshot in the cache, whose name is the commit


@dataclass(frozen=True)
class Checkpoint:
    """A folder that was found fit to upload: a whole model, or an adapter and its base."""

    folder: Path
    base: Base | None = None  # None if the folder holds a whole model
    merge: bool = False  # whether an adapter is merged into its base, and the whole model uploaded

    @property
    def is_adapter(self) -> bool:
        """Whether what is uploaded is an adapter: the folder holds one, and it is not merged."""
        return self.base is not None and not self.merge

    @property
    def model_folder(self) -> Path:
        """Where the whole model is, in an adapter's case its base."""
        return self.base.folder if self.base else self.folder


def inspect_checkpoint(request: Request) -> Checkpoint:
    """Find out what the folder holds; refuse what is not whole, and what the request cannot do with it."""
    folder, config_file = request.checkpoint, request.checkpoint / "adapter_config.json"
    if config_file.is_file():
        check_adapter(config_file)
        checkpoint = Checkpoint(folder, find_base(config_file, request.merge), request.merge)
    elif not (folder / "config.json").is_file():
        raise BadInput(
            f"CHECKPOINT is {str(folder)!r}, a folder with a config.json (or adapter_config.json) is needed"
        )
    elif request.merge:
        raise BadInput(f"--merge is given but {folder} holds no adapter_config.json; leave --merge out")
    else:
        checkpoint = Checkpoint(folder)
    if checkpoint.is_adapter and request.max_shard_size:
        raise BadInput(
            f"--max-shard-size is {request.max_shard_size}, but an adapter is one file; leave it out, or give --merge"
        )
    check_config(checkpoint.model_folder / "config.json")
    check_weights(checkpoint.model_folder, "model")
    return checkpoint


def check_config(path: Path) -> None:
    """Refuse any model but a causal language model that is not quantized: the export and its card are made for one."""
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


def check_adapter(config_file: Path) -> None:
    """Refuse an adapter for another task, and one whose weights are not whole."""
    task_type = read_json(config_file).get("task_type")
    if task_type not in ("CAUSAL_LM", None):
        raise BadInput(
            f"task_type in {config_file} is {task_type!r}, only 'CAUSAL_LM' is allowed: of a head for another task "
            "nothing would be left in the upload"
        )
    check_weights(config_file.parent, "adapter_model")


def find_base(config_file: Path, merge: bool) -> Base:
    """
    Find an adapter's base without the network: in the cache, or where the adapter is to be merged, in a folder. With
    a folder as its base, an adapter that is not merged would be of no use to a reader.
    """
    config = read_json(config_file)
    base = config.get("base_model_name_or_path")
    revision = config.get("revision")  # of the base; None stands for the newest in the cache
    if base and Path(base).is_dir():
        if merge:
            return Base(repo_id=None, folder=Path(base))
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
    return Base(repo_id=base, folder=Path(snapshot))


def read_json(path: Path) -> dict:
    """Read a JSON file that must hold an object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} cannot be read as JSON ({error}); restore the file") from error
    if not isinstance(content, dict):
        raise BadInput(f"{path} holds a {type(content).__name__}, not a JSON object; restore the file")
    return content


def check_weights(folder: Path, name: str) -> None:
    """Refuse pickles, and safetensors files that are missing or cut short."""
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


def check_shard(path: Path) -> None:
    """Refuse a file that was cut: a safetensors file states its size in its header, so reading that is enough."""
    if not path.is_file():
        raise BadInput(f"{path} is missing; copy the whole checkpoint again")
    try:
        with safe_open(path, framework="pt"):
            pass
    except SafetensorError as error:
        raise BadInput(f"{path} is cut short or damaged ({error}); copy the checkpoint again") from error
