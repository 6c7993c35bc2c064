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
"""What takes minutes more than a change is worth: four ranks, checkpointed layers, and the page's real launchers."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh

from ranks import run_ranks
from test_context_parallel import (
    CASES,
    PREFILLED,
    check_like_one_process,
    make_model,
    next_logits,
    prefill,
    results,
    tensors_of,
)
from test_scaling import COMMANDS, ROOT, make_folder, small_steps


def share_all(folder) -> dict:
    """Everything that one of the ranks finds, with layers that are computed again in the backward."""
    mesh, found = init_device_mesh("cpu", (distributed.get_world_size(),)), {}
    for name, (overrides, inputs) in CASES.items():
        model = make_model(overrides)
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_context_parallel(mesh)
        found[name] = results(model, inputs)
    for name, overrides in PREFILLED.items():
        model = make_model(overrides).eval()
        model.enable_context_parallel(mesh)
        found["prefilled", name] = prefill(model, CASES[name][1])
    return found


@pytest.mark.parametrize("size", [3, 4])
def test_more_ranks_and_checkpointed_layers_give_what_one_process_gives(size, tmp_path):
    parts = run_ranks(share_all, tmp_path, size)
    for name, (overrides, inputs) in CASES.items():
        real = inputs.get("attention_mask", torch.ones_like(inputs["labels"])).bool()
        check_like_one_process([part[name] for part in parts], results(make_model(overrides), inputs), real)
    for name, overrides in PREFILLED.items():
        model = make_model(overrides).eval()
        expected = prefill(model, CASES[name][1])
        for part in parts:
            found = part["prefilled", name]
            torch.testing.assert_close(next_logits(model, found), next_logits(model, expected), atol=1e-9, rtol=0)
            for layer, of_one in zip(found.layers, expected.layers, strict=True):
                torch.testing.assert_close(tensors_of(layer.state), tensors_of(of_one.state), atol=1e-9, rtol=0)


def test_each_command_of_the_page_runs_by_its_own_launcher(tmp_path):
    make_folder(tmp_path)
    scripts = Path(sys.executable).parent
    variables = {"PATH": f"{scripts}:/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    variables |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    for command in map(small_steps, COMMANDS):
        words = shlex.split(command)
        if words[0] == "accelerate":
            words.insert(2, "--multi_gpu")  # what it takes by itself where it sees several; else it starts one process
        ended = subprocess.run(
            [scripts / words[0], *words[1:]], cwd=tmp_path, env=variables, capture_output=True, text=True
        )
        assert ended.returncode == 0, f"{command}\n{ended.stderr[-3000:]}"
