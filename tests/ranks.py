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

import multiprocessing
import os
import runpy
import socket
import sys
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed


# Processes are forked from one that has imported these already, which takes longer than what they then do.
multiprocessing.set_forkserver_preload(["torch.distributed.fsdp", "accelerate", "modeling_latent"])


def set_environment(rank: int, size: int, port: int) -> None:
    """Set the variables that torchrun sets."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), LOCAL_WORLD_SIZE=str(size))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), CUDA_VISIBLE_DEVICES="")


def run_rank(rank: int, function, folder: Path, size: int, arguments: tuple) -> None:
    """One of `size` processes: it saves what `function(folder, *arguments)` returns."""
    torch.set_num_threads(1)
    set_environment(rank, size, port=0)  # accelerate asks for an address, and uses the group that is there
    # A rank that waits for a message that never comes must not wait for long.
    limit = timedelta(seconds=120)
    meeting = f"file://{folder}/meeting-{function.__name__}"
    distributed.init_process_group("gloo", meeting, limit, world_size=size, rank=rank)
    torch.save(function(folder, *arguments), folder / f"{function.__name__}-{rank}.pt")
    distributed.destroy_process_group()


def run_ranks(function, folder: Path, size: int, *arguments) -> list:
    """What `function(folder, *arguments)`, of a module's level, returns in each of `size` processes."""
    settings = (function, folder, size, arguments)
    torch.multiprocessing.start_processes(run_rank, settings, size, start_method="forkserver")
    return [torch.load(folder / f"{function.__name__}-{rank}.pt", weights_only=False) for rank in range(size)]


def run_program(rank: int, folder: Path, size: int, port: int, program: str, *arguments: str) -> None:
    """One of the processes of a program, which meets the others by itself."""
    torch.set_num_threads(1)
    set_environment(rank, size, port)
    os.chdir(folder)
    sys.argv = [program, *arguments]
    sys.path.insert(0, str(Path(program).parent))
    runpy.run_path(program, run_name="__main__")


def run_like_torchrun(folder: Path, size: int, program: str, *arguments: str) -> None:
    """Run a Python file in the folder as `torchrun --nproc_per_node` does, without its start of a few seconds each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = (folder, size, port, program, *arguments)
    torch.multiprocessing.start_processes(run_program, settings, size, start_method="forkserver")
