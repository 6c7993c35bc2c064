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
"""The ready-made configurations: their sizes are those that their names and the README say, and they carry no code."""

import json
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from configuration import summary
from modeling_latent import LatentAttentionConfig


pytestmark = pytest.mark.quick

README = Path(summary.__file__).parent / "README.md"


def build_on_meta(name: str) -> torch.nn.Module:
    config = AutoConfig.from_pretrained(README.parent / name)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("name", summary.NAMES)
def test_readme_states_the_number_of_parameters(name):
    row = re.search(rf"^\| `{name}` \|.*$", README.read_text(encoding="utf-8"), re.MULTILINE).group()
    stated = int(row.split("|")[4].replace(",", ""))
    assert sum(parameter.numel() for parameter in build_on_meta(name).parameters()) == stated


def test_readme_table_is_what_the_command_writes(tmp_path):
    written = tmp_path / "README.md"
    start, end = "<!-- table: start -->\n", "<!-- table: end -->\n"
    written.write_text(f"# Title\n{start}an old table\n{end}The end.\n", encoding="utf-8")
    summary.write(written)
    table = written.read_text(encoding="utf-8").removeprefix("# Title\n" + start).removesuffix(end + "The end.\n")
    assert table.count("\n") == 2 + len(summary.NAMES)
    assert start + table + end in README.read_text(encoding="utf-8")


def test_every_folder_is_in_the_table():
    assert sorted(path.parent.name for path in README.parent.glob("*/config.json")) == sorted(summary.NAMES)


@pytest.mark.parametrize("name, parameters", [("latent-135m", 135e6), ("latent-360m", 360e6), ("latent-1b", 1e9)])
def test_names_are_true(name, parameters):
    total, _ = summary.count_parameters(AutoConfig.from_pretrained(README.parent / name))
    assert total == pytest.approx(parameters, rel=0.03)


@pytest.mark.parametrize("name", summary.NAMES)
def test_ready_made_configurations_carry_no_code(name):
    stored = json.loads((README.parent / name / "config.json").read_text(encoding="utf-8"))
    assert stored["model_type"] == "latent_attention"
    assert stored["architectures"] == ["LatentAttentionForCausalLM"]
    assert "auto_map" not in stored
    assert sorted(path.name for path in (README.parent / name).iterdir()) == ["config.json"]
    known = LatentAttentionConfig().to_dict()
    assert set(stored) <= set(known)
