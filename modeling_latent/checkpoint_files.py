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
"""The files of a checkpoint. No other file that a checkpoint carries reads or writes any."""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import distributed
from transformers.modeling_utils import load_state_dict


NEW = ".saving"  # the folder in which a checkpoint waits until it is complete


def copy_code_above(checkpoint: Path) -> None:
    """
    Copy a checkpoint's code to the folder above, which `Trainer(push_to_hub=True)` pushes while it trains: there it
    copies the configuration and the weights itself, but no code. Someone's own files of these names are left alone.
    """
    folder, mark = checkpoint.parent, "configuration_latent.py"
    files = sorted(checkpoint.glob("*.py"), key=lambda file: file.name != mark)  # the mark first, lest it be missing
    code = {file.name: file.read_bytes() for file in files}
    there = {name: (folder / name).read_bytes() for name in code if (folder / name).is_file()}
    if there and mark not in there:
        return
    for name, content in code.items():
        if there.get(name) != content:  # what has not changed may be on its way to the Hub
            (folder / name).write_bytes(content)


def unreadable_files(folder: Path) -> list[str]:
    """Which files of weights in a local folder are not what safetensors and the library wrote."""
    unreadable = []
    for file in filter(is_weights, sorted(folder.glob("*"))):
        try:
            json.loads(file.read_bytes()) if is_index(file) else load_state_dict(str(file), map_location="meta")
        except Exception:  # safetensors' own among them, which is not imported here
            unreadable.append(str(file))
    return unreadable


def what_is_wrong_with(folder: Path, error: Exception) -> str | None:
    """Say in a sentence why the weights in a local folder did not load, where that is not said by the error."""
    if isinstance(error, OSError) and (folder / NEW).is_dir():
        return (
            f"A process that saved to {folder} was ended while it replaced the weights there ({error}). The new ones "
            f"are whole: move all files from {folder / NEW} to {folder}."
        )
    if type(error).__name__ in ("SafetensorError", "JSONDecodeError"):
        return (
            f"The weights in {', '.join(unreadable_files(folder)) or folder} can't be read ({error}). Their "
            "download was cut off, or git has left a pointer in their place: get them again, by `hf download` or "
            "`git lfs pull`."
        )
    return None


def is_weights(file: Path) -> bool:
    return ".safetensors" in file.name


def is_index(file: Path) -> bool:
    """Whether a file says which weights are in which shard: without it, shards are not read."""
    return is_weights(file) and file.suffix == ".json"


def name_of_weights(file: Path) -> str:
    """What is left of a name without the numbers of a shard: "model", with a variant "model.fp16", "adapter_model"."""
    return re.sub(r"-\d{5}-of-\d{5}|\.safetensors|\.index|\.json", "", file.name)


def replaces_alone(folder: Path) -> bool:
    """Whether this is the only process of a training, and the folder it saves to holds weights."""
    alone = not (distributed.is_available() and distributed.is_initialized())
    return alone and folder.is_dir() and any(map(is_weights, folder.iterdir()))


@contextmanager
def replaced_when_complete(folder: Path) -> Iterator[Path]:
    """
    Give a new folder to save to. What was saved there then replaces the weights in `folder`, and its files of the same
    names. Weights go first and come last: between the two a reader finds none, rather than some of either kind.
    """
    new = folder / NEW
    shutil.rmtree(new, ignore_errors=True)  # of a process that was killed
    try:
        yield new
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    files = sorted(new.iterdir(), key=lambda file: (is_weights(file), is_index(file)))
    replaced = {name_of_weights(file) for file in filter(is_weights, files)}
    older = [file for file in folder.iterdir() if is_weights(file) and name_of_weights(file) in replaced]
    for file in sorted(older, key=is_index, reverse=True):
        file.unlink()
    for file in files:
        file.replace(folder / file.name)
    new.rmdir()


@contextmanager
def named_as_registered(cls: type):
    """
    Let a class go by the name of the one that is registered. FSDP2 and others put a class of their own over ours, and
    the library would save the file of that class as the checkpoint's code, and note its name.
    """
    registered = next((base for base in cls.__mro__ if vars(base).get("_auto_class")), cls)
    names = cls.__module__, cls.__name__
    cls.__module__, cls.__name__ = registered.__module__, registered.__name__
    try:
        yield
    finally:
        cls.__module__, cls.__name__ = names


class CheckpointFilesMixin:
    """How a model is loaded and saved: as the library does it, and what a user is told or spared besides."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, *args, **kwargs):
        """
        Load as the library does. Say in a sentence which weights can't be read, and warn of weights that were trained
        with another configuration.
        """
        try:
            loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        except Exception as error:
            folder = Path(str(pretrained_model_name_or_path), kwargs.get("subfolder") or "")
            reason = what_is_wrong_with(folder, error)
            if reason is None:
                raise
            raise ValueError(reason) from error
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.config.warn_of_changes_since_training()
        return loaded

    def save_pretrained(
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        state_dict: dict[str, torch.Tensor] | None = None,
        push_to_hub: bool = False,
        *args,
        **kwargs,
    ) -> None:
        """
        Save as the library does. Where `save_directory` holds weights already, the new ones go into its folder
        `.saving` first, so that a process that is killed meanwhile leaves the older ones whole. This needs room for
        both, and does not hold for a model that several processes save, nor with `push_to_hub`.
        """
        self.config.record_training()
        folder, saves = Path(save_directory), self.should_save_on_this_rank(is_main_process)
        arguments = is_main_process, state_dict, push_to_hub, *args
        with named_as_registered(type(self)):
            if saves and not push_to_hub and replaces_alone(folder):
                with replaced_when_complete(folder) as new:
                    super().save_pretrained(new, *arguments, **kwargs)
            else:
                super().save_pretrained(save_directory, *arguments, **kwargs)
        if saves and re.fullmatch(r"checkpoint-\d+", folder.name):
            copy_code_above(folder)
