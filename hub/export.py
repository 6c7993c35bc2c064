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
"""The clean export: only what a reader needs, and what `--include` names."""

import argparse
import glob
import shutil
from pathlib import Path

import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer

import modeling_latent  # noqa: F401 (registers the classes, so that nothing in the checkpoint's folder is run)

from .card import DEFAULT_LICENSE, PROJECT, make_card
from .checkpoint import Checkpoint
from .errors import BadInput
from .reader import TOKENIZER_CONFIG


ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def assemble(args: argparse.Namespace, checkpoint: Checkpoint, export: Path) -> dict[str, torch.Tensor]:
    """Fills the empty folder `export`; returns the logits that it must give, an adapter on its base."""
    extras = included_files(args)
    model = load_model(checkpoint)
    reference = reference_logits(model, args.merge)
    if checkpoint.is_adapter:
        for name in ADAPTER_FILES:
            shutil.copyfile(checkpoint.folder / name, export / name)
    else:
        model = merge_adapter(model, checkpoint.folder) if args.merge else model
        model.save_pretrained(export, max_shard_size=args.max_shard_size or "5GB")
    folders = [checkpoint.folder] + ([checkpoint.base_folder] if args.merge else [])
    if tokenizer_folders := [folder for folder in folders if (folder / TOKENIZER_CONFIG).is_file()]:
        load(AutoTokenizer, tokenizer_folders[0], trust_remote_code=False).save_pretrained(export)
    elif not checkpoint.is_adapter:  # whose base has one
        print(
            f"note        {checkpoint.folder} holds no {TOKENIZER_CONFIG}, so no tokenizer is uploaded: unless the "
            "repository has one, readers can pass token ids, but no text. `tokenizer.save_pretrained` saves one there"
        )
    card = make_card(args, checkpoint, model, has_tokenizer=bool(tokenizer_folders))
    card.save(export / "README.md")
    shutil.copyfile(find_license(args, card), export / "LICENSE")
    copy_extras(args, extras, export)
    return reference


def copy_extras(args: argparse.Namespace, extras: list[str], export: Path):
    """The export's own files stay: the checkpoint's config.json may know nothing of the code beside it."""
    for name in extras:
        if (export / name).exists():
            print(f"note        {name} is made anew by the export; that of --include is not uploaded")
        elif args.merge and name.startswith("adapter_"):  # a reader would put it on the weights once more
            print(f"note        {name} is of the adapter, which the weights hold now; it is not uploaded")
        else:
            (export / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(args.checkpoint / name, export / name)


def included_files(args: argparse.Namespace) -> list[str]:
    """The files that --include names. As in a shell, a wildcard does not match a name that begins with a dot."""
    files = []
    for pattern in args.include:
        matches = glob.glob(pattern, root_dir=args.checkpoint, recursive=True)
        inside = not Path(pattern).is_absolute() and ".." not in Path(pattern).parts
        found = [name for name in matches if inside and (args.checkpoint / name).is_file()]
        if not found:
            raise BadInput(f"--include is {pattern!r}, which matches no file inside {args.checkpoint}; check the name")
        files += found
    return files


def load_model(checkpoint: Checkpoint) -> torch.nn.Module:
    """The checkpoint as this package's classes, in the dtype that it was saved in."""
    folder = checkpoint.base_folder or checkpoint.folder
    model, report = load(AutoModelForCausalLM, folder, trust_remote_code=False, output_loading_info=True)
    # The library fills gaps with random weights and drops what has no place, both with no more than a warning.
    for problem in ("missing_keys", "unexpected_keys"):
        if report[problem]:
            names = ", ".join(sorted(map(str, report[problem]))[:3])
            raise BadInput(
                f"{folder} does not fit its config, {problem}: {names}; upload a whole causal LM checkpoint"
            )
    return add_adapter(model, checkpoint.folder) if checkpoint.base else model


def load(library_class: type, *sources, **kwargs):
    """`from_pretrained`, whose many kinds of errors all mean that the last of `sources` is not in order."""
    try:
        return library_class.from_pretrained(*sources, **kwargs)
    except Exception as error:
        raise BadInput(f"{sources[-1]} does not load ({type(error).__name__}: {error}); restore the files") from error


def add_adapter(model: torch.nn.Module, folder: Path) -> torch.nn.Module:
    """The base model with the adapter on it, not merged."""
    try:
        from peft import PeftModel
    except ImportError as error:
        raise BadInput(f"{folder} is a PEFT adapter and peft is not installed; run `pip install peft`") from error
    return load(PeftModel, model, folder).eval()


def merge_adapter(model: torch.nn.Module, folder: Path) -> torch.nn.Module:
    """The base model with the adapter added to its weights."""
    if not hasattr(model, "merge_and_unload"):
        raise BadInput(
            f"--merge is given but peft_type in {folder / 'adapter_config.json'} is a kind that adds nothing to the "
            "weights, so there is nothing to merge; upload the adapter without --merge"
        )
    return model.merge_and_unload()


def reference_logits(model: torch.nn.Module, merge: bool) -> dict[str, torch.Tensor]:
    """What the export has to give: logits over more than two chunks, so that the latents have something to say."""
    config = model.config
    input_ids = (torch.arange(2 * config.chunk_size + 1) * 37 + 11)[None] % config.vocab_size  # (1, T)
    with torch.no_grad():
        logits = model(input_ids).logits
    # Merging rounds every weight once more; anything else must not change the result.
    merged = 1e-4 if model.dtype == torch.float32 else 3e-2
    tolerance = torch.tensor(merged if merge else 1e-6)
    return {"input_ids": input_ids, "logits": logits.contiguous(), "tolerance": tolerance}


def find_license(args: argparse.Namespace, card: ModelCard) -> Path:
    """The checkpoint's own license file, or this project's where that is the license that the card names."""
    if (args.checkpoint / "LICENSE").is_file():
        return args.checkpoint / "LICENSE"
    if card.data.license != DEFAULT_LICENSE:
        raise BadInput(
            f"the license is {card.data.license!r} and {args.checkpoint} holds no LICENSE file; put its text "
            f"there (only for {DEFAULT_LICENSE!r} this project's own is used)"
        )
    return PROJECT / "LICENSE"


def exported_files(export: Path) -> list[str]:
    """Paths in the repository."""
    return sorted(path.relative_to(export).as_posix() for path in export.rglob("*") if path.is_file())
