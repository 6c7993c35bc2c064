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
"""How figures are compared that were drawn on different machines."""

import re
from pathlib import Path


def drawn(file: Path) -> str:
    """
    What an SVG shows. Processors compute places that differ in the last digits, and matplotlib makes names of parts of
    them, too. So numbers are cut to three digits here, less than can be seen, and all parts have one name.
    """
    text = re.sub(r"\b[a-z][0-9a-f]{10}\b", "part", file.read_text(encoding="utf-8"))
    return re.sub(r"-?\d+\.\d+", lambda number: f"{float(number[0]):.3f}", text)
