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
"""What pages say of the measurements of quality is what was measured, with the recipes as they are."""

from statistics import mean

import pytest

from benchmarks import record
from benchmarks.quality import ablations, sweep, tables
from benchmarks.quality.points import sized_name


def test_what_is_reduced_is_listed():
    result = {
        "recipe": {"steps": 5, "a": {"b": 1, "c": [2]}},
        "full_recipe": {"steps": 50, "a": {"b": 1, "c": [3]}},
    }
    assert tables.reductions(result) == "What differs from the full form: steps 5 (full: 50); a.c [2] (full: [3]).\n"
    for table in tables.TABLES.values():
        full, *others = (tables.flat(table.recipe(form)).keys() for form in table.forms)
        assert all(form == full for form in others)


def test_results_are_of_the_recipes_as_they_are():
    files = {table.file(form): (table, form) for table in tables.TABLES.values() for form in table.forms}
    found = sorted(record.RESULTS.glob("quality_*.jsonl"))
    assert found
    for file in found:
        assert file in files, f"{file.name} is of no table and form"
        assert sweep.measured(*files[file])["points"], f"measure {file.stem} again: its recipe has changed"


def test_the_readmes_have_what_was_measured():
    texts = {readme: readme.read_text(encoding="utf-8") for readme in tables.READMES}
    assert all(f"<!-- {table}: start -->" in texts[tables.README] for table in tables.TABLES)
    assert all(tables.fill_in(text) == text for text in texts.values())


ALONE, WITH_WINDOW, IN_EVERY_LAYER = "latents alone", "latents and window", "latents in every layer, and window"
FROM_THE_SECOND = "latents in every second layer, from the second, and window"


def means_of(table: str, metric, digits: int = 2) -> dict[str, str]:
    """A metric of units, rounded, as its mean over seeds by the names of the table's rows."""
    name, _, form = table.rpartition("_")
    points = sweep.measured(tables.TABLES[name], form)["points"]
    return {sized_name(point[0]): f"{mean(map(metric, point)):.{digits}f}" for point in points}


def said_of_recall() -> list[str]:
    reduced = means_of("mqar_reduced", lambda unit: unit["accuracy"])
    small = means_of("mqar_small", lambda unit: unit["accuracy"])
    return [
        f"16 of them recall {reduced[f'{IN_EVERY_LAYER}, 16']} after so short a training, 4 recall "
        f"{reduced[f'{IN_EVERY_LAYER}, 4']}, and the window alone {reduced['window alone']}",
        f"14 recall {reduced[f'{WITH_WINDOW}, 14']} and 38 recall {reduced[f'{WITH_WINDOW}, 38']}. With latents in "
        f"the second layer only, 14 recall {reduced[f'{FROM_THE_SECOND}, 14']} and 38 recall "
        f"{reduced[f'{FROM_THE_SECOND}, 38']}",
        f"recalls next to nothing ({small['window alone']}). With a window, 4 latents in every layer recall "
        f"{small[f'{IN_EVERY_LAYER}, 4']} from a state of 8,464 numbers. From 8,440 numbers, 14 latents in the first "
        f"layer recall {small[f'{WITH_WINDOW}, 14']}, and in the second layer {small[f'{FROM_THE_SECOND}, 14']}",
        f"8 of them recall {small[f'{ALONE}, 8']} from a state of 4,896 numbers, Mamba-2 "
        f"{small['Mamba-2, 16']} from 5,376",
    ]


def said_of_passkeys() -> list[str]:
    at_16, at_256 = (means_of("passkey_reduced", lambda unit, i=i: unit["by_length"][i]["accuracy"]) for i in (2, 3))
    repeated, plain, every = f"{WITH_WINDOW}, chunks repeated, 16", f"{WITH_WINDOW}, 16", f"{IN_EVERY_LAYER}, 16"
    return [
        f"finds the number in {at_16[repeated]} of the texts of 1,024 tokens and in {at_256[repeated]} of those of "
        f"16,384. Without repeats it finds {at_16[plain]} and {at_256[plain]}, and with latents in every layer, which "
        f"had no repeats either, {at_16[every]} and {at_256[every]}"
    ]


def said_of_language_models() -> list[str]:
    def behind(form: str, name: str, metric: str) -> float:
        losses = means_of(f"language_model_{form}", lambda unit: unit[metric], digits=9)
        return float(losses[f"{name}, 32"]) - float(losses["window alone"])

    within, end = "loss_in_training_length", "loss_at_the_end"
    return [
        f"the loss is {behind('reduced', WITH_WINDOW, within):.2f} nats per byte higher with latents in every second "
        f"layer than with the window alone, and {behind('reduced', IN_EVERY_LAYER, within):.2f} higher with latents "
        "in every layer",
        f"With latents in every layer and the window, the loss is {behind('medium', IN_EVERY_LAYER, within):.3f} nats "
        f"higher than with the window alone within the length of training, and "
        f"{behind('medium', IN_EVERY_LAYER, end):.3f} higher at the end of texts 16 times as long",
    ]


def said_of_ablations() -> list[str]:
    points = sweep.measured(ablations.TABLE, "reduced")["points"]

    def means(task: str, metric: str, digits: int) -> dict[str, str]:
        rows = [point for point in points if point[0]["task"] == task]
        return {row[0]["variant"]: f"{mean(unit[metric] for unit in row):.{digits}f}" for row in rows}

    recall, loss = means("mqar", "accuracy", 2), means("language_model", "loss_in_training_length", 3)
    base, split = "base: both, local", "retrieval and local attention in one softmax"
    middle, first, last = "local, both, both, local", "both, local, local, local", "local, local, local, both"
    one_head, narrow, without = "one key/value head in the memory", "latents half as wide", "no refinement"
    return [
        f"first of every two layers recall {recall[base]}, in the second {recall['local, both']}, in the two in the "
        f"middle {recall[middle]}; in all four layers {recall['both']}. In the first layer alone they recall "
        f"{recall[first]}, in the last alone {recall[last]}.",
        f"{loss['local']} without any, {loss[last]} with latents in the last layer, {loss['local, both']} and "
        f"{loss[base]} in the second and the first of every two, {loss['both']} in every one",
        f"without it recall is {recall[without]} instead of {recall[base]}, "
        f"at {loss[without]} instead of {loss[base]}",
        f"({recall[one_head]}, {loss[one_head]}). Latents half as wide recall less ({recall[narrow]})",
        f"has the lower loss, {loss[split]}, at the same recall, {recall[split]}",
        f"recall {recall['1 sink']} and {recall['4 sinks']} with one and four, "
        f"loss {loss['1 sink']} and {loss['4 sinks']}",
    ]


@pytest.mark.parametrize("said", [said_of_recall, said_of_passkeys, said_of_language_models, said_of_ablations])
def test_what_the_page_says_of_the_tables_is_in_them(said):
    """Numbers in sentences."""
    text = " ".join(tables.README.read_text(encoding="utf-8").split())
    missing = [sentence for sentence in said() if sentence not in text]
    assert not missing, "\n".join(missing)
