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
"""One figure per table: a function of what `sweep` gives, and of the figure that it fills."""

from functools import partial
from pathlib import Path
from statistics import mean

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks import report

from .points import grouped, mean_and_deviation, name_of, rows_by_seed


def error_line(axes: Axes, places: list[float], values: list[list[dict]], metric: str, label: str) -> None:
    """A line through the means over seeds, with bars of one standard deviation; `values` has the seeds of a place."""
    means, deviations = zip(*(mean_and_deviation(seeds, metric) for seeds in values), strict=True)
    axes.errorbar(places, means, deviations, marker="o", capsize=3, label=label)


def place_legend(axes: Axes) -> None:
    """Below the lines, so that it hides none."""
    axes.figure.legend(fontsize=8, loc="outside lower center", ncols=2)


def recall_by_state(result: dict, figure: Figure) -> None:
    axes = figure.subplots()
    several = len({(unit["shape"]["hidden_size"], unit["length"]) for unit in result["units"]}) > 1

    def label(unit: dict) -> str:
        setting = f", width {unit['shape']['hidden_size']}, {unit['pairs']} pairs in {unit['length']}"
        return name_of(unit) + (setting if several else "")

    for name, points in grouped(result["points"], label).items():
        points = sorted(points, key=lambda point: point[0]["state_elements"])
        error_line(axes, [point[0]["state_elements"] for point in points], points, "accuracy", name)
    axes.set(xscale="log", xlabel="state of one sequence, numbers", ylabel="accuracy at queries", ylim=(-0.03, 1.03))
    place_legend(axes)


def recall_by_length(result: dict, figure: Figure) -> None:
    axes = figure.subplots()
    for point in result["points"]:
        lengths = [row["length"] for row in point[0]["by_length"]]
        error_line(axes, lengths, rows_by_seed(point, "by_length"), "accuracy", name_of(point[0]))
    axes.set_xscale("log", base=2)
    axes.set(xlabel="tokens in the text", ylabel="passkeys recalled", ylim=(-0.03, 1.03))
    axes.axvline(result["recipe"]["length"], color="grey", linestyle=":", label="length in training")
    place_legend(axes)


def loss_by_position(result: dict, figure: Figure) -> None:
    axes = figure.subplots()
    for point in result["points"]:
        middles = [mean((row["from"], row["to"])) for row in point[0]["by_position"]]
        error_line(axes, middles, rows_by_seed(point, "by_position"), "loss", name_of(point[0]))
    axes.set_xscale("log", base=2)
    axes.set(xlabel="position in the document, bytes", ylabel="loss, nats per byte")
    # A model that fails beyond its length leaves the figure, so that the others can be told apart.
    first = max(
        mean_and_deviation([unit["by_position"][0] for unit in point], "loss")[0] for point in result["points"]
    )
    axes.set_ylim(top=min(axes.get_ylim()[1], 1.2 * first))
    axes.axvline(result["recipe"]["length"], color="grey", linestyle=":", label="length in training")
    place_legend(axes)


def recall_by_pairs(result: dict, figure: Figure) -> None:
    axes = figure.subplots()

    def label(unit: dict) -> str:
        return f"{unit['settings']['num_latents']} latents" + ("" if unit["refinement"] else ", no refinement")

    for name, points in grouped(result["points"], label).items():
        error_line(axes, [point[0]["pairs"] for point in points], points, "accuracy", name)
    axes.set_xscale("log", base=2)
    axes.set(xlabel="pairs to remember", ylabel="accuracy", ylim=(-0.03, 1.03))
    place_legend(axes)


def ablations(result: dict, figure: Figure) -> None:
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


PLOTS = {
    "mqar": recall_by_state,
    "passkey": recall_by_length,
    "language_model": loss_by_position,
    "ablations": ablations,
    "capacity": recall_by_pairs,
}


def plot(result: dict, table: str, figure: Figure) -> None:
    count = len(result["recipe"]["seeds"])
    note = f"mean and standard deviation of {count} seeds" if count > 1 else "one seed"
    PLOTS[table](result, figure)
    figure.suptitle(f"{result['title']}\n{note}", fontsize=10)


def draw(result: dict, table: str, file: Path) -> None:
    """The figure of a table, as far as its points are complete."""
    report.draw(partial(plot, result, table), file, size=(7.5, 4.5))
