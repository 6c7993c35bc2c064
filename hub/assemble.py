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
"""The first step: a clean export, into which only what is on the list goes."""

import glob
import shutil
from pathlib import Path

import torch
from huggingface_hub import ModelCard
from transformers import AutoTokenizer

from .card import DEFAULT_LICENSE, PROJECT, make_card
from .checkpoint import Checkpoint
from .errors import BadInput
from .model import load, load_model, merge_adapter, reference_logits
from .reader import TOKENIZER_CONFIG
from .request import Request


ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def assemble(request: Request, checkpoint: Checkpoint, export: Path) -> dict[str, torch.Tensor]:
    """Fill the empty folder `export`; return what it must give when it is loaded, as `reference_logits` does."""
    extras = included_files(checkpoint.folder, request.include)
    model = load_model(checkpoint)
    reference = reference_logits(model, checkpoint.merge)
    if checkpoint.merge:
        model = merge_adapter(model, checkpoint.folder)
    if checkpoint.is_adapter:
        for name in ADAPTER_FILES:
            shutil.copyfile(checkpoint.folder / name, export / name)
    else:
        model.save_pretrained(export, max_shard_size=request.max_shard_size or "5GB")
    has_tokenizer = save_tokenizer(checkpoint, export)
    card = make_card(request, checkpoint, model, has_tokenizer)
    card.save(export / "README.md")
    shutil.copyfile(find_license(checkpoint.folder, card), export / "LICENSE")
    copy_extras(checkpoint, extras, export)
    return reference


def save_tokenizer(checkpoint: Checkpoint, export: Path) -> bool:
    """Save the checkpoint's tokenizer, or after a merge that of the base; return whether there is one."""
    folders = [checkpoint.folder, checkpoint.base.folder] if checkpoint.merge else [checkpoint.folder]
    for folder in folders:
        if (folder / TOKENIZER_CONFIG).is_file():
            load(AutoTokenizer, folder, trust_remote_code=False).save_pretrained(export)
            return True
    if not checkpoint.is_adapter:  # An adapter's readers take the tokenizer of its base.
        print(
            f"note        {checkpoint.folder} holds no {TOKENIZER_CONFIG}, so no tokenizer is uploaded: unless the "
            "repository has one, readers can pass token ids, but no text. `tokenizer.save_pretrained` saves one there"
        )
    return False


def included_files(folder: Path, patterns: list[str]) -> list[str]:
    """List the files that --include names. As in a shell, a wildcard matches no name that begins with a dot."""
    files = []
    for pattern in patterns:
        matches = glob.glob(pattern, root_dir=folder, recursive=True)
        inside = not Path(pattern).is_absolute() and ".." not in Path(pattern).parts
        found = [name for name in matches if inside and (folder / name).is_file()]
        if not found:
            raise BadInput(f"--include is {pattern!r}, which matches no file inside {folder}; check the name")
        files += found
    return files


def copy_extras(checkpoint: Checkpoint, extras: list[str], export: Path) -> None:
    """
    Copy what --include names, except for files that the export has of its own: the checkpoint's config.json, for one,
    may know nothing of the code beside it.
    """
    for name in extras:
        if (export / name).exists():
            print(f"note        {name} is made anew by the export; that of --include is not uploaded")
        elif checkpoint.merge and name.startswith("adapter_"):  # A reader would put it on the weights once more.
            print(f"note        {name} is of the adapter, which the weights hold now; it is not uploaded")
        else:
            (export / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(checkpoint.folder / name, export / name)


def find_license(folder: Path, card: ModelCard) -> Path:
    """Find the checkpoint's own license file, or this project's where that is the license that the card names."""
    if (folder / "LICENSE").is_file():
        return folder / "LICENSE"
    if card.data.license != DEFAULT_LICENSE:
        raise BadInput(
            f"the license is {card.data.license!r} and {folder} holds no LICENSE file; put its text there (only for "
            f"{DEFAULT_LICENSE!r} this project's own is used)"
        )
    return PROJECT / "LICENSE"


def exported_files(export: Path) -> list[str]:
    """List the export's files, as their paths in the repository."""
    return sorted(path.relative_to(export).as_posix() for path in export.rglob("*") if path.is_file())
