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
"""Tables in the README beside this file, and figures, from the units that are finished.

python -m benchmarks.quality.tables            # print the tables
python -m benchmarks.quality.tables --write    # put them into the READMEs, and draw the figures in results/
"""

import sys
from pathlib import Path

from benchmarks import record, report

from . import ablations, capacity, figures, language_model, mqar, passkey
from .points import grouped, mean_and_deviation, rows_by_seed, sized_name
from .sweep import Table, measured


TABLES = {module.TABLE.name: module.TABLE for module in (mqar, passkey, language_model, ablations, capacity)}
FORMS = ("reduced", "small", "medium", "full")
README = Path(__file__).parent / "README.md"
READMES = (README, Path(__file__).parents[2] / "README.md")
# Rows of the project's README, and what they are called in the tables of recall, passkeys and language models.
OVERVIEW = (
    (
        "latents in every second layer, and window",
        "latents and window, 14",
        "latents and window, chunks repeated, 16",
        "latents and window, 32",
    ),
    (
        "latents in every layer, and window",
        "latents in every layer, and window, 4",
        "latents in every layer, and window, 16",
        "latents in every layer, and window, 32",
    ),
    ("window alone", *["window alone"] * 3),
    ("full attention", *["full attention"] * 3),
    ("Mamba-2", "Mamba-2, 16", "Mamba-2, 16", "Mamba-2, 64"),
)


def number(point: list[dict], metric: str) -> str:
    mean, deviation = mean_and_deviation(point, metric)
    return f"{mean:.3f} ± {deviation:.3f}" if len(point) > 1 else f"{mean:.3f}"


def milliseconds(point: list[dict]) -> str:
    return f"{mean_and_deviation(point, 'ms_per_step')[0]:.0f}"


def mqar_rows(result: dict) -> list[list[str]]:
    header = ["model, size", "width", "pairs in tokens", "state, numbers", "parameters", "learning rate"]
    header += ["accuracy", "ms per step"]
    rows = [
        [
            sized_name(unit),
            str(unit["shape"]["hidden_size"]),
            f"{unit['pairs']} in {unit['length']}",
            f"{unit['state_elements']:,}",
            f"{unit['parameters']:,}",
            f"{unit['learning_rate']:g}",
            number(point, "accuracy"),
            milliseconds(point),
        ]
        for point in result["points"]
        for unit in point[:1]
    ]
    return [header, *rows]


def passkey_rows(result: dict) -> list[list[str]]:
    lengths = [row["length"] for row in result["points"][0][0]["by_length"]]
    header = ["model, size", "parameters", *(f"recalled in {length:,} tokens" for length in lengths)]
    rows = [
        [
            sized_name(point[0]),
            f"{point[0]['parameters']:,}",
            *(number(rows, "accuracy") for rows in rows_by_seed(point, "by_length")),
        ]
        for point in result["points"]
    ]
    return [header, *rows]


def language_model_rows(result: dict) -> list[list[str]]:
    """The gap is to full attention at the same place, in means over seeds."""
    spans = [f"{row['from']:,}–{row['to']:,}" for row in result["points"][0][0]["by_position"]]
    losses = [rows_by_seed(point, "by_position") for point in result["points"]]
    full = next(i for i, point in enumerate(result["points"]) if point[0]["model"] == "full_attention")

    def gap(point: int, span: int) -> str:
        here, there = (mean_and_deviation(losses[i][span], "loss")[0] for i in (point, full))
        return f"{here - there:+.3f}"

    header = ["model, size", "parameters", *(f"loss at {span}" for span in spans)]
    header += [f"gap at {spans[0]}", f"gap at {spans[-1]}", "ms per step"]
    rows = [
        [
            sized_name(point[0]),
            f"{point[0]['parameters']:,}",
            *(number(span, "loss") for span in losses[i]),
            gap(i, 0),
            gap(i, -1),
            milliseconds(point),
        ]
        for i, point in enumerate(result["points"])
    ]
    return [header, *rows]


def ablations_rows(result: dict) -> list[list[str]]:
    header = ["variant", "recall: accuracy", "recall: ms per step"]
    header += ["language model: loss", "language model: ms per step", "language model: parameters"]
    rows = []
    for variant, points in grouped(result["points"], lambda unit: unit["variant"]).items():
        by_task = {point[0]["task"]: point for point in points}
        if len(by_task) == 2:
            recall, loss = by_task["mqar"], by_task["language_model"]
            cells = [number(recall, "accuracy"), milliseconds(recall), number(loss, "loss_in_training_length")]
            rows.append([variant, *cells, milliseconds(loss), f"{loss[0]['parameters']:,}"])
    return [header, *rows]


def capacity_rows(result: dict) -> list[list[str]]:
    rows = [
        [
            str(point[0]["settings"]["num_latents"]),
            "yes" if point[0]["refinement"] else "no",
            str(point[0]["pairs"]),
            number(point, "accuracy"),
            milliseconds(point),
        ]
        for point in result["points"]
    ]
    return [["latents", "refinement", "pairs", "accuracy", "ms per step"], *rows]


ROWS = {
    "mqar": mqar_rows,
    "passkey": passkey_rows,
    "language_model": language_model_rows,
    "ablations": ablations_rows,
    "capacity": capacity_rows,
}


def flat(recipe: dict, prefix: str = "") -> dict[str, str]:
    """Every entry of a recipe by its path; of long lists only how many there are."""
    entries = {}
    for name, value in recipe.items():
        if isinstance(value, dict):
            entries.update(flat(value, f"{prefix}{name}."))
        else:
            entries[prefix + name] = f"{len(value)} of them" if name in ("models", "variants") else str(value)
    return entries


def reductions(result: dict) -> str:
    """What differs from the full form, or nothing. Every form says the same things."""
    here, full = flat(result["recipe"]), flat(result["full_recipe"])
    changed = [f"{name} {value} (full: {full[name]})" for name, value in here.items() if value != full[name]]
    return f"What differs from the full form: {'; '.join(changed)}.\n" if changed else ""


def origin(result: dict) -> str:
    """Machines and code of the units in the table."""
    units = [unit for point in result["points"] for unit in point]
    machines = dict.fromkeys(unit["machine"] for unit in units)
    return f"{'; '.join(machines)}, {record.code_at(unit['revision'] for unit in units)}"


def seeds(result: dict) -> str:
    return "one seed" if len(result["recipe"]["seeds"]) == 1 else f"{len(result['recipe']['seeds'])} seeds"


def results(table: Table) -> dict[str, dict]:
    """What `sweep` gives of the forms of a table that have complete points, by the name of their files."""
    files = {form: table.file(form) for form in FORMS if form in table.forms}
    found = {file.stem: measured(table, form) for form, file in files.items() if file.exists()}
    return {name: result for name, result in found.items() if result["points"]}


def render(table: Table) -> str:
    """The tables of all forms, as far as they have been measured."""
    parts = []
    for name, result in results(table).items():
        parts.append(f"{result['title']}: {seeds(result)}, {origin(result)}.\n")
        parts.append(reductions(result))
        parts.append(report.markdown(ROWS[table.name](result)))
        parts.append(f"![{result['title']}](../results/{name}.svg)\n")
    return "\n".join(filter(None, parts)) or "Not measured yet.\n"


def points_by_name(table: str, form: str) -> dict[str, list[dict]]:
    """The complete points of a form by the names of their rows."""
    return {sized_name(point[0]): point for point in measured(TABLES[table], form)["points"]}


def overview() -> str:
    """One row for each model: recall, passkeys and loss of the tables that two CPU cores can measure."""
    measures = ("mqar", "small"), ("passkey", "reduced"), ("language_model", "reduced")
    recall, passkeys, loss = (points_by_name(table, form) for table, form in measures)
    within = {name: mean_and_deviation(point, "loss_in_training_length")[0] for name, point in loss.items()}
    header = ["model", "state, numbers", "recall", "passkey at 16 ×", "passkey at 256 ×", "loss"]
    rows = [
        [
            model,
            f"{recall[of_recall][0]['state_elements']:,}",
            number(recall[of_recall], "accuracy"),
            *(number(rows, "accuracy") for rows in rows_by_seed(passkeys[of_passkey], "by_length")[2:]),
            f"{within[of_loss] - within['window alone']:+.3f}",
        ]
        for model, of_recall, of_passkey, of_loss in OVERVIEW
    ]
    return report.markdown([header, *rows])


def fill_in(text: str) -> str:
    """`text` with every table between its two marks."""
    text = report.fill_in(text, "quality", f"\n{overview()}\n")
    for name, table in TABLES.items():
        text = report.fill_in(text, name, f"\n{render(table)}\n")
    return text


def draw_figures() -> None:
    for name, table in TABLES.items():
        for file, result in results(table).items():
            figures.draw(result, name, record.RESULTS / f"{file}.svg")


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        draw_figures()
        for readme in READMES:
            readme.write_text(fill_in(readme.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print("\n".join(map(render, TABLES.values())), end="")
