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
"""docs/scaling.md: its commands and files run, its tables come from the file that the benchmark wrote."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from transformers import AutoModelForCausalLM

from benchmarks import communication, record
from modeling_latent import LatentAttentionForCausalLM
from ranks import run_like_torchrun, run_ranks
from test_examples import TEXTS, tiny_configuration


ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
COMMANDS = [
    line for block in re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL) for line in block.strip().splitlines()
]
FILES = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE, flags=re.DOTALL))
# Beside what the page says: small, few steps, on the CPU.
FEW = "--dataset texts --config config --use_cpu --max_steps 2 --block_size 32 --report_to none --save_strategy no"
PROCESSES = re.compile(r"(torchrun --nproc_per_node|accelerate launch --num_processes) 2 ")


def make_folder(folder: Path) -> None:
    """What the commands find: the page's own files, the examples, a few texts and a tiny configuration."""
    (folder / "texts").mkdir()
    for index, text in enumerate(TEXTS):
        (folder / "texts" / f"{index}.txt").write_text(text, encoding="utf-8")
    tiny_configuration(folder / "config")
    shutil.copytree(ROOT / "examples", folder / "examples")
    for name, content in FILES.items():
        (folder / name).write_text(content, encoding="utf-8")


def small_steps(command: str) -> str:
    return f"{command} {FEW}" if " examples/" in command else command


def test_commands_of_the_page_run_in_two_processes(tmp_path):
    make_folder(tmp_path)
    assert len(COMMANDS) == 7
    assert all(PROCESSES.match(command) for command in COMMANDS)
    # Once where two launchers start the same program; deep_context_parallel.py starts each by its own.
    for command in dict.fromkeys(PROCESSES.sub("", small_steps(command)) for command in COMMANDS):
        program, *arguments = shlex.split(command)
        run_like_torchrun(tmp_path, 2, str(tmp_path / program), *arguments)
    for name in ("data", "sharded", "tensor", "long"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "out" / name)


def test_tables_of_the_page_are_those_of_the_file():
    shown = communication.texts(record.read("communication"))
    assert shown.keys() == {"bytes", "plan", "share_of_time"}
    for mark, text in shown.items():
        assert f"<!-- {mark}: start -->\n{text}<!-- {mark}: end -->" in PAGE


def formula(config, sender: int, size: int) -> int:
    """Bytes in bfloat16 that a rank sends in one layer of the kind "both", forward and backward, as the page says."""
    keys_values = 2 * config.num_key_value_heads * config.head_dim * 2
    convolutions = (config.conv_kernel_size - 1 + config.mlp_conv_kernel_size - 1) * config.hidden_size * 2
    to_next = config.chunk_size * keys_values + convolutions
    statistics = 4 * config.num_attention_heads * config.num_latents * (config.head_dim + 2)
    to_later = config.num_sink_tokens * keys_values + statistics
    neighbours = (sender < size - 1) + (sender > 0)
    return neighbours * to_next + (size - 1) * to_later


@pytest.mark.parametrize(("length", "size", "rank"), [(1024, 2, 0), (1024, 4, 1), (4096, 4, 1)])
def test_bytes_that_are_sent_are_those_of_the_formula_and_do_not_grow_with_the_row(length, size, rank):
    config = communication.one_layer("both")
    assert communication.sent(config, length, size, rank) == formula(config, rank, size)


def small() -> dict:
    return {"hidden_size": 32, "intermediate_size": 32, "vocab_size": 64, "chunk_size": 8, "num_latents": 4}


def count_for_real(folder: Path) -> int:
    config = communication.one_layer("both", **small())
    model = LatentAttentionForCausalLM(config).bfloat16().train()
    model.enable_context_parallel(init_device_mesh("cpu", (2,)))
    compare, rank = model.model.rank_group.check_same, distributed.get_rank()
    uncounted = communication.Messages(rank)

    def check_same(tokens):
        with uncounted:
            compare(tokens)

    model.model.rank_group.check_same = check_same
    with communication.Messages(rank) as messages:
        communication.step(model, torch.ones(1, 50, dtype=torch.long))
    return messages.bytes - uncounted.bytes


def test_two_real_processes_send_what_is_counted_without_them(tmp_path):
    config = communication.one_layer("both", **small())
    expected = [communication.sent(config, 50, 2, rank) for rank in range(2)]
    assert run_ranks(count_for_real, tmp_path, 2) == expected
