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
"""A table of quality: which units it needs, in an order that chooses each model's learning rate, and its command."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from benchmarks import record

from .training import Job
from .units import finished_units, parse_arguments, run_units


SEEDS = (0, 1, 2)


def rates_of_form(form: dict, point: dict) -> tuple[float, ...]:
    """The learning rates of a form, which are the same for all of its points."""
    return form["learning_rates"]


@dataclass(frozen=True, eq=False)
class Table:
    """
    What one command measures.

    Args:
        name: names the command and its files.
        title: stands above the table.
        forms: are recipes by name, each of which says how much is measured.
        points: gives what a form measures, without learning rates and seeds.
        score: says how good a finished unit is, to choose the learning rate.
        run_unit: trains and tests a model; gives `None` when the deadline came first.
        learning_rates: gives those of a form that one of its points is tried with.
    """

    name: str
    title: str
    forms: dict[str, dict]
    points: Callable[[dict], list[dict]]
    score: Callable[[dict], float]
    run_unit: Callable[[dict, Job], dict | None]
    learning_rates: Callable[[dict, dict], tuple[float, ...]] = rates_of_form

    def file(self, form: str) -> Path:
        """Where the finished units of a form are kept."""
        return record.RESULTS / f"quality_{self.name}_{form}.jsonl"

    def seeds(self, form: str) -> tuple[int, ...]:
        return self.forms[form].get("seeds", SEEDS)

    def recipe(self, form: str) -> dict:
        """A form with its seeds, and with lists for tuples, as in JSON."""
        return json.loads(json.dumps({**self.forms[form], "seeds": self.seeds(form)}))


@cache
def points_of(table: Table, form: str) -> list[dict]:
    """The points of a form. To make models equal in size takes seconds, so it is done once."""
    return table.points(table.forms[form])


def units_of(point: dict, units: list[dict]) -> list[dict]:
    """Those of `units` that are of this point."""
    return [unit for unit in units if point.items() <= unit.items()]


def sweep(table: Table, form: str, run: Callable[[list[dict]], list[dict]]) -> dict:
    """
    Go through all points with every learning rate and the first seed; then, with the learning rate of the highest
    score, through the other seeds, if there are any.

    Args:
        run: gives those of the units that are finished, in their order, each with its result.

    Returns:
        `title`; `recipe` and `full_recipe`; `units`, all that are finished; `all`, how many there will be; `points`,
        those whose seeds are complete, each as the list of its units at the chosen learning rate.
    """
    points, (first_seed, *other_seeds) = points_of(table, form), table.seeds(form)
    rates = [table.learning_rates(table.forms[form], point) for point in points]
    first = run(
        [
            {**point, "learning_rate": rate, "seed": first_seed}
            for point, of_point in zip(points, rates, strict=True)
            for rate in of_point
        ]
    )
    chosen = []
    for point, of_point in zip(points, rates, strict=True):
        tried = units_of(point, first)
        if len(tried) == len(of_point):
            chosen.append({**point, "learning_rate": max(tried, key=table.score)["learning_rate"]})
    units = first + run([{**point, "seed": seed} for seed in other_seeds for point in chosen])
    seeds_of_points = [units_of(point, units) for point in chosen]
    return {
        "title": f"{table.title}, {form}",
        "recipe": table.recipe(form),
        "full_recipe": table.recipe("full"),
        "units": units,
        "all": sum(map(len, rates)) + len(points) * len(other_seeds),
        "points": [found for found in seeds_of_points if len(found) == 1 + len(other_seeds)],
    }


def measured(table: Table, form: str) -> dict:
    """What `sweep` gives where nothing is run, and only what has finished is read."""
    return sweep(table, form, lambda units: finished_units(table.file(form), units))


def main(table: Table, argv: list[str] | None) -> None:
    """The command of a table: all units of the form that `argv` names, each a line in `results/`."""
    args = parse_arguments(table.title, table.forms, argv)
    file = table.file(args.form)

    def run(units: list[dict]) -> list[dict]:
        run_units(file, units, table.run_unit, args)
        return finished_units(file, units)

    result = sweep(table, args.form, run)
    finished, count = len(result["units"]), result["all"]
    if finished < count:
        print(f"{file.stem}: {finished} of {count} units are finished; the same command goes on from here.")
