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
"""What is measured on each device, in parts that are runs of their own."""

from collections.abc import Callable
from typing import NamedTuple

from .bench import Bench
from .decoding import decode, decode_compiled, decode_growth, decode_throughput
from .measures import (
    attention_kernels,
    limits,
    long_prompt,
    longest_context,
    packed_training,
    prefill,
    prefill_growth,
    prefill_growth_in_a_plain_process,
    training,
    training_memory,
)
from .models import FULL, MAMBA, OURS, PEERS, WINDOWED


class Plan(NamedTuple):
    """What is measured, of which models."""

    device: str
    peers: tuple[str, ...]
    seconds: float  # of a `Bench`, as the next one
    limit: float
    too_large: frozenset[tuple[str, str, int]]
    parts: list[list[tuple[str, Callable[[Bench], None]]]]  # for each part, configurations and what is done with them


def cpu_small(bench: Bench) -> None:
    prefill(bench, (1024, 4096, 16384), few=(1024, 4096, 16384))
    packed_training(bench, 4096, documents=(16, 64))
    training(bench, (1024, 4096), few=(1024, 4096))
    attention_kernels(bench, (1024,))


def cpu_growth(bench: Bench) -> None:
    """A part of its own: training on the longer row needs nearly all memory that is left beside this process."""
    prefill_growth(bench, (4096, 16384))
    prefill_growth_in_a_plain_process(bench, (4096, 16384))
    training_memory(bench, (4096, 16384), names=(OURS,))
    training(bench, (16384,))  # last, as this process then keeps most of the memory


def cpu_decode(bench: Bench) -> None:
    decode(bench, (1024, 4096, 8192, 32768), few=(1024,))
    decode_growth(bench, (1024, 32768))
    decode_throughput(bench, 8192, batches=(8,))
    decode_compiled(bench, 1024)
    limits(bench, length=1024, context=1024, matmul_size=4096, copied=2**29)


def cpu_tiny(bench: Bench) -> None:
    longest_context(bench, tokens=1_000_000, piece=8192, batch=1)
    long_prompt(bench, 200_000)


def cuda_small(bench: Bench) -> None:
    attention_kernels(bench, (1024, 8192))
    decode(bench, (1024, 8192, 32768, 65536))
    decode_compiled(bench, 1024)
    prefill(bench, (1024, 4096, 16384, 65536))
    training(bench, (1024, 4096, 16384, 65536))
    limits(bench, length=4096, context=1024, matmul_size=8192, copied=2**32)
    training_memory(bench, (4096, 16384))
    prefill_growth(bench, (4096, 16384))
    decode_growth(bench, (1024, 32768))
    decode_throughput(bench, 32768, batches=(2048, 1024, 512, 256, 128, 64, 32, 16, 8))


def cuda_large(bench: Bench) -> None:
    decode(bench, (1024, 8192, 32768))
    prefill(bench, (1024, 4096, 16384, 65536))
    training(bench, (1024, 4096, 16384))
    decode_throughput(bench, 32768, batches=(512, 256, 128, 64, 32, 16, 8))
    longest_context(bench, tokens=1_000_000, piece=8192, batch=8)


def rehearsal(bench: Bench) -> None:
    """Everything that a GPU is asked for, so small that a CPU has done it in a minute."""
    attention_kernels(bench, (192,))
    decode(bench, (130, 300))
    decode_compiled(bench, 130)
    prefill(bench, (130, 300))
    training(bench, (130, 300))
    limits(bench, length=130, context=130, matmul_size=256, copied=2**20)
    training_memory(bench, (64, 256))
    prefill_growth(bench, (130, 300))
    decode_growth(bench, (128, 256))
    decode_throughput(bench, 130, batches=(4, 2))
    longest_context(bench, tokens=1000, piece=500, batch=2)


PLANS = {
    "cpu": Plan(
        "cpu",
        PEERS,
        60,
        60,
        frozenset({("training", MAMBA, 4096)}),  # its PyTorch form keeps about 20 GB of activations
        [
            [("latent-tiny", cpu_tiny), ("latent-60m", cpu_small)],
            [("latent-60m", cpu_growth)],
            [("latent-60m", cpu_decode)],
        ],
    ),
    "cuda": Plan(
        "cuda", (FULL, WINDOWED), 5, 20, frozenset(), [[("latent-135m", cuda_small)], [("latent-1b", cuda_large)]]
    ),
    "rehearsal": Plan("cpu", (FULL, WINDOWED), 1, 20, frozenset(), [[("latent-tiny", rehearsal)]]),
}
