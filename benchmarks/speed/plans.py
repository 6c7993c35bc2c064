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

from .bench import Bench
from .measures import (
    attention_kernels,
    decode,
    decode_growth,
    decode_throughput,
    limits,
    longest_context,
    prefill,
    prefill_growth,
    training,
    training_memory,
)
from .models import OURS


def cpu_small(bench: Bench) -> None:
    prefill(bench, (1024, 4096, 16384), few=(1024, 4096))
    training(bench, (1024, 4096), few=(1024,))
    attention_kernels(bench, (1024,))


def cpu_growth(bench: Bench) -> None:
    """A part of its own: training on the longer row needs nearly all memory that is left beside this process."""
    prefill_growth(bench, (4096, 16384))
    training_memory(bench, (4096, 16384), names=(OURS,))
    training(bench, (16384,))  # last, as this process then keeps most of the memory


def cpu_decode(bench: Bench) -> None:
    decode(bench, (1024, 4096, 8192, 32768), few=(1024,))
    decode_growth(bench, (1024, 32768))
    limits(bench, length=1024, context=1024, matmul_size=4096, copied=2**29)


def cpu_tiny(bench: Bench) -> None:
    longest_context(bench, tokens=1_000_000, piece=8192, batch=1)


def cuda_prefill_decode(bench: Bench) -> None:
    few = (1024, 4096)
    prefill(bench, (1024, 4096, 16384, 65536), few)
    prefill_growth(bench, (4096, 16384))
    decode(bench, (1024, 8192, 32768), few=(1024,))
    decode_growth(bench, (1024, 32768))
    decode_throughput(bench, 32768, batches=(2048, 1536, 1024, 768, 512, 256, 128, 96, 64, 48, 32, 16, 8))


def cuda_training(bench: Bench) -> None:
    training(bench, (1024, 4096, 8192, 32768), few=(1024, 4096))
    training_memory(bench, (4096, 16384))
    attention_kernels(bench, (1024, 8192))


def cuda_limits(bench: Bench) -> None:
    training(bench, (8192,))
    limits(bench, length=8192, context=1024, matmul_size=8192, copied=2**32)
    longest_context(bench, tokens=1_000_000, piece=8192, batch=8)


# Name of the configuration and what is measured with it, by device and part.
PLANS = {
    "cpu": [
        [("latent-tiny", cpu_tiny), ("latent-60m", cpu_small)],
        [("latent-60m", cpu_growth)],
        [("latent-60m", cpu_decode)],
    ],
    "cuda": [[("latent-1b", cuda_prefill_decode)], [("latent-135m", cuda_training)], [("latent-1b", cuda_limits)]],
}
# Of a `Bench`, by device.
SECONDS, LIMIT = {"cpu": 60, "cuda": 10}, {"cpu": 60, "cuda": 20}
