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
"""Tables in the README beside this file, from the JSON that the measurements wrote.

python -m benchmarks.quality.tables            # print
python -m benchmarks.quality.tables --write    # put them into the READMEs
"""

import json
import sys
from pathlib import Path

from benchmarks import record

from .figures import lines, name_of
from .units import mean_and_deviation


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
SIZES = ("num_latents", "state_size", "key_dim", "num_slots")


def number(point: list[dict], metric: str) -> str:
    mean, deviation = mean_and_deviation(point, metric)
    return f"{mean:.3f} ± {deviation:.3f}" if len(point) > 1 else f"{mean:.3f}"


def milliseconds(point: list[dict]) -> str:
    return f"{mean_and_deviation(point, 'ms_per_step')[0]:.0f}"


def sized_name(unit: dict) -> str:
    """`latents and window, 16`"""
    return ", ".join([name_of(unit), *(str(unit["settings"][size]) for size in SIZES if size in unit["settings"])])


def mqar(result: dict) -> list[list[str]]:
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


def passkey(result: dict) -> list[list[str]]:
    lengths = [row["length"] for row in result["points"][0][0]["by_length"]]
    header = ["model, size", "parameters", *(f"recalled in {length:,} tokens" for length in lengths)]
    rows = [
        [
            sized_name(point[0]),
            f"{point[0]['parameters']:,}",
            *(number([unit["by_length"][i] for unit in point], "accuracy") for i in range(len(lengths))),
        ]
        for point in result["points"]
    ]
    return [header, *rows]


def language_model(result: dict) -> list[list[str]]:
    """The gap is to full attention at the same place, in means over seeds."""
    spans = [f"{row['from']:,}–{row['to']:,}" for row in result["points"][0][0]["by_position"]]
    losses = [[[unit["by_position"][i] for unit in point] for i in range(len(spans))] for point in result["points"]]
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


def ablations(result: dict) -> list[list[str]]:
    header = ["variant", "recall: accuracy", "recall: ms per step"]
    header += ["language model: loss", "language model: ms per step", "language model: parameters"]
    rows = []
    for variant, points in lines(result["points"], lambda unit: unit["variant"]).items():
        by_task = {point[0]["task"]: point for point in points}
        if len(by_task) == 2:
            recall, loss = by_task["mqar"], by_task["language_model"]
            cells = [number(recall, "accuracy"), milliseconds(recall), number(loss, "loss_in_training_length")]
            rows.append([variant, *cells, milliseconds(loss), f"{loss[0]['parameters']:,}"])
    return [header, *rows]


def capacity(result: dict) -> list[list[str]]:
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


TABLES = {
    "mqar": mqar,
    "passkey": passkey,
    "language_model": language_model,
    "ablations": ablations,
    "capacity": capacity,
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


def markdown(rows: list[list[str]]) -> str:
    header, *body = rows
    dividers = ["---", *["---:"] * (len(header) - 1)]
    return "".join(f"| {' | '.join(row)} |\n" for row in (header, dividers, *body))


def render(table: str) -> str:
    """The tables of all forms, as far as they have been measured."""
    parts = []
    for form in ("reduced", "small", "medium", "full"):
        file = record.RESULTS / f"quality_{table}_{form}.json"
        result = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"points": []}
        if result["points"]:
            parts.append(f"{result['title']}: {seeds(result)}, {origin(result)}.\n")
            parts.append(reductions(result))
            parts.append(markdown(TABLES[table](result)))
            parts.append(f"![{result['title']}](../results/{file.stem}.svg)\n")
    return "\n".join(filter(None, parts)) or "Not measured yet.\n"


def read_points(table: str) -> dict[str, list[dict]]:
    """The seeds of every row of a table in `results/`, by the row's name."""
    result = json.loads((record.RESULTS / f"quality_{table}.json").read_text(encoding="utf-8"))
    return {sized_name(point[0]): point for point in result["points"]}


def overview() -> str:
    """One row for each model: recall, passkeys and loss of the tables that two CPU cores can measure."""
    recall, passkey, loss = map(read_points, ("mqar_small", "passkey_reduced", "language_model_reduced"))
    within = {name: mean_and_deviation(point, "loss_in_training_length")[0] for name, point in loss.items()}
    header = ["model", "state, numbers", "recall", "passkey at 16 ×", "passkey at 256 ×", "loss"]
    rows = [
        [
            model,
            f"{recall[of_recall][0]['state_elements']:,}",
            number(recall[of_recall], "accuracy"),
            *(number([unit["by_length"][i] for unit in passkey[of_passkey]], "accuracy") for i in (2, 3)),
            f"{within[of_loss] - within['window alone']:+.3f}",
        ]
        for model, of_recall, of_passkey, of_loss in OVERVIEW
    ]
    return markdown([header, *rows])


def fill_in(text: str) -> str:
    """`text` with every table between its two marks."""
    text = record.fill_in(text, "quality", f"\n{overview()}\n")
    for table in TABLES:
        text = record.fill_in(text, table, f"\n{render(table)}\n")
    return text


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        for readme in READMES:
            readme.write_text(fill_in(readme.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print("\n".join(map(render, TABLES)), end="")
