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
Draws results/speed-*.json: time and memory against length, ours beside each peer.

    python -m benchmarks.figures
"""

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # not pyplot, which may look for a screen
from matplotlib.ticker import LogLocator

from .peers import FULL, GSA, OURS, PEERS
from .table import FIGURES, TARGETS, crossing, curve, load, section


# Per measure: title, unit, factor from seconds or bytes, and whether to divide by the length.
PANELS = {
    "decode": ("Decoding", "ms per token", 1e3, False, "tokens of context"),
    "prefill": ("Prefill", "µs per token", 1e6, True, "tokens of prompt"),
    "training": ("Training step", "µs per token", 1e6, True, "tokens of the row"),
    "cache": ("Cache", "MB", 1e-6, False, "tokens of context"),
}
COLOURS = {name: f"C{index}" for index, name in enumerate((OURS, *PEERS, GSA))}
STYLE = {
    "font.size": 10,
    "svg.fonttype": "path",
    "svg.hashsalt": "latent attention",  # the same numbers give the same file
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def draw_panel(axes: Axes, result: dict, measure: str) -> None:
    title, unit, factor, per_token, length_label = PANELS[measure]
    name, models = section(result, measure)
    for model in models:
        points = sorted(curve(result, measure, model).items())
        values = [value * factor / (length if per_token else 1) for length, value in points]
        width = 2.5 if model == OURS else 1.5
        lengths = [length for length, _ in points]
        axes.plot(lengths, values, "o-", color=COLOURS[model], label=model, linewidth=width, markersize=4)
    axes.set(title=f"{title} ({name})", xlabel=length_label, ylabel=unit, xscale="log", yscale="log")
    lengths = sorted(curve(result, measure, OURS))
    axes.set_xticks(lengths, [f"{length // 1024}k" for length in lengths])
    axes.minorticks_off()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.3)
    crosses = crossing(curve(result, measure, OURS), curve(result, measure, FULL))
    if crosses is not None and crosses > lengths[0]:
        axes.axvline(crosses, color="grey", linestyle=":")
        note = f"below Llama\nfrom {crosses:,.0f}"
        axes.annotate(
            note,
            (crosses, 0.9),
            xytext=(4, 0),
            textcoords="offset points",
            va="top",
            xycoords=("data", "axes fraction"),
            fontsize=8,
            color="grey",
        )


def draw(result: dict) -> Figure:
    """Four panels, 900 pixels wide at 100 dots per inch."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 7), layout="constrained")
        panels = figure.subplots(2, 2).flat
        for axes, measure in zip(panels, PANELS, strict=True):
            draw_panel(axes, result, measure)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return figure


def main() -> None:
    FIGURES.mkdir(exist_ok=True)
    for device in TARGETS:
        if (result := load(device)) is not None:
            with matplotlib.rc_context(STYLE):
                figure = draw(result)
                figure.savefig(FIGURES / f"speed-{device}.svg", metadata={"Date": None})
                figure.savefig(FIGURES / f"speed-{device}.png", dpi=200, metadata={"Software": None})


if __name__ == "__main__":
    main()
