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
"""The third step: say what goes where."""

from pathlib import Path

from .assemble import exported_files
from .request import Request


# What the .gitattributes of a new Hub repository sends to large file storage, and the size from which all files go.
LFS_SUFFIXES = (".bin", ".gz", ".model", ".msgpack", ".npy", ".npz", ".onnx", ".parquet", ".pt", ".pth")
LFS_SUFFIXES += (".safetensors", ".tar", ".tgz", ".zip", ".zst")
LFS_SIZE = 10 * 1024 * 1024


def show(request: Request, export: Path) -> None:
    """Print the repository and every file with its size; in a dry run the card, too."""
    sizes = {name: (export / name).stat().st_size for name in exported_files(export)}
    print(f"repository  {request.repo_id}")
    print(f"revision    {'a new pull request against main' if request.create_pr else request.revision or 'main'}")
    print(f"visibility  {'public' if request.public else 'private'}")
    for name, size in sizes.items():
        kind = "LFS" if name.endswith(LFS_SUFFIXES) or size > LFS_SIZE else "regular"
        print(f"{size:>15,} bytes  {kind:<7}  {name}")
    print(f"{sum(sizes.values()):>15,} bytes  in {len(sizes)} files")
    if request.dry_run:
        print((export / "README.md").read_text(encoding="utf-8"))
