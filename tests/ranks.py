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
"""Processes that share a model or its sequences, on the CPU by gloo."""

import os
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed


def run_rank(rank: int, function, folder: Path, size: int) -> None:
    """One of `size` processes: it saves what `function(folder)` returns."""
    torch.set_num_threads(1)
    # As torchrun sets them; accelerate asks for an address as well, and uses the group that is there.
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), CUDA_VISIBLE_DEVICES="")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0", LOCAL_WORLD_SIZE=str(size))
    # A rank that waits for a message that never comes must not wait for long.
    limit = timedelta(seconds=120)
    meeting = f"file://{folder}/meeting-{function.__name__}"
    distributed.init_process_group("gloo", meeting, limit, world_size=size, rank=rank)
    torch.save(function(folder), folder / f"{function.__name__}-{rank}.pt")
    distributed.destroy_process_group()


def run_ranks(function, folder: Path, size: int) -> list:
    """What `function(folder)`, of a module's level, returns in each of `size` processes."""
    torch.multiprocessing.spawn(run_rank, (function, folder, size), nprocs=size)
    return [torch.load(folder / f"{function.__name__}-{rank}.pt", weights_only=False) for rank in range(size)]
