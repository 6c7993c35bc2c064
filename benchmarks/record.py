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
"""How a result is kept, and what stands beside its numbers: where, when, with what and from which code they come."""

import json
import os
import platform
import subprocess
from collections.abc import Iterable
from datetime import date
from pathlib import Path

import torch
import transformers


RESULTS = Path(__file__).parent / "results"


def processor() -> str:
    """The name of the CPU. Linux knows it better than Python."""
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def revision() -> str:
    """The commit that is checked out, with a `+` where files other than results, and the pages of them, differ."""
    root = Path(__file__).parents[1]
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True).stdout.strip()
    status = ["git", "status", "--porcelain", "--", ".", ":!benchmarks/results", ":!*.md"]
    changed = subprocess.run(status, cwd=root, capture_output=True, text=True).stdout
    return commit + "+" * bool(changed.strip()) if commit else "not a git checkout"


def code_at(revisions: Iterable[str]) -> str:
    """Name the different ones of `revisions` in short, for captions."""
    short = dict.fromkeys(revision[:8] + "+" * revision.endswith("+") for revision in revisions)
    return f"code at {', '.join(short)}" + " (+: with uncommitted changes)" * any("+" in name for name in short)


def machine(device: str, jobs: int) -> str:
    """The processor and the libraries in one line, for captions."""
    name = torch.cuda.get_device_name() if device == "cuda" else processor()
    units = "one unit" if jobs == 1 else f"{jobs} units"
    return f"{name}, {units} at a time, torch {torch.__version__}, transformers {transformers.__version__}"


def environment(device: str) -> dict:
    """Machine, versions, git revision and date."""
    on_gpu = device == "cuda"
    return {
        "device": torch.cuda.get_device_name() if on_gpu else processor(),
        "threads": torch.get_num_threads(),
        "processors": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "cuda": torch.version.cuda if on_gpu else None,
        "revision": revision(),
        "date": date.today().isoformat(),
    }


def read(name: str, folder: Path | None = None) -> dict | None:
    """Read NAME.json of a folder, by default `results/`; `None` where nothing has been measured yet."""
    file = (folder or RESULTS) / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def write(name: str, result: dict, folder: Path | None = None) -> None:
    """Write NAME.json, as `read` reads it, through a temporary file: an interruption never leaves half of one."""
    file = (folder or RESULTS) / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    temporary.replace(file)
