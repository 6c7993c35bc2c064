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
"""Attention maps as pictures: what the latents have read, and how far back tokens look."""

import math
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # not pyplot, which may look for a screen
from matplotlib.ticker import MaxNLocator


COLUMNS = 128  # of the heat map, at most: narrower ones are lost at the size of a page


def draw_compression(axes: Axes, compression: torch.Tensor) -> None:
    """A heat map of what each latent has read, `(M, S)` weights over S tokens, as multiples of their mean."""
    num_latents, length = compression.shape
    run = math.ceil(length / COLUMNS)  # tokens of a column
    columns = torch.nn.functional.avg_pool1d(compression * length, run, ceil_mode=True)  # (M, S / run)
    extent = (0, columns.shape[1] * run, num_latents - 0.5, -0.5)
    image = axes.imshow(columns, aspect="auto", cmap="YlGnBu", vmin=0, vmax=4, interpolation="nearest", extent=extent)
    axes.figure.colorbar(image, ax=axes, label="times the mean weight", extend="max", ticks=range(5))
    axes.set(title="What each latent has read", xlabel="position (tokens)", ylabel="latent", xlim=(0, length))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))


def octaves(mass: torch.Tensor) -> torch.Tensor:
    """Mass by distance `(T,)` summed over the distances 0, 1, 2 to 3, 4 to 7 and so on."""
    starts = [2**power for power in range(math.ceil(math.log2(mass.shape[0])))]
    return torch.stack([part.sum() for part in mass.tensor_split(starts)])


def draw_distance(axes: Axes, masses: dict[str, torch.Tensor]) -> None:
    """Bars of attention mass `(T,)` over distance, one colour for each kind of attention."""
    width = 0.8 / len(masses)
    for index, (kind, mass) in enumerate(masses.items()):
        heights = octaves(mass)
        places = torch.arange(heights.shape[0]) + (index + 0.5) * width - 0.4
        axes.bar(places, 100 * heights, width, label=kind)
    axes.set_xticks(range(heights.shape[0]), [0, *(2**power for power in range(heights.shape[0] - 1))])
    axes.set(title="How far back tokens look", xlabel="distance (tokens, from each mark to the next)")
    axes.set(ylabel="share of attention (%)", axisbelow=True)
    axes.tick_params(axis="x", labelsize="small")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False)


def save_pictures(compression: torch.Tensor, masses: dict[str, torch.Tensor], folder: Path) -> None:
    """`compression.png`, `distance.png`, and both beside each other, `attention.png`. Arguments as above."""
    compression_panel, distance_panel = (draw_compression, compression), (draw_distance, masses)
    for name, panels in (
        ("compression", [compression_panel]),
        ("distance", [distance_panel]),
        ("attention", [compression_panel, distance_panel]),
    ):
        figure = Figure(figsize=(9 if len(panels) > 1 else 6, 3.6), layout="constrained")
        for axes, (draw, data) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            draw(axes, data)
        figure.savefig(folder / f"{name}.png", dpi=200)
