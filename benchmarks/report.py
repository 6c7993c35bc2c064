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
"""How results are shown: figures of one style, and tables between the marks of a page."""

from collections.abc import Callable
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure  # not pyplot, which may look for a screen


STYLE = {
    "font.size": 10,
    "svg.fonttype": "path",
    "svg.hashsalt": "latent attention",  # the same numbers give the same file
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
}


def draw(plot: Callable[[Figure], None], file: Path, size: tuple[float, float]) -> None:
    """Write what `plot` puts into a figure as an SVG, `size` in inches of 72 points."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        plot(figure)
        figure.savefig(file, metadata={"Date": None})


def markdown(rows: list[list[str]], align: str = "") -> str:
    """
    A table whose first row is its header. `align` has a letter for each column, l for left and r for right; where it
    is not given, all columns but the first are on the right.
    """
    header, *body = rows
    align = align or "l" + "r" * (len(header) - 1)
    divider = "|".join("---" if letter == "l" else "---:" for letter in align)
    lines = [f"| {' | '.join(row)} |\n" for row in (header, *body)]
    return "".join([lines[0], f"|{divider}|\n", *lines[1:]])


def fill_in(text: str, mark: str, content: str) -> str:
    """`text` with `content` between the comments `mark: start` and `mark: end`, where it has them."""
    start, end = f"<!-- {mark}: start -->\n", f"<!-- {mark}: end -->"
    if start not in text:
        return text
    before, rest = text.split(start)
    return before + start + content + end + rest.split(end)[1]
