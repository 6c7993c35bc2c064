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
"""The measurements of quality: their data, their models, that they resume, and each table in seconds."""

import shutil
from functools import partial
from statistics import mean
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import one_hot

from benchmarks import record
from benchmarks.quality import ablations, capacity, language_model, mqar, passkey, sweep, tables, training, units
from benchmarks.quality.changes import CHANGES
from benchmarks.quality.models import build, count_parameters, matched_shape, state_elements
from benchmarks.quality.points import sized_name
from common import randomize
from modeling_latent.cache_name import cache_of


RESULTS = record.RESULTS
SHAPE = {
    "vocab_size": 31,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
LATENT = {"num_latents": 3, "chunk_size": 4}
MODULES = {
    "mqar": mqar,
    "passkey": passkey,
    "language_model": language_model,
    "ablations": ablations,
    "capacity": capacity,
}


def random_model(model: str, **settings):
    return randomize(build(model, SHAPE, settings)).eval()


def ids(*shape: int) -> torch.Tensor:
    return torch.randint(SHAPE["vocab_size"], shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr(units, "CHECKPOINTS", tmp_path / "checkpoints")
    return tmp_path


def arguments(**changes):
    args = units.parse_arguments("", {"smoke": {}}, ["--form", "smoke", "--jobs", "1"])
    return type(args)(**{**vars(args), **changes})


def test_recall_asks_only_for_values_of_keys_that_came_before():
    input_ids, labels = mqar.make_examples(200, vocab_size=64, length=40, pairs=5, seed=0)
    for row, row_labels in zip(input_ids.tolist(), labels.tolist(), strict=True):
        value_of = dict(zip(row[0:10:2], row[1:10:2], strict=True))
        queries = [place for place, label in enumerate(row_labels) if label != -100]
        assert sorted(row[place] for place in queries) == sorted(value_of)
        assert all(row_labels[place] == value_of[row[place]] and place >= 10 for place in queries)
        assert all(1 <= key < 32 <= value < 64 for key, value in value_of.items())


def test_distances_of_recall_follow_the_power_law():
    """One pair, so that nothing is drawn without repetition; 50,000 rows, four standard errors."""
    _, labels = mqar.make_examples(50_000, vocab_size=64, length=22, pairs=1, seed=0)
    places = (labels != -100).nonzero()[:, 1]
    expected = torch.arange(1, 11).double() ** (mqar.POWER - 1)
    expected /= expected.sum()
    found = torch.bincount(places, minlength=22)[2::2].double() / len(places)
    assert (places % 2 == 0).all()
    assert ((found - expected).abs() < 4 * (expected / len(places)).sqrt()).all()


def test_passkey_is_in_the_text_once_and_asked_for_at_the_end():
    texts = passkey.make_texts(50, 128, seed=0)
    before, depths = passkey.encode(passkey.NEEDLE.split("{}")[0]), set()
    assert texts.shape == (50, 128)
    for text in texts:
        question = 128 - passkey.DIGITS - len(passkey.encode(passkey.QUESTION))
        places = [i for i in range(question) if text[i : i + len(before)].equal(before)]
        assert len(places) == 1
        digits = text[places[0] + len(before) :][: passkey.DIGITS]
        assert digits.equal(text[-passkey.DIGITS :]) and (digits < 10).all()
        depths.add(places[0])
    assert min(depths) < 20 and max(depths) > 70
    with pytest.raises(ValueError, match="`length` is 20 but must be at least"):
        passkey.make_texts(1, 20, seed=0)


def test_a_passkey_may_be_at_the_start_of_the_filler_and_at_its_end():
    with pytest.raises(ValueError) as error:
        passkey.make_texts(1, 20, seed=0)
    least = int(str(error.value).split("at least ")[1].split(",")[0])
    texts = passkey.make_texts(20, least + 1, seed=0)  # one word of filler
    assert {text[1].item() for text in texts} == {passkey.TOKENS["pass"], passkey.TOKENS["The"]}


def test_capacity_asks_for_each_pair_once():
    keys, values, queries, answers = capacity.make_pairs(20, 8, seed=0)
    for row in zip(keys.tolist(), values.tolist(), queries.tolist(), answers.tolist(), strict=True):
        assert dict(zip(*row[:2], strict=True)) == dict(zip(*row[2:], strict=True)) and len(set(row[0])) == 8


def test_validation_years_are_not_in_the_training_text():
    text, validation = language_model.load_text("sotu")
    training_bytes = bytes(text.tolist())
    assert len(validation) > 20
    for document in validation:
        middle = len(document) // 2
        assert bytes(document[middle : middle + 200].tolist()) not in training_bytes


def test_a_piece_of_text_is_a_token_longer_than_what_is_predicted():
    pieces = language_model.make_batch(torch.arange(40, dtype=torch.uint8), count=5, length=8, seed=0)
    assert pieces.shape == (5, 9) and (pieces.diff() == 1).all()


def only_read(model, loss_at, steps: int, *args, **kwargs) -> None:
    """In place of training, which then counts as unfinished."""
    for step in range(steps):
        loss_at(step)


@pytest.mark.parametrize(
    "module, make", [(language_model, "make_batch"), (passkey, "make_texts")], ids=["text", "passkey"]
)
def test_no_two_seeds_see_the_same_data(module, make, monkeypatch):
    seeds, original = [], getattr(module, make)
    monkeypatch.setattr(module, make, lambda *sizes: seeds.append(sizes[-1]) or original(*sizes))
    monkeypatch.setattr(module, "train", only_read)
    (point, *_) = module.points(module.FORMS["smoke"])
    for seed in (0, 1):
        module.run_unit({**point, "learning_rate": 1e-3, "seed": seed}, training.Job("cpu", 1.0, None))
    assert len(set(seeds)) == len(seeds) == 2 * point["steps"]


class Stub(torch.nn.Module):
    """Its logits `(B, T, V)` are what a function makes of `input_ids` `(B, T)`."""

    def __init__(self, logits_of):
        super().__init__()
        self.logits_of = logits_of

    @property
    def base_model(self):
        return self

    def forward(self, input_ids, use_cache):
        return SimpleNamespace(last_hidden_state=self.logits_of(input_ids))

    def get_output_embeddings(self):
        return torch.nn.Identity()


def test_recall_is_the_share_of_queries_with_the_right_value():
    input_ids = ids(5, 7)
    labels = input_ids.where(torch.arange(7) % 2 == 0, -100)  # the model says each token itself: all are right
    labels[:, :4:2] += 1  # two of each row's four are wrong
    assert mqar.accuracy(Stub(partial(one_hot, num_classes=32)), input_ids, labels, batch_size=2) == 0.5


def test_a_passkey_is_found_where_all_five_digits_are_right():
    def four_or_five_right(input_ids):
        # Of the digits that a text has, the first five are the key.
        keys = input_ids[input_ids < 10].view(len(input_ids), -1)[:, : passkey.DIGITS].clone()
        keys[:, 2] += (keys[:, 0] < 5).long()
        places = torch.nn.functional.pad(keys, (input_ids.shape[1] - passkey.DIGITS, 0))
        return one_hot(places, len(passkey.TOKENS))

    expected = (passkey.make_texts(60, 64, passkey.TEST_SEED)[:, -passkey.DIGITS] >= 5).double().mean().item()
    assert 0.2 < expected < 0.8
    assert passkey.accuracy(Stub(four_or_five_right), 64, 60, "cpu") == expected


def test_the_loss_of_a_span_is_its_mean_from_the_start_of_documents():
    """Byte 0 costs 1 nat at the first place, 2 at the second, and so on; byte 1 nothing near that."""

    def rising(input_ids):
        place = torch.arange(1.0, input_ids.shape[1] + 1).expand_as(input_ids)
        return torch.stack([torch.zeros_like(place), place.expm1().log()], dim=-1)

    short, long, other = torch.ones(32), torch.ones(80), torch.ones(80)
    long[:33] = 0
    documents = [document.to(torch.uint8) for document in (short, long, other)]
    found = language_model.evaluate(Stub(rising), documents, length=2, count=1, device="cpu", bfloat16=False)
    assert [(span["from"], span["to"]) for span in found] == [(0, 2), (2, 4), (4, 8), (8, 16), (16, 32)]
    assert [span["loss"] for span in found] == pytest.approx([1.5, 3.5, 6.5, 12.5, 24.5], rel=1e-5)


@pytest.mark.parametrize(
    "model, settings, expected",
    [
        ("full_attention", {}, 2 * 2 * 16 * 40),  # keys and values of 40 tokens in 2 layers
        ("window", {"chunk_size": 4}, 2 * (2 * 16 * 8 + 16 * 3)),  # of two chunks, and inputs of the convolution
        ("latents_and_window", LATENT, None),
        ("latents_in_every_layer", LATENT, None),
        ("latents", LATENT, None),
        ("mamba2", {"state_size": 8}, 2 * (32 * 8 + (32 + 2 * 8) * 4)),  # state and inputs of the convolution
        ("gated_delta_net", {"key_dim": 4}, 2 * (2 * 4 * 8 + 2 * (4 + 4 + 8) * 4)),
    ],
)
def test_state_elements_are_those_of_the_cache(model, settings, expected):
    built = random_model(model, **settings)
    if expected is None:
        expected = built.config.state_bytes(dtype=torch.float32) // 4 - 2 * 2  # without a counter of 8 bytes per layer
    assert state_elements(built, 40) == expected


def test_window_alone_sees_only_the_window_and_continues_from_its_cache():
    model, input_ids = random_model("window", chunk_size=4), ids(1, 23)
    changed = input_ids.clone()
    changed[0, 0] += 1
    assert not any("latent" in name for name, _ in model.named_parameters())
    # Two layers: each attends to the chunk before, and then its convolution reaches 3 tokens back. So the first one
    # brings the first token to token 10, and the second one that to the end of the fourth chunk and to token 18.
    torch.testing.assert_close(model(changed).logits[:, 19:], model(input_ids).logits[:, 19:])
    assert not torch.allclose(model(changed).logits[:, 18], model(input_ids).logits[:, 18])
    assert not torch.allclose(model(changed).logits[:, 8], model(input_ids).logits[:, 8])
    outputs, logits = model(input_ids[:, :14], use_cache=True), []
    for step in range(14, 23):
        outputs = model(input_ids[:, step : step + 1], cache=cache_of(outputs))
        logits.append(outputs.logits)
    torch.testing.assert_close(torch.cat(logits, 1), model(input_ids).logits[:, 14:], atol=1e-5, rtol=1e-4)


def test_without_refinement_is_the_model_whose_refinement_adds_nothing():
    unrefined = random_model("latents_and_window", **LATENT, change="no refinement")
    refined = random_model("latents_and_window", **LATENT)
    assert not any("latent_self" in name or "refine" in name for name, _ in unrefined.named_parameters())
    refined.load_state_dict(unrefined.state_dict(), strict=False)
    assert not torch.allclose(refined(ids(2, 20)).logits, unrefined(ids(2, 20)).logits, atol=1e-3)
    torch.nn.init.zeros_(refined.model.layers[0].latent_attention.latent_self.o_proj.weight)
    torch.testing.assert_close(refined(ids(2, 20)).logits, unrefined(ids(2, 20)).logits)


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_model_is_another_one_and_causal(change):
    model, unchanged = (random_model("latents_and_window", **LATENT, change=name) for name in (change, None))
    # What both have is equal, so that only the change itself makes a difference.
    common = {name: tensor for name, tensor in unchanged.state_dict().items() if name in model.state_dict()}
    model.load_state_dict(
        {name: tensor for name, tensor in common.items() if tensor.shape == model.state_dict()[name].shape},
        strict=False,
    )
    input_ids = ids(2, 21)
    logits = model(input_ids).logits
    assert not torch.allclose(logits, unchanged(input_ids).logits, atol=1e-3)
    changed = input_ids.clone()
    changed[:, 9] = (changed[:, 9] + 1) % SHAPE["vocab_size"]
    torch.testing.assert_close(model(changed).logits[:, :9], logits[:, :9], rtol=0, atol=0)
    assert not torch.allclose(model(changed).logits[:, 20], logits[:, 20], atol=1e-4)


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_change_draws_starts_as_in_the_package(change):
    """Projections from the latents by their width, what refinement adds a tenth of that, branches smaller still."""
    torch.manual_seed(0)  # of 2,048 weights or more, whose deviation is within 5 % of its own at three sigma
    shape = {**SHAPE, "hidden_size": 128, "num_attention_heads": 4}
    memory = build("latents_and_window", shape, {**LATENT, "change": change}).model.layers[0].latent_attention
    branch = 128**-0.5 / (3 * SHAPE["num_hidden_layers"]) ** 0.5
    sizes = {"latent_self.o_proj": 0.1, "latent_to_input.o_proj": branch}
    for name, module in memory.named_modules():
        if isinstance(module, torch.nn.Linear):
            expected = sizes.get(name, 1.0) * module.in_features**-0.5
            assert module.weight.std().item() == pytest.approx(expected, rel=0.1), name


def test_gated_delta_net_starts_with_a_memory():
    model = build("gated_delta_net", {**SHAPE, "num_hidden_layers": 50}, {"key_dim": 4})
    steps = torch.nn.functional.softplus(torch.cat([layer.linear_attn.dt_bias for layer in model.model.layers]))
    assert 0.001 <= steps.min() < 0.002 and 0.05 < steps.max() <= 0.1  # of 100 draws, log-uniform


@pytest.mark.parametrize(
    "model, settings", [("full_attention", {}), ("mamba2", {"state_size": 16}), ("latents", LATENT)]
)
def test_models_are_matched_in_parameters(model, settings):
    shape = {**SHAPE, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4}
    wanted = count_parameters("latents_in_every_layer", shape, LATENT)
    found = count_parameters(model, matched_shape(model, shape, settings, wanted), settings)
    assert found == pytest.approx(wanted, rel=0.05)


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


def test_the_reduced_form_is_named_and_its_points_can_be_built():
    for module in (mqar, passkey, language_model):
        for point in module.points(module.FORMS["reduced"]):
            assert count_parameters(point["model"], point["shape"], point["settings"]) > 1000
    for task in ablations.TASKS:
        points = ablations.task_points(ablations.FORMS["reduced"], task)
        sizes = [count_parameters(point["model"], point["shape"], point["settings"]) for point in points]
        # Equal except for steps of the feed-forward width; an MLP is never narrower than twice the model.
        assert max(sizes) / min(sizes) < 1.01
        assert all(p["shape"]["intermediate_size"] >= 2 * p["shape"]["hidden_size"] for p in points)


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


def test_the_figures_are_of_what_was_measured(folder):
    for file in RESULTS.glob("quality_*.jsonl"):
        shutil.copy(file, folder)
    tables.draw_figures()
    drawn = {file.name: file.read_bytes() for file in folder.glob("*.svg")}
    assert drawn == {file.name: file.read_bytes() for file in RESULTS.glob("quality_*.svg")}


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
