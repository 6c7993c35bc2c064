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
"""
Targets and ratios of results/speed-*.json as Markdown, in the READMEs between their markers.

    python -m benchmarks.table
"""

import json
import operator
import os
from collections.abc import Callable
from math import exp, log
from pathlib import Path
from typing import NamedTuple

from . import record
from .peers import FULL, OURS


ROOT = Path(__file__).parents[1]
READMES = (ROOT / "README.md", ROOT / "benchmarks" / "README.md")
FIGURES = ROOT / "benchmarks" / "figures"
FIELDS = {"cache": "bytes", "training memory": "bytes"}  # "seconds" of all others
TITLES = {
    "decode": "decoding, time per token",
    "prefill": "prefill, time",
    "training": "training step, time",
    "cache": "cache, bytes",
}
# The configuration that speaks for a measure, where more than one was measured.
SPEAKS = {"training": "latent-135m", "training memory": "latent-135m"}


def load(device: str) -> dict | None:
    file = record.RESULTS / f"speed-{device}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def section(result: dict, measure: str) -> tuple[str, dict]:
    """Name of the configuration that `measure` was taken with, and its points by model and length."""
    names = [name for name, points in result["models"].items() if measure in points]
    name = SPEAKS[measure] if SPEAKS.get(measure) in names else next(iter(names), "")
    return name, result["models"].get(name, {}).get(measure, {})


def curve(result: dict, measure: str, model: str) -> dict[int, float]:
    """Seconds or bytes by length."""
    points = section(result, measure)[1].get(model, {})
    return {int(length): point[FIELDS.get(measure, "seconds")] for length, point in points.items()}


def crossing(ours: dict[int, float], peer: dict[int, float]) -> float | None:
    """The length from which on ours is below the peer, between points along powers of the length; None: at no one."""
    lengths = sorted(ours.keys() & peer.keys())
    ratios = [log(ours[length] / peer[length]) for length in lengths]
    above = [index for index, ratio in enumerate(ratios) if ratio >= 0]
    if not above:
        return lengths[0]
    last = above[-1]
    if last == len(lengths) - 1:
        return None
    part = ratios[last] / (ratios[last] - ratios[last + 1])
    return exp(log(lengths[last]) + part * log(lengths[last + 1] / lengths[last]))


def crossing_text(ours: dict[int, float], peer: dict[int, float]) -> str:
    lengths, length = sorted(ours.keys() & peer.keys()), crossing(ours, peer)
    if length is None:
        return f"not up to {lengths[-1]:,}"
    return f"at {lengths[0]:,} already" if length == lengths[0] else f"from {length:,.0f} on"


class Target(NamedTuple):
    measure: str
    value: Callable[[dict], float]  # of a result; `KeyError` where it was not measured
    sign: str = ""
    bound: float | None = None  # None: stated, without a target

    def row(self, result: dict) -> str:
        target = "none" if self.bound is None else f"{self.sign} {self.bound:,}"
        try:
            value = self.value(result)
        except KeyError:
            return f"| {self.measure} | {target} | | not measured |\n"
        verdict = "" if self.bound is None else "met" if SIGNS[self.sign](value, self.bound) else "**missed**"
        return f"| {self.measure} | {target} | {number(value)} | {verdict} |\n"


SIGNS = {"≤": operator.le, "<": operator.lt, "≥": operator.ge, "=": operator.eq}


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def growth(measure: str, length: int, than: int) -> Callable[[dict], float]:
    return lambda result: curve(result, measure, OURS)[length] / curve(result, measure, OURS)[than]


def versus(measure: str, length: int) -> Callable[[dict], float]:
    return lambda result: curve(result, measure, OURS)[length] / curve(result, measure, FULL)[length]


def throughput(result: dict) -> float:
    points = section(result, "throughput")[1]
    return points[OURS]["32768"]["tokens"] / points[FULL]["32768"]["tokens"]


def formula(result: dict) -> float:
    name, points = section(result, "cache")
    return points[OURS]["32768"]["bytes"] / result["models"][name]["state_bytes"]


def longest(field: str, unit: float = 1) -> Callable[[dict], float]:
    return lambda result: section(result, "longest context")[1][OURS]["1000000"][field] / unit


def share(field: str) -> Callable[[dict], float]:
    return lambda result: next(iter(section(result, "limits")[1][OURS].values()))[field]


CPU_TARGETS = (
    Target("decoding, time per token, 32k of context ÷ 1k", growth("decode growth", 32768, 1024), "≤", 1.05),
    Target("decoding, ours ÷ Llama, at 1k", versus("decode", 1024), "≤", 1.25),
    Target("decoding, ours ÷ Llama, at 8k", versus("decode", 8192), "<", 1.0),
    Target("decoding, ours ÷ Llama, at 32k", versus("decode", 32768), "≤", 0.4),
    Target("bytes of the cache ÷ the formula", formula, "=", 1),
    Target("bytes of the cache, ours ÷ Llama, at 32k", versus("cache", 32768), "≤", 0.05),
    Target("prefill, 16k ÷ 4k", growth("prefill growth", 16384, 4096), "≤", 4.3),
    Target("prefill, ours ÷ Llama, at 1k", versus("prefill", 1024), "≤", 1.35),
    Target("prefill, ours ÷ Llama, at 16k", versus("prefill", 16384), "≤", 0.5),
    Target("training step, ours ÷ Llama, at 1k", versus("training", 1024), "≤", 1.35),
    Target("training step, ours ÷ Llama, at 4k", versus("training", 4096), "≤", 1.0),
    Target("training step, ours ÷ Llama, at 16k", versus("training", 16384), "≤", 0.5),
    Target("peak memory of training, 16k ÷ 4k", growth("training memory", 16384, 4096), "≤", 4.3),
    Target("1,000,000 tokens of context, `latent-tiny`: GiB", longest("bytes", 2**30), "≤", 8),
    Target("matrix products of training ÷ measured peak", share("training_share")),
    Target("bytes that decoding must move ÷ measured bandwidth", share("decode_share")),
)
CUDA_TARGETS = (
    Target("decoding, time per token, 32k of context ÷ 1k", growth("decode growth", 32768, 1024), "≤", 1.05),
    Target("decoding, ours ÷ Llama, at 1k, batch 1", versus("decode", 1024), "≤", 1.2),
    Target("tokens/s at 32k, largest batches, ours ÷ Llama", throughput, "≥", 8),
    Target("bytes of the cache ÷ the formula", formula, "=", 1),
    Target("bytes of the cache, ours ÷ Llama, at 32k", versus("cache", 32768), "≤", 0.05),
    Target("prefill, 16k ÷ 4k", growth("prefill growth", 16384, 4096), "≤", 4.2),
    Target("prefill, ours ÷ Llama, at 16k", versus("prefill", 16384), "<", 1.0),
    Target("prefill, ours ÷ Llama, at 64k", versus("prefill", 65536), "≤", 0.35),
    Target("training step, ours ÷ Llama, at 8k", versus("training", 8192), "<", 1.0),
    Target("training step, ours ÷ Llama, at 32k", versus("training", 32768), "≤", 0.5),
    Target("peak memory of training, 16k ÷ 4k", growth("training memory", 16384, 4096), "≤", 4.2),
    Target("1,000,000 tokens of context, `latent-1b`: rows at once", longest("batch"), "≥", 8),
    Target("matrix products of training ÷ measured peak", share("training_share"), "≥", 0.45),
    Target("bytes that decoding must move ÷ measured bandwidth", share("decode_share"), "≥", 0.6),
)
TARGETS = {"cpu": CPU_TARGETS, "cuda": CUDA_TARGETS}


def targets(result: dict, device: str) -> str:
    return "| measure | target | value | |\n|---|---|---:|---|\n" + "".join(
        target.row(result) for target in TARGETS[device]
    )


def ratios(result: dict) -> str:
    """Ours divided by each peer, at each length, and where the two cross."""
    return "\n".join(measure_ratios(result, measure) for measure in TITLES if curve(result, measure, OURS))


def measure_ratios(result: dict, measure: str) -> str:
    ours = curve(result, measure, OURS)
    models = section(result, measure)[1]
    header = f"| {TITLES[measure]}, `{section(result, measure)[0]}` | " + " | ".join(f"{length:,}" for length in ours)
    text = f"{header} | ours is below |\n|---|" + "---:|" * len(ours) + "---|\n"
    for name in [model for model in models if model != OURS]:
        peer = curve(result, measure, name)
        cells = [f"{ours[length] / peer[length]:.2f}" if length in peer else "" for length in ours]
        text += f"| ours ÷ {name} | {' | '.join(cells)} | {crossing_text(ours, peer)} |\n"
    return text


def overview(result: dict) -> str:
    """Ours divided by Llama, a row for each measure."""
    measures = [measure for measure in TITLES if curve(result, measure, OURS)]
    lengths = sorted({length for measure in measures for length in curve(result, measure, OURS)})
    header = "| ours ÷ Llama, at tokens | " + " | ".join(f"{length:,}" for length in lengths)
    text = f"{header} |\n|---|" + "---:|" * len(lengths) + "\n"
    for measure in measures:
        ours, llama = (curve(result, measure, model) for model in (OURS, FULL))
        cells = [
            f"{ours[length] / llama[length]:.2f}" if length in ours and length in llama else "" for length in lengths
        ]
        text += f"| {TITLES[measure]} | {' | '.join(cells)} |\n"
    return text


def origin(result: dict, device: str, readme: Path) -> str:
    """The figure, and in one line where the numbers come from. All parts are of one machine and the same versions."""
    environments = list(result["parts"].values())
    environment = environments[0]
    for name in ("device", "threads", "torch", "transformers"):
        values = {part[name] for part in environments}
        if len(values) > 1:
            raise ValueError(f"Parts of speed-{device}.json differ in `{name}`, {values}: measure all of them again.")
    figure = os.path.relpath(FIGURES / f"speed-{device}.svg", readme.parent)
    file = os.path.relpath(record.RESULTS / f"speed-{device}.json", readme.parent)
    return (
        f"![Time and memory against length]({figure})\n\n"
        f"[{Path(file).name}]({file}): {environment['device']}, {environment['threads']} threads, torch "
        f"{environment['torch']}, transformers {environment['transformers']}, {environment['date']}, "
        f"{record.code_at(part['revision'] for part in environments)}.\n\n"
    )


def render(device: str, block: str, readme: Path) -> str:
    result = load(device)
    if result is None:
        return f"Not measured yet: `make {'bench' if device == 'cpu' else 'bench-gpu'}` writes it.\n"
    if block == "ratios":
        return ratios(result)
    return origin(result, device, readme) + (targets(result, device) if block == "targets" else overview(result))


def rendered(readme: Path) -> str:
    text = readme.read_text(encoding="utf-8")
    for device in TARGETS:
        for block in ("overview", "targets", "ratios"):
            text = record.fill_in(text, f"speed-{device} {block}", render(device, block, readme))
    return text


if __name__ == "__main__":
    for readme in READMES:
        readme.write_text(rendered(readme), encoding="utf-8")
