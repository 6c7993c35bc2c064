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
"""What speed and memory shall be, on two CPU cores and on a GPU."""

import operator
from collections.abc import Callable
from typing import NamedTuple

from .curves import curve, section
from .models import FULL, OURS


class Target(NamedTuple):
    """What a measure shall be in version 0.2.0, fixed before anything was measured against it."""

    measure: str
    value: Callable[[dict], float]  # of a result; `KeyError` where it was not measured
    sign: str = ""
    bound: float | None = None  # None: stated, without a target

    def row(self, result: dict) -> list[str]:
        target = "none" if self.bound is None else f"{self.sign} {self.bound:,}"
        try:
            value = self.value(result)
        except KeyError:
            return [self.measure, target, "", "not measured"]
        verdict = "" if self.bound is None else "met" if SIGNS[self.sign](value, self.bound) else "**missed**"
        return [self.measure, target, number(value), verdict]


SIGNS = {"≤": operator.le, "<": operator.lt, "≥": operator.ge, "=": operator.eq}


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def growth(measure: str, length: int, than: int) -> Callable[[dict], float]:
    """Ours at one length divided by ours at another."""
    return lambda result: curve(result, measure, OURS)[length] / curve(result, measure, OURS)[than]


def versus(measure: str, length: int) -> Callable[[dict], float]:
    """Ours divided by Llama."""
    return lambda result: curve(result, measure, OURS)[length] / curve(result, measure, FULL)[length]


def throughput(context: int) -> Callable[[dict], float]:
    """Tokens per second behind so many tokens, ours divided by Llama's."""

    def value(result: dict) -> float:
        points = section(result, "throughput")[1]
        return points[OURS][str(context)]["tokens"] / points[FULL][str(context)]["tokens"]

    return value


def bytes_of(measure: str, length: int) -> Callable[[dict], float]:
    """The memory of ours, in GiB."""
    return lambda result: section(result, measure)[1][OURS][str(length)]["bytes"] / 2**30


def formula(result: dict) -> float:
    """Bytes that our cache holds, divided by those that the configuration says."""
    name, points = section(result, "cache")
    return points[OURS]["32768"]["bytes"] / result["models"][name]["state_bytes"]


def share(field: str) -> Callable[[dict], float]:
    """Of what the machine can do, at the one length where that was measured."""
    return lambda result: next(iter(section(result, "limits")[1][OURS].values()))[field]


CPU_TARGETS = (
    Target("decoding, time per token, 32k of context ÷ 1k", growth("decode growth", 32768, 1024), "≤", 1.05),
    Target("decoding, ours ÷ Llama, at 1k", versus("decode", 1024), "≤", 0.9),
    Target("decoding, ours ÷ Llama, at 8k", versus("decode", 8192), "≤", 0.5),
    Target("decoding, ours ÷ Llama, at 32k", versus("decode", 32768), "≤", 0.15),
    Target("decoding, both compiled, ours ÷ Llama, at 1k", versus("decode compiled", 1024)),
    Target("tokens/s of 8 rows, ours ÷ Llama, at 8k", throughput(8192), "≥", 7),
    Target("bytes of the cache ÷ the formula", formula, "=", 1),
    Target("bytes of the cache, ours ÷ Llama, at 32k", versus("cache", 32768), "≤", 0.05),
    Target("prefill, 16k ÷ 4k", growth("prefill growth", 16384, 4096), "≤", 4.2),
    Target("the same in a plain process", growth("prefill growth, plain process", 16384, 4096), "≤", 4.6),
    Target("prefill, ours ÷ Llama, at 1k", versus("prefill", 1024), "≤", 0.95),
    Target("prefill, ours ÷ Llama, at 16k", versus("prefill", 16384), "≤", 0.4),
    Target("training step, ours ÷ Llama, at 1k", versus("training", 1024), "≤", 0.9),
    Target("training step, ours ÷ Llama, at 4k", versus("training", 4096), "≤", 0.75),
    Target("training step, ours ÷ Llama, at 16k", versus("training", 16384), "≤", 0.4),
    Target("training on documents of 64 tokens ÷ on one of 4,096", growth("packed training", 64, 4096), "≤", 1.3),
    Target("training on documents of 16 tokens ÷ on one of 4,096", growth("packed training", 16, 4096)),
    Target("peak memory of training, 16k ÷ 4k", growth("training memory", 16384, 4096), "≤", 4.2),
    Target("a prompt of 200,000 tokens, `latent-tiny`: GiB", bytes_of("long prompt", 200_000), "≤", 1),
    Target("1,000,000 tokens of context, `latent-tiny`: GiB", bytes_of("longest context", 1_000_000), "≤", 8),
    Target("matrix products of training ÷ measured peak", share("training_share")),
    Target("bytes that decoding must move ÷ measured bandwidth", share("decode_share")),
)
CUDA_TARGETS = (
    Target("decoding, time per token, 32k of context ÷ 1k", growth("decode growth", 32768, 1024), "≤", 1.05),
    Target("decoding, ours ÷ Llama, at 1k, batch 1", versus("decode", 1024), "≤", 1.2),
    Target("decoding, both compiled, ours ÷ Llama, at 1k", versus("decode compiled", 1024)),
    Target("tokens/s at 32k, largest batches, ours ÷ Llama", throughput(32768), "≥", 8),
    Target("bytes of the cache ÷ the formula", formula, "=", 1),
    Target("bytes of the cache, ours ÷ Llama, at 32k", versus("cache", 32768), "≤", 0.05),
    Target("prefill, 16k ÷ 4k", growth("prefill growth", 16384, 4096), "≤", 4.2),
    Target("prefill, ours ÷ Llama, at 16k", versus("prefill", 16384), "<", 1.0),
    Target("prefill, ours ÷ Llama, at 64k", versus("prefill", 65536), "≤", 0.35),
    Target("training step, ours ÷ Llama, at 16k", versus("training", 16384), "<", 1.0),
    Target("training step, ours ÷ Llama, at 64k", versus("training", 65536), "≤", 0.5),
    Target("peak memory of training, 16k ÷ 4k", growth("training memory", 16384, 4096), "≤", 4.2),
    Target("1,000,000 tokens of context, 8 rows: GiB", bytes_of("longest context", 1_000_000)),
    Target("matrix products of training ÷ measured peak", share("training_share"), "≥", 0.45),
    Target("bytes that decoding must move ÷ measured bandwidth", share("decode_share"), "≥", 0.6),
)
TARGETS = {"cpu": CPU_TARGETS, "cuda": CUDA_TARGETS}
