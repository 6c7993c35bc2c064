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
"""What tables and figures say of a point, which is the list of the finished units of one row, one for each seed."""

from collections.abc import Callable
from statistics import mean, stdev


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
SIZES = ("num_latents", "state_size", "key_dim", "num_slots")


def name_of(unit: dict) -> str:
    """The name of a unit's model in figures."""
    repeated = ", chunks repeated" if "max_chunk_repeats" in unit["settings"] else ""
    return NAMES[unit["model"]] + repeated


def sized_name(unit: dict) -> str:
    """The name of a unit's model in tables, with its size: `latents and window, 16`."""
    return ", ".join([name_of(unit), *(str(unit["settings"][size]) for size in SIZES if size in unit["settings"])])


def mean_and_deviation(units: list[dict], metric: str) -> tuple[float, float]:
    """The mean of a metric over seeds, and its sample standard deviation, which is 0 for a single seed."""
    values = [unit[metric] for unit in units]
    return mean(values), stdev(values) if len(values) > 1 else 0.0


def rows_by_seed(point: list[dict], field: str) -> list[list[dict]]:
    """For each row of a `field`, which is a list of rows in every unit, what the seeds have there."""
    return [list(rows) for rows in zip(*(unit[field] for unit in point), strict=True)]


def grouped(points: list[list[dict]], label: Callable[[dict], str]) -> dict[str, list[list[dict]]]:
    """Points by what `label` makes of their first unit."""
    by_label = {}
    for point in points:
        by_label.setdefault(label(point[0]), []).append(point)
    return by_label
