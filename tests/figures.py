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
"""
The figures of the deep tests: each test keeps its own in benchmarks/results/reliability.json, from which this writes
the table of docs/reliability.md.

    PYTHONPATH=. python tests/figures.py
"""

from datetime import date
from pathlib import Path

import torch
import transformers

from benchmarks.record import code_at, read, revision, write
from benchmarks.report import fill_in


PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"
NAME = "reliability"


def kept() -> dict[str, dict]:
    return read(NAME) or {}


def keep(what: str, figure: str, allowed: str) -> None:
    """Note the `figure` that a deep test found, and the one that it allows, instead of what an earlier run noted."""
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    entry = {
        "figure": figure,
        "allowed": allowed,
        "date": date.today().isoformat(),
        "revision": revision(),
        **versions,
    }
    write(NAME, {**kept(), what: entry})


def table(entries: dict[str, dict]) -> str:
    versions = {(entry["date"], entry["torch"], entry["transformers"]) for entry in entries.values()}
    lines = [f"{day}, torch {torch_}, transformers {library}" for day, torch_, library in sorted(versions)]
    lines = ["; ".join(lines) + f"; {code_at(entry['revision'] for entry in entries.values())}.", ""]
    lines += ["| what | allowed | found |", "|---|---|---|"]
    lines += [f"| {what} | {entry['allowed']} | {entry['figure']} |" for what, entry in sorted(entries.items())]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(fill_in(PAGE.read_text(encoding="utf-8"), "figures", table(kept())), encoding="utf-8")
