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
"""The harness of the measurements of quality: training resumes, units run once, sweeps, and each table in seconds."""

import shutil

import pytest
import torch

from benchmarks import record
from benchmarks.quality import ablations, capacity, language_model, mqar, passkey, sweep, tables, training, units
from pictures import drawn


RESULTS = record.RESULTS
MODULES = {
    "mqar": mqar,
    "passkey": passkey,
    "language_model": language_model,
    "ablations": ablations,
    "capacity": capacity,
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr(units, "CHECKPOINTS", tmp_path / "checkpoints")
    return tmp_path


def arguments(**changes):
    args = units.parse_arguments("", {"smoke": {}}, ["--form", "smoke", "--jobs", "1"])
    return type(args)(**{**vars(args), **changes})


def test_an_interrupted_training_goes_on_as_if_nothing_had_been(tmp_path, monkeypatch):
    def trained(checkpoint: str, interrupt_at: int | None) -> torch.Tensor:
        torch.manual_seed(0)
        model, now = torch.nn.Linear(4, 1), iter([0.0] * (interrupt_at or 100) + [2.0])
        job = training.Job("cpu", 1.0, tmp_path / checkpoint)

        def loss_at(step: int) -> torch.Tensor:
            return model(torch.randn(8, 4, generator=torch.Generator().manual_seed(step))).square().mean()

        monkeypatch.setattr(training.time, "time", lambda: next(now))
        result = training.train(model, loss_at, 10, 0.1, job)
        assert (result is None) == job.checkpoint.exists() == (interrupt_at is not None)
        return model.weight.detach()

    whole = trained("whole.pt", None)
    first = trained("parts.pt", 4)
    assert not torch.allclose(first, whole)
    torch.testing.assert_close(trained("parts.pt", None), whole, atol=0, rtol=0)


def test_large_gradients_are_clipped():
    model = torch.nn.Linear(4, 1)
    before, optimizer = model.weight.detach().clone(), torch.optim.SGD(model.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    training.train_step(model, optimizer, scheduler, lambda: 100 * model.weight.sum(), training.precision("cpu"))
    assert (model.weight - before).norm().item() == pytest.approx(training.MAX_GRAD_NORM, rel=1e-4)


def test_training_ends_when_its_task_is_solved_at_a_check(tmp_path):
    model, checks = torch.nn.Linear(4, 1), iter([False, True])
    job = training.Job("cpu", float("inf"), tmp_path / "checkpoint.pt")
    result = training.train(
        model, lambda step: model(torch.ones(1, 4)).sum(), 10, 0.1, job, lambda: next(checks), check_every=3
    )
    assert result["trained_steps"] == 6


@pytest.mark.parametrize("accuracy, steps", [(mqar.SOLVED, 100), (mqar.SOLVED - 0.001, 104)])
def test_training_of_recall_ends_when_it_is_solved(accuracy, steps, tmp_path, monkeypatch):
    monkeypatch.setattr(mqar, "accuracy", lambda *args: accuracy)
    (point, *_) = mqar.points({**mqar.FORMS["smoke"], "examples": 16, "passes": 52, "batch_size": 8})
    job = training.Job("cpu", float("inf"), tmp_path / "checkpoint.pt")
    assert mqar.run_unit({**point, "learning_rate": 1e-3, "seed": 0}, job)["trained_steps"] == steps


def test_finished_units_are_not_run_again(folder):
    done, file = [], folder / "units.jsonl"

    def run_unit(unit, job):
        done.append(unit["seed"])
        return {"accuracy": unit["seed"] / 10} if unit["seed"] != 1 or len(done) > 3 else None

    def run(points, **changes):
        units.run_units(file, points, run_unit, arguments(**changes))
        return units.finished_units(file, points)

    points = [{"seed": seed} for seed in (0, 1, 2)]
    assert [unit["seed"] for unit in run(points)] == [0, 2] and done == [2, 1, 0]  # from the end
    found = run(points)
    assert [unit["accuracy"] for unit in found] == [0.0, 0.1, 0.2] and done == [2, 1, 0, 1]
    assert {unit["revision"] for unit in found} == {record.revision()}
    run([{"seed": 0, "steps": 5}])
    assert done[4:] == [0]  # another recipe is another unit
    assert run([{"seed": 7}], deadline=0.0) == [] and done[5:] == []


def swept(points: list[dict], rates: tuple[float, ...], run_unit) -> dict:
    """What a sweep gives of these points, each unit of which has the result of `run_unit`, if it has one."""
    form = {"learning_rates": rates}
    table = sweep.Table(
        "table", "A table", {"full": form}, lambda form: points, lambda unit: unit["accuracy"], run_unit
    )

    def run(units: list[dict]) -> list[dict]:
        results = [(unit, run_unit(unit)) for unit in units]
        return [{**unit, **result} for unit, result in results if result is not None]

    return sweep.sweep(table, "full", run)


def test_other_seeds_run_at_the_best_learning_rate():
    def run_unit(unit):
        return {"accuracy": 1 - abs(unit["learning_rate"] - unit["best"])}

    result = swept([{"best": 0.1}, {"best": 0.3}], (0.1, 0.2, 0.3), run_unit)
    assert len(result["units"]) == result["all"] == 10
    for point in result["points"]:
        assert [unit["seed"] for unit in point] == [0, 1, 2]
        assert all(unit["learning_rate"] == unit["best"] for unit in point)


def test_a_point_waits_for_all_of_its_learning_rates_and_seeds():
    stopped = [("a", 0.2, 0), ("b", 0.1, 2)]

    def run_unit(unit):
        done = (unit["name"], unit["learning_rate"], unit["seed"]) not in stopped
        return {"accuracy": 1 - unit["learning_rate"]} if done else None

    result = swept([{"name": name} for name in "abc"], (0.1, 0.2), run_unit)
    assert [[unit["name"] for unit in point] for point in result["points"]] == [["c"] * 3]
    assert {unit["seed"] for unit in result["units"] if unit["name"] == "a"} == {0}


def test_a_unit_is_the_same_in_whatever_order_it_is_written():
    assert units.key_of({"seed": 0, "shape": {"a": 1, "b": 2}}) == units.key_of({"shape": {"b": 2, "a": 1}, "seed": 0})


def test_units_run_in_processes(folder):
    form = capacity.FORMS["smoke"]
    points = [{**point, "learning_rate": 1e-3, "seed": 0} for point in capacity.points(form)[:2]]
    units.run_units(folder / "units.jsonl", points, capacity.run_unit, arguments(jobs=2))
    assert [unit["pairs"] for unit in units.finished_units(folder / "units.jsonl", points)] == [2, 4]


@pytest.mark.parametrize("table", MODULES)
def test_every_table_is_measured(table, folder, monkeypatch):
    MODULES[table].main(["--form", "smoke", "--jobs", "1"])
    monkeypatch.setattr(tables, "FORMS", ("smoke",))
    ((name, result),) = tables.results(tables.TABLES[table]).items()
    assert name == f"quality_{table}_smoke" and result["title"].endswith("smoke")
    assert all(f"one unit at a time, torch {torch.__version__}" in unit["machine"] for unit in result["units"])
    # At least half of the steps take the median or longer.
    assert all(1000 * unit["seconds"] > unit["trained_steps"] * unit["ms_per_step"] / 2 for unit in result["units"])
    assert result["all"] == len(result["units"]) and result["points"]
    rows = tables.ROWS[table](result)
    assert len(rows) > 2 and all(len(row) == len(rows[0]) for row in rows)
    assert f"![{result['title']}](../results/{name}.svg)" in tables.render(tables.TABLES[table])
    tables.draw_figures()
    assert (folder / f"{name}.svg").stat().st_size > 1000
    assert not (folder / "checkpoints").exists()


def test_the_figures_are_of_what_was_measured(folder):
    for file in RESULTS.glob("quality_*.jsonl"):
        shutil.copy(file, folder)
    tables.draw_figures()
    figures = {file.name: drawn(file) for file in folder.glob("*.svg")}
    assert figures == {file.name: drawn(file) for file in RESULTS.glob("quality_*.svg")}
