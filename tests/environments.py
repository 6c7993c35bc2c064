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
"""Environments of other versions than the tests run in: made once, used until what goes into them changes."""

import subprocess
import sys
from pathlib import Path


ROOT = Path(__file__).parents[1]


def make_environment(folder: Path, constraints: str, *installations: list[str]) -> Path:
    """
    The interpreter of an environment in `folder` where pip made one `installation` after the other: torch first and
    alone, as a range that another package asks for could bring in a larger build.
    """
    contents, stamp = f"Python {sys.version}\n{installations}\n{constraints}", folder / "complete"
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != contents:
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        file = folder / "constraints.txt"
        file.write_text(constraints, encoding="utf-8")
        for packages in installations:
            install = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--constraint", file]
            subprocess.run([*install, *packages], check=True)
        stamp.write_text(contents, encoding="utf-8")
    return folder / "bin" / "python"
