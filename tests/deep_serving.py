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
"""The code of docs/serving.md runs, and leaves the files that it names."""

import re
from pathlib import Path

import pytest

from test_export import can_run_exports
from test_serving import served


PAGE = (Path(__file__).parents[1] / "docs" / "serving.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


@can_run_exports
@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_every_snippet_runs_and_leaves_what_its_comments_name(snippet, tmp_path, monkeypatch):
    model, tokenizer = served(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet, "docs/serving.md", "exec"), {"model": model, "tokenizer": tokenizer})
    for folder, files in re.findall(r'save_pretrained\("(\w+)"\)  # (.*)', snippet):
        for file in files.split(" and "):
            assert (tmp_path / folder / file).stat().st_size > 0
