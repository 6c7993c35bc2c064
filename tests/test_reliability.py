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
"""docs/reliability.md and docs/compatibility.md: tests they name exist, tables and quoted words are the code's."""

import ast
import json
import re
from pathlib import Path

import pytest

import figures
import matrix


ROOT = Path(__file__).parents[1]
REFUSED = matrix.PAGE.read_text(encoding="utf-8").split("## What is refused")[1]


def shown(page: Path, mark: str) -> str:
    return page.read_text(encoding="utf-8").split(f"<!-- {mark}: start -->\n")[1].split(f"<!-- {mark}: end -->")[0]


def test_the_figures_are_those_that_the_deep_tests_kept():
    assert shown(figures.PAGE, "figures") == figures.table(figures.kept())


def test_the_matrix_is_the_one_that_was_run():
    if matrix.RESULTS.exists():
        assert shown(matrix.PAGE, "matrix") == matrix.table(json.loads(matrix.RESULTS.read_text(encoding="utf-8")))
    else:
        assert "Not run yet" in shown(matrix.PAGE, "matrix")


@pytest.mark.parametrize("name", re.findall(r"`((?:test|deep)_\w+\.py)`", figures.PAGE.read_text(encoding="utf-8")))
def test_every_file_that_is_named_exists(name):
    assert (ROOT / "tests" / name).is_file()


def texts() -> list[str]:
    """What the package's messages say, without the values in them."""
    found = []
    for file in (ROOT / "modeling_latent").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            found += [part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)]
    return found


@pytest.mark.parametrize("words", re.findall(r'\| "(.*)" \|', REFUSED))
def test_every_error_that_is_quoted_is_one_of_the_package_s(words):
    assert any(words in text for text in texts())
