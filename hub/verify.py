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
"""The second step: load the export in a fresh process, as a reader would, before anybody else does."""

import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import torch
from safetensors.torch import save_file

from . import reader
from .checkpoint import Checkpoint
from .errors import Stop


def verify(export: Path, reference: dict[str, torch.Tensor], checkpoint: Checkpoint, scratch: Path) -> None:
    """
    Load the export in a process that has neither this package, nor the network, nor the token, and compare it with
    `reference`, which `assemble` has returned. Files that this takes are written to the folder `scratch`.
    """
    save_file(reference, scratch / "reference.safetensors")
    environment = {name: value for name, value in os.environ.items() if "TOKEN" not in name}
    environment |= {"HF_HOME": str(scratch), "HF_MODULES_CACHE": str(scratch / "modules"), "HF_HUB_OFFLINE": "1"}
    # An adapter's base is read from where `find_base` found it.
    environment["HF_HUB_CACHE"] = huggingface_hub.constants.HF_HUB_CACHE
    paths = [export, scratch / "reference.safetensors"]
    if checkpoint.is_adapter:
        paths.append(checkpoint.base.folder)
    command = [sys.executable, "-I", reader.__file__, *map(str, paths)]
    process = subprocess.run(command, cwd=scratch, env=environment, capture_output=True, text=True)
    if process.returncode != 0:
        print(process.stderr, file=sys.stderr)
        reason = (process.stderr.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
        raise Stop(f"verification failed, nothing was uploaded: {reason}")
    print(process.stdout, end="")
