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
"""One figure per table, from the table's JSON, as SVG and PNG beside it."""

import json
from collections.abc import Callable
from pathlib import Path
from statistics import mean

import matplotlib
from matplotlib.figure import Figure  # not pyplot, which may look for a screen

from .units import mean_and_deviation


STYLE = {"svg.hashsalt": "latent attention"}  # the same numbers give the same file
NAMES = {
    "full_attention": "full attention",
    "window": "window alone",
    "whole_window": "window over everything",
    "latents": "latents alone",
    "latents_and_window": "latents and window",
    "latents_in_every_layer": "latents in every layer, and window",
    "latents_from_the_second_layer": "latents in every second layer, from the second, and window",
    "mamba2": "Mamba-2",
    "gated_delta_net": "gated delta net",
    "gated_slot_attention": "gated slot attention",
}


def name_of(unit: dict) -> str:
    """A model as tables and figures call it."""
    repeated = ", chunks repeated" if "max_chunk_repeats" in unit["settings"] else ""
    return NAMES[unit["model"]] + repeated


def draw(plot: Callable, file: Path) -> None:
    """`plot(result, figure)` for the JSON in `file`; nothing while no point is complete."""
    result = json.loads(file.read_text(encoding="utf-8"))
    if not result["points"]:
        return
    count = len(result["recipe"]["seeds"])
    note = f"mean and standard deviation of {count} seeds" if count > 1 else "one seed"
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.5, 4.5), layout="constrained")
        plot(result, figure)
        figure.suptitle(f"{result['title']}\n{note}", fontsize=10)
        for axes in figure.axes:
            axes.grid(alpha=0.3)
        figure.savefig(file.with_suffix(".svg"), metadata={"Date": None})
        figure.savefig(file.with_suffix(".png"), dpi=150)


def lines(points: list[list[dict]], label: Callable[[dict], str]) -> dict[str, list[list[dict]]]:
    """Points by the label of the line that they are on."""
    by_label = {}
    for point in points:
        by_label.setdefault(label(point[0]), []).append(point)
    return by_label


def error_line(axes, places: list[float], values: list[list[dict]], metric: str, label: str) -> None:
    """A line through the means over seeds, with bars of one standard deviation; `values` has the seeds of a place."""
    means, deviations = zip(*(mean_and_deviation(seeds, metric) for seeds in values), strict=True)
    axes.errorbar(places, means, deviations, marker="o", capsize=3, label=label)


def place_legend(axes) -> None:
    """Below the lines, so that it hides none."""
    axes.figure.legend(fontsize=8, loc="outside lower center", ncols=2, frameon=False)


def recall_by_state(result: dict, figure) -> None:
    axes = figure.subplots()
    several = len({(unit["shape"]["hidden_size"], unit["length"]) for unit in result["units"]}) > 1

    def label(unit: dict) -> str:
        setting = f", width {unit['shape']['hidden_size']}, {unit['pairs']} pairs in {unit['length']}"
        return name_of(unit) + (setting if several else "")

    for name, points in lines(result["points"], label).items():
        points = sorted(points, key=lambda point: point[0]["state_elements"])
        error_line(axes, [point[0]["state_elements"] for point in points], points, "accuracy", name)
    axes.set(xscale="log", xlabel="state of one sequence, numbers", ylabel="accuracy at queries", ylim=(-0.03, 1.03))
    place_legend(axes)


def recall_by_length(result: dict, figure) -> None:
    axes = figure.subplots()
    for point in result["points"]:
        lengths = [row["length"] for row in point[0]["by_length"]]
        rows = list(zip(*(unit["by_length"] for unit in point), strict=True))
        error_line(axes, lengths, rows, "accuracy", name_of(point[0]))
    axes.set_xscale("log", base=2)
    axes.set(xlabel="tokens in the text", ylabel="passkeys recalled", ylim=(-0.03, 1.03))
    axes.axvline(result["recipe"]["length"], color="grey", linestyle=":", label="length in training")
    place_legend(axes)


def loss_by_position(result: dict, figure) -> None:
    axes = figure.subplots()
    for point in result["points"]:
        middles = [mean((row["from"], row["to"])) for row in point[0]["by_position"]]
        rows = list(zip(*(unit["by_position"] for unit in point), strict=True))
        error_line(axes, middles, rows, "loss", name_of(point[0]))
    axes.set_xscale("log", base=2)
    axes.set(xlabel="position in the document, bytes", ylabel="loss, nats per byte")
    # A model that fails beyond its length leaves the figure, so that the others can be told apart.
    first = max(
        mean_and_deviation([unit["by_position"][0] for unit in point], "loss")[0] for point in result["points"]
    )
    axes.set_ylim(top=min(axes.get_ylim()[1], 1.2 * first))
    axes.axvline(result["recipe"]["length"], color="grey", linestyle=":", label="length in training")
    place_legend(axes)


def recall_by_pairs(result: dict, figure) -> None:
    axes = figure.subplots()

    def label(unit: dict) -> str:
        return f"{unit['settings']['num_latents']} latents" + ("" if unit["refinement"] else ", no refinement")

    for name, points in lines(result["points"], label).items():
        error_line(axes, [point[0]["pairs"] for point in points], points, "accuracy", name)
    axes.set_xscale("log", base=2)
    axes.set(xlabel="pairs to remember", ylabel="accuracy", ylim=(-0.03, 1.03))
    place_legend(axes)


def ablations(result: dict, figure) -> None:
    """Both tasks side by side, a row per variant."""
    panels = {
        "mqar": ("accuracy", "recall: accuracy"),
        "language_model": ("loss_in_training_length", "loss, nats per byte"),
    }
    for axes, (task, (metric, title)) in zip(figure.subplots(1, 2, sharey=True), panels.items(), strict=True):
        points = [point for point in result["points"] if point[0]["task"] == task]
        for point in points:
            mean_value, deviation = mean_and_deviation(point, metric)
            axes.errorbar(mean_value, point[0]["variant"], xerr=deviation, marker="o", capsize=3, color="C0")
        axes.set_xlabel(title)
    axes.invert_yaxis()
