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
"""Time or memory by length, as a result of speed has them, and where two such curves cross."""

from math import exp, log


FIELDS = {"cache": "bytes", "training memory": "bytes"}  # "seconds" of all others


def section(result: dict, measure: str) -> tuple[str, dict]:
    """Name of the first configuration that `measure` was taken with, and its points by model and length."""
    name = next((name for name, points in result["models"].items() if measure in points), "")
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
