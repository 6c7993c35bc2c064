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
"""examples/train_long.py: rows that processes share train a model as one process does."""

import json
from pathlib import Path

import pytest
import torch
from accelerate.big_modeling import _attach_context_parallel_hooks
from datasets import Dataset
from transformers import AutoModelForCausalLM, TrainingArguments

import train_long
from common import tiny_model
from ranks import run_ranks
from test_examples import BLOCK, config_folder, flags, texts


# Fixtures of another file, under names that no argument hides.
texts, config_folder = texts, config_folder


def settings(texts, output_dir, config_folder, *more: str) -> list[str]:
    return flags(texts, output_dir, "--config", str(config_folder), "--max_steps", "4", "--eval_steps", "4", *more)


def losses(folder: Path) -> list[float]:
    state = json.loads((folder / "checkpoint-4" / "trainer_state.json").read_text(encoding="utf-8"))
    return [entry[name] for entry in state["log_history"] for name in ("loss", "eval_loss") if name in entry]


def train_and_look(folder: Path, arguments: list[str]) -> set:
    """Train, and return the shapes of the tokens that the model embeds."""
    shapes = set()

    def note(module, inputs):
        if isinstance(module, torch.nn.Embedding):
            shapes.add(tuple(inputs[0].shape))

    torch.nn.modules.module.register_module_forward_pre_hook(note)
    train_long.main(arguments)
    return shapes


def test_two_processes_that_share_rows_train_what_one_process_trains(texts, config_folder, tmp_path):
    more = ("--logging_steps", "1", "--save_steps", "4")
    train_long.main(settings(texts, tmp_path / "one", config_folder, *more))
    shared = settings(texts, tmp_path / "two", config_folder, "--cp_size", "2", *more)
    halves = run_ranks(train_and_look, tmp_path, 2, shared)
    assert halves == [{(4, BLOCK // 2)}] * 2
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=2e-4)
    models = [AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("one", "two")]
    for (name, expected), found in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert (found - expected).abs().max() < 1e-3, name


def test_accelerate_refuses_to_split_these_layers_by_its_own_means():
    """The reason why the program does not hand its `ParallelismConfig` to the `Trainer`."""
    with pytest.raises(ValueError, match="does not support attention layers of type .'latent_attention'."):
        _attach_context_parallel_hooks(tiny_model())


def test_processes_of_a_group_get_the_same_rows_in_turn():
    rows = Dataset.from_dict({"row": range(11)})
    dealt = train_long.rows_of_groups(rows, batch_size=2, groups=2, cp_size=3)["row"]
    batches = [tuple(dealt[start : start + 2]) for start in range(0, len(dealt), 2)]
    assert batches == [(0, 1)] * 3 + [(2, 3)] * 3 + [(4, 5)] * 3 + [(6, 7)] * 3
    with pytest.raises(ValueError, match="gives 11 rows .* need at least 12"):
        train_long.rows_of_groups(rows, batch_size=6, groups=2, cp_size=1)


def test_flags_with_which_processes_would_not_share_rows_are_refused(tmp_path):
    with pytest.raises(ValueError, match="--cp_size is 2 but must divide the number of processes, 1"):
        train_long.LongArguments(cp_size=2).groups(TrainingArguments(tmp_path, use_cpu=True))
    for given, message in (
        ({"train_sampling_strategy": "random"}, "--train_sampling_strategy is random but must be sequential"),
        ({"accelerator_config": {"split_batches": True}}, "`split_batches` or `dispatch_batches`"),
    ):
        args = TrainingArguments(tmp_path, use_cpu=True, **{"train_sampling_strategy": "sequential"} | given)
        with pytest.raises(ValueError, match=message):
            train_long.check_order(args)
