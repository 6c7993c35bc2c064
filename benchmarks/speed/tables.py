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
The tables of results/speed-*.json, in the READMEs between their marks, and its figure.

    python -m benchmarks.speed.tables
"""

import os
from functools import partial
from pathlib import Path

from benchmarks import record, report

from . import figures
from .curves import crossing, curve, section
from .models import FULL, OURS
from .targets import TARGETS


ROOT = Path(__file__).parents[2]
READMES = (ROOT / "README.md", ROOT / "benchmarks" / "speed" / "README.md")
TITLES = {
    "decode": "decoding, time per token",
    "prefill": "prefill, time",
    "training": "training step, time",
    "cache": "cache, bytes",
}


def crossing_text(ours: dict[int, float], peer: dict[int, float]) -> str:
    lengths, length = sorted(ours.keys() & peer.keys()), crossing(ours, peer)
    if length is None:
        return f"not up to {lengths[-1]:,}"
    return f"at {lengths[0]:,} already" if length == lengths[0] else f"from {length:,.0f} on"


def targets(result: dict, device: str) -> str:
    rows = [target.row(result) for target in TARGETS[device]]
    return report.markdown([["measure", "target", "value", ""], *rows], align="llrl")


def measured(result: dict) -> list[str]:
    """Those of `TITLES` that ours was measured with."""
    return [measure for measure in TITLES if curve(result, measure, OURS)]


def ratio_cells(ours: dict[int, float], peer: dict[int, float], lengths: list[int]) -> list[str]:
    """Ours divided by the peer at each of the `lengths`; nothing where one of them was not measured."""
    both = ours.keys() & peer.keys()
    return [f"{ours[length] / peer[length]:.2f}" if length in both else "" for length in lengths]


def ratios(result: dict) -> str:
    """Ours divided by each peer, at each length, and where the two cross."""
    return "\n".join(measure_ratios(result, measure) for measure in measured(result))


def measure_ratios(result: dict, measure: str) -> str:
    name, models = section(result, measure)
    ours = curve(result, measure, OURS)
    lengths = list(ours)
    rows = [[f"{TITLES[measure]}, `{name}`", *(f"{length:,}" for length in lengths), "ours is below"]]
    for model in [model for model in models if model != OURS]:
        peer = curve(result, measure, model)
        rows.append([f"ours ÷ {model}", *ratio_cells(ours, peer, lengths), crossing_text(ours, peer)])
    return report.markdown(rows, align="l" + "r" * len(lengths) + "l")


def overview(result: dict) -> str:
    """Ours divided by Llama, a row for each measure."""
    curves = {measure: [curve(result, measure, model) for model in (OURS, FULL)] for measure in measured(result)}
    lengths = sorted({length for ours, _ in curves.values() for length in ours})
    header = ["ours ÷ Llama, by tokens of text", *(f"{length:,}" for length in lengths)]
    rows = [[TITLES[measure], *ratio_cells(ours, llama, lengths)] for measure, (ours, llama) in curves.items()]
    return report.markdown([header, *rows])


def origin(result: dict, device: str, readme: Path) -> str:
    """The figure, and in one line where the numbers come from. All parts are of one machine and the same versions."""
    environments = list(result["parts"].values())
    environment = environments[0]
    for name in ("device", "threads", "torch", "transformers"):
        values = {part[name] for part in environments}
        if len(values) > 1:
            raise ValueError(f"Parts of speed-{device}.json differ in `{name}`, {values}: measure all of them again.")
    figure = os.path.relpath(record.RESULTS / f"speed-{device}.svg", readme.parent)
    file = os.path.relpath(record.RESULTS / f"speed-{device}.json", readme.parent)
    return (
        f"![Time and memory against length]({figure})\n\n"
        f"[{Path(file).name}]({file}): {environment['device']}, {environment['threads']} threads, torch "
        f"{environment['torch']}, transformers {environment['transformers']}, {environment['date']}, "
        f"{record.code_at(part['revision'] for part in environments)}.\n\n"
    )


def render(device: str, block: str, readme: Path) -> str:
    result = record.read(f"speed-{device}")
    if result is None:
        return f"Not measured yet: `make {'bench' if device == 'cpu' else 'bench-gpu'}` writes it.\n"
    if block == "ratios":
        return ratios(result)
    return origin(result, device, readme) + (targets(result, device) if block == "targets" else overview(result))


def rendered(readme: Path) -> str:
    text = readme.read_text(encoding="utf-8")
    for device in TARGETS:
        for block in ("overview", "targets", "ratios"):
            text = report.fill_in(text, f"speed-{device} {block}", render(device, block, readme))
    return text


def draw_figures() -> None:
    for device in TARGETS:
        result = record.read(f"speed-{device}")
        if result is not None:
            report.draw(partial(figures.plot, result), record.RESULTS / f"speed-{device}.svg", size=(9, 7))


if __name__ == "__main__":
    draw_figures()
    for readme in READMES:
        readme.write_text(rendered(readme), encoding="utf-8")
