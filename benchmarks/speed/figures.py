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
"""The figure of a result of speed: time and memory against length, ours beside each peer."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from .curves import crossing, curve, section
from .models import FULL, OURS, PEERS


# Per measure: title, unit, factor from seconds or bytes, whether to divide by the length, and what the length is of.
PANELS = {
    "decode": ("Decoding", "ms per token", 1e3, False, "tokens of context"),
    "prefill": ("Prefill", "µs per token", 1e6, True, "tokens of prompt"),
    "training": ("Training step", "µs per token", 1e6, True, "tokens of the row"),
    "cache": ("Cache", "MB", 1e-6, False, "tokens of context"),
}
COLOURS = {name: f"C{index}" for index, name in enumerate((OURS, *PEERS))}


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
    mark_crossing(axes, curve(result, measure, OURS), curve(result, measure, FULL))


def mark_crossing(axes: Axes, ours: dict[int, float], llama: dict[int, float]) -> None:
    """A line at the length from which on ours is below Llama, where there is one within the panel."""
    length = crossing(ours, llama)
    if length is None or length == min(ours):
        return
    axes.axvline(length, color="grey", linestyle=":")
    place = {"xytext": (4, 0), "textcoords": "offset points", "xycoords": ("data", "axes fraction"), "va": "top"}
    axes.annotate(f"below Llama\nfrom {length:,.0f}", (length, 0.9), **place, fontsize=8, color="grey")


def plot(result: dict, figure: Figure) -> None:
    """Four panels."""
    panels = figure.subplots(2, 2).flat
    for axes, measure in zip(panels, PANELS, strict=True):
        draw_panel(axes, result, measure)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
