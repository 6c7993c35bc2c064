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
"""The benchmarks: equal peers, real masks, every measure at toy size, and numbers shown as they were measured."""

import subprocess
import weakref
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
import torch
from matplotlib.figure import Figure
from transformers import DynamicCache

from benchmarks import record
from benchmarks.peers import make_model
from benchmarks.speed import __main__ as command
from benchmarks.speed import curves, decoding, figures, measures, plans, tables, timing
from benchmarks.speed.bench import Bench, forward
from benchmarks.speed.models import (
    FULL,
    MAMBA,
    NO_LATENTS,
    OURS,
    PEERS,
    TOLERANCE,
    WINDOWED,
    configs_of,
    count_parameters,
    equal_config,
)
from common import random_ids, randomize, tiny_config
from modeling_latent.cache_name import CACHE_NAME
from pictures import drawn


def tiny_configs(names=PEERS) -> dict:
    ours = tiny_config(bos_token_id=None, eos_token_id=None)
    return {OURS: ours} | {name: equal_config(name, ours) for name in names}


def tiny_bench(names=PEERS) -> Bench:
    return Bench(tiny_configs(names), device="cpu", seconds=0.1, limit=60, result={})


def tiny_peer(name: str):
    return randomize(make_model(tiny_configs()[name])).eval()


@pytest.mark.parametrize("name", ["latent-60m", "latent-135m", "latent-1b"])
def test_peers_have_as_many_parameters(name):
    counts = {model: count_parameters(config) for model, config in configs_of(name, PEERS).items()}
    assert all(abs(count / counts[OURS] - 1) <= TOLERANCE for count in counts.values())


def first_changed_logit(model, length: int, changed: int) -> torch.Tensor:
    """Which logits `(T,)` change with token `changed`."""
    input_ids = random_ids(1, length)
    others = input_ids.clone()
    others[0, changed] = (others[0, changed] + 1) % 31
    with torch.no_grad():
        difference = model(input_ids=input_ids).logits - model(input_ids=others).logits
    return difference[0].abs().amax(-1) > 1e-6


def test_the_window_is_real_and_full_attention_has_none():
    # Two layers of 2C = 8 tokens each: the last token that is reached is 2 * 7 further.
    reached = first_changed_logit(tiny_peer(WINDOWED), 40, changed=3)
    assert reached[3 : 3 + 15].all() and not reached[3 + 15 :].any()
    assert first_changed_logit(tiny_peer(FULL), 40, changed=3)[3:].all()


def test_the_cache_of_the_window_is_bounded():
    model = tiny_peer(WINDOWED)
    sizes = {length: decoding.cache_bytes(forward(model, random_ids(1, length))[1]) for length in (20, 40)}
    assert sizes[20] == sizes[40]


def test_without_latents_nothing_is_seen_beyond_the_window():
    model = tiny_peer(NO_LATENTS)
    assert not any("latent_attention" in name for name, _ in model.named_parameters())
    # Two layers, each a chunk back (C = 4) and by its convolution into one more.
    reached = first_changed_logit(model, 40, changed=3)
    assert reached[16:20].any() and not reached[20:].any()


@pytest.mark.parametrize("name", [OURS, *PEERS])
def test_a_cache_continues(name):
    model, input_ids = randomize(make_model(tiny_configs()[name])).eval(), random_ids(1, 30)
    cache = decoding.prefill_in_pieces(model, None, input_ids[:, :29], piece=8)
    logits, _ = forward(model, input_ids[:, 29:], cache)
    torch.testing.assert_close(logits, forward(model, input_ids)[0], atol=1e-4, rtol=1e-4)


def test_greedy_steps_are_those_of_generate():
    model, input_ids = randomize(make_model(tiny_configs()[OURS])).eval(), random_ids(1, 8)
    cache = decoding.prefill_in_pieces(model, None, input_ids)
    step = decoding.greedy_step(model, cache, 8, batch=1)
    for _ in range(9):
        step()
    first = torch.zeros(1, 1, dtype=torch.long)
    other = decoding.prefill_in_pieces(model, None, input_ids)
    model.generate(
        torch.cat([input_ids, first], 1), **{CACHE_NAME: other}, max_new_tokens=9, do_sample=False, eos_token_id=None
    )
    for left, right in zip(cache.layers[0].state.memory, other.layers[0].state.memory, strict=True):
        torch.testing.assert_close(left, right)


def test_the_bytes_of_a_cache_are_those_of_the_formula():
    config = tiny_config()
    cache = DynamicCache(config=config)
    make_model(config)(random_ids(3, 10), cache=cache)
    assert decoding.cache_bytes(cache) == config.state_bytes(3, torch.float32)


@pytest.mark.parametrize("measure", [measures.prefill, measures.training])
def test_time_by_length(measure):
    bench = tiny_bench()
    measure(bench, (8, 16), few=(8,))
    points = bench.result[measure.__name__]
    assert set(points) == {OURS, *PEERS}
    assert set(points[FULL]) == set(points[OURS]) == {"8", "16"} and set(points[MAMBA]) == {"8"}
    assert all(point["seconds"] > 0 for model in points.values() for point in model.values())
    assert {entry["model"] for entry in bench.result["left_out"]} == set(PEERS) - {FULL}


@pytest.mark.parametrize("measure", [measures.prefill_growth, decoding.decode_growth])
def test_growth_is_that_of_ours(measure):
    bench = tiny_bench()
    measure(bench, (8, 16))
    points = bench.result[measure.__name__.replace("_", " ")]
    assert set(points) == {OURS} and set(points[OURS]) == {"8", "16"}
    assert all(point["seconds"] > 0 for point in points[OURS].values())


def test_a_slow_model_is_left_out_at_greater_lengths():
    bench = tiny_bench((FULL,))
    bench.limit = 0
    measures.prefill(bench, (8, 16))
    assert set(bench.result["prefill"][FULL]) == {"8"}
    assert all("above the limit" in entry["why"] for entry in bench.result["left_out"])


def test_a_model_is_left_out_where_it_is_known_to_need_too_much_memory():
    bench = tiny_bench((FULL,))
    bench.too_large = frozenset({("prefill", FULL, 16)})
    measures.prefill(bench, (8, 16))
    assert set(bench.result["prefill"][FULL]) == {"8"} and set(bench.result["prefill"][OURS]) == {"8", "16"}
    assert bench.result["left_out"] == [{"measure": "prefill", "model": FULL, "length": 16, "why": "out of memory"}]


def test_a_length_that_was_slow_is_measured_again():
    bench = tiny_bench((FULL,))
    bench.result["prefill"] = {FULL: {"16": {"seconds": 2 * bench.limit}}}
    measures.prefill(bench, (16,))
    assert bench.result["prefill"][FULL]["16"]["seconds"] < bench.limit and not bench.result["left_out"]


def test_what_was_left_out_can_be_measured_later():
    bench = tiny_bench((FULL,))
    for length in (8, 16):
        bench.leave_out("prefill", length, FULL, "out of memory")
    bench.note("prefill", 8, {FULL: {"seconds": 1.0}})
    assert [entry["length"] for entry in bench.result["left_out"]] == [16]


def test_decoding_time_counts_one_entry_per_chunk(monkeypatch):
    monkeypatch.setattr(decoding, "timed", lambda call, device: call())
    positions = iter(range(5, 100))
    steps = {OURS: lambda: 9.0 if next(positions) % 4 == 0 else 1.0}
    point = decoding.decode_times(steps, context=5, chunk_size=4, device="cpu")[OURS]
    assert (point["ordinary"], point["entering"], point["seconds"]) == (1.0, 9.0, 3.0)


def test_decoding_and_the_cache_at_several_contexts():
    bench = tiny_bench()
    decoding.decode(bench, (8, 48), few=(8,))
    assert set(bench.result["decode"]) == {OURS, *PEERS}
    sizes = bench.result["cache"]
    assert sizes[OURS]["8"] == sizes[OURS]["48"] == {"bytes": bench.configs[OURS].state_bytes(1, torch.float32)}
    assert sizes[FULL]["48"]["bytes"] == 6 * sizes[FULL]["8"]["bytes"]


def test_a_row_of_packed_documents_beside_the_row_as_one():
    bench = tiny_bench()
    measures.packed_training(bench, 32, documents=(2, 8))
    assert bench.result["packed training"][OURS].keys() == {"2", "8", "32"}


def test_rounds_take_turns_and_the_first_is_warm_up():
    order = []
    calls = {name: partial(order.append, name) for name in "ab"}
    points = timing.interleaved(calls, "cpu", seconds=60)
    assert order == list("ab") * (timing.MOST_ROUNDS + 1)
    assert points["a"]["runs"] == timing.MOST_ROUNDS
    assert timing.interleaved(calls, "cpu", seconds=0)["b"]["runs"] == 2
    assert order == list("ab") * (timing.MOST_ROUNDS + 4)  # a slow round is warm-up, too


def fails(*args):
    raise torch.OutOfMemoryError


def test_what_does_not_fit_is_missing_and_gives_its_memory_back():
    model, alive = torch.nn.Linear(2, 2), []
    weight = weakref.ref(model.weight)
    calls = {"a": partial(fails, model), "b": lambda: alive.append(weight() is not None)}
    del model
    assert set(timing.interleaved(calls, "cpu", seconds=0)) == {"b"}
    assert not any(alive)


@pytest.mark.parametrize("measure", ["training memory", "longest context"])
def test_a_process_that_runs_out_of_memory_is_left_out(measure, monkeypatch):
    bench = tiny_bench()
    monkeypatch.setattr(measures, "in_fresh_process", fails)
    if measure == "training memory":
        measures.training_memory(bench, (64,), names=(OURS,))
    else:
        measures.longest_context(bench, 64, piece=16, batch=1)
    expected = {"measure": measure, "model": OURS, "length": 64, "why": "out of memory"}
    assert bench.result["left_out"] == [expected]


def test_throughput_takes_the_largest_batch_that_fits():
    bench, make, models = tiny_bench((FULL,)), decoding.batch_times, []

    def batch_times(bench, model, cache, context, batch):
        """As on a device where five rows don't fit."""
        if batch > 3:
            raise torch.OutOfMemoryError
        models.append(weakref.ref(model))
        assert [ref() is None for ref in models[:-1]] == [True] * (len(models) - 1)  # none that still takes room
        return make(bench, model, cache, context, batch)

    with mock.patch.object(decoding, "batch_times", batch_times):
        decoding.decode_throughput(bench, 8, batches=(1, 5, 3))
    assert [bench.result["throughput"][name]["8"]["batch"] for name in (OURS, FULL)] == [3, 3]


def test_limits_and_kernels():
    bench = tiny_bench((FULL, WINDOWED))
    measures.training(bench, (16,))
    decoding.decode(bench, (8,))
    measures.limits(bench, length=16, context=8, matmul_size=64, copied=2**20)
    share = bench.result["limits"][OURS]["16"]
    assert all(value > 0 for value in share.values())
    measures.attention_kernels(bench, (16,))
    for operators in bench.result["kernels"][FULL]["16"].values():
        assert any("flash" in name for names in operators.values() for name in names)


def test_memory_is_measured_in_a_fresh_process():
    bench = tiny_bench((FULL,))
    measures.training_memory(bench, (64, 2048), names=(OURS,))
    points = bench.result["training memory"]
    assert points[OURS]["2048"]["bytes"] > points[OURS]["64"]["bytes"] >= 0
    measures.longest_context(bench, tokens=64, piece=8, batch=2)
    point = bench.result["longest context"][OURS]["64"]
    assert point["tokens"] == 64 and point["bytes"] > 0
    measures.long_prompt(bench, 64)
    assert bench.result["long prompt"][OURS]["64"]["bytes"] > 0
    measures.prefill_growth_in_a_plain_process(bench, (8, 16))
    assert bench.result["prefill growth, plain process"][OURS].keys() == {"8", "16"}


def tiny_result() -> dict:
    """As a run writes it, with ours constant and Llama growing."""
    lengths = (1024, 4096, 16384, 32768)
    ours = {str(length): {"seconds": 2.0, "bytes": 2} for length in lengths}
    llama = {str(length): {"seconds": length / 4096, "bytes": length // 1024} for length in lengths}
    points = {OURS: ours, FULL: llama, MAMBA: {"1024": {"seconds": 1.0, "bytes": 1}}}
    names = ("decode", "decode growth", "prefill", "prefill growth", "training", "cache")
    return {"models": {"latent-60m": {**{name: points for name in names}, "state_bytes": 2}}}


@pytest.mark.parametrize(
    ("peer", "length"),
    [({1: 1, 4: 4, 16: 16}, 2), ({1: 3, 4: 3, 16: 3}, 1), ({1: 1, 4: 1, 16: 1}, None), ({1: 3, 4: 1, 16: 4}, 8)],
)
def test_where_curves_cross(peer, length):
    assert curves.crossing({1: 2, 4: 2, 16: 2}, peer) == (length if length is None else pytest.approx(length))


def test_targets_are_met_missed_or_not_measured():
    rows = tables.targets(tiny_result(), "cpu").splitlines()
    verdicts = {row.split(" | ")[0][2:]: row.split(" | ")[1:] for row in rows[2:]}
    assert verdicts["decoding, ours ÷ Llama, at 1k"] == ["≤ 0.9", "8", "**missed** |"]
    assert verdicts["decoding, ours ÷ Llama, at 32k"] == ["≤ 0.15", "0.25", "**missed** |"]
    assert verdicts["prefill, 16k ÷ 4k"] == ["≤ 4.2", "1", "met |"]
    assert verdicts["decoding, ours ÷ Llama, at 8k"][-2:] == ["", "not measured |"]
    assert "| ours ÷ Llama | 8.00 | 2.00 | 0.50 | 0.25 | from 8,192 on |" in tables.ratios(tiny_result())
    assert "| decoding, time per token | 8.00 | 2.00 | 0.50 | 0.25 |" in tables.overview(tiny_result())


def test_the_figure_has_a_curve_for_every_model():
    figure = Figure()
    figures.plot(tiny_result(), figure)
    panels = figure.axes
    assert len(panels) == 4
    assert all({OURS, FULL, MAMBA} <= {line.get_label() for line in panel.lines} for panel in panels)


def test_the_figure_in_the_results_is_of_what_was_measured(tmp_path, monkeypatch):
    kept = drawn(record.RESULTS / "speed-cpu.svg")
    result = record.read("speed-cpu")
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    record.write("speed-cpu", result)
    tables.draw_figures()
    assert drawn(tmp_path / "speed-cpu.svg") == kept


@pytest.mark.parametrize("readme", tables.READMES, ids=lambda file: file.parent.name)
def test_the_readmes_show_what_was_measured(readme: Path):
    assert "<!-- speed-cpu " in readme.read_text(encoding="utf-8")
    assert readme.read_text(encoding="utf-8") == tables.rendered(readme)


def test_the_command_writes_and_adds_to_its_result(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    parts = [[("latent-tiny", partial(measures.prefill, lengths=(length,)))] for length in (8, 16)]
    monkeypatch.setitem(plans.PLANS, "cpu", plans.PLANS["cpu"]._replace(parts=parts))
    command.main(["--plan", "cpu"])
    command.main(["--plan", "cpu", "--part", "2"])
    result = record.read("speed-cpu")
    assert set(curves.curve(result, "prefill", OURS)) == {8, 16}
    assert set(result["parts"]) == {"1", "2"} and result["parts"]["2"]["torch"] == torch.__version__
    assert result["models"]["latent-tiny"]["parameters"][OURS] == 4_349_952
    for part, device, why in (("3", "cpu", "must be from 1 to 2"), ("2", "cuda", "run part 1 first")):
        with pytest.raises(SystemExit):
            command.main(["--plan", device, "--part", part])
        assert why in capsys.readouterr().err


def test_the_revision_says_whether_code_has_changed(tmp_path, monkeypatch):
    def git(*words: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True)

    code = tmp_path / "code.py"
    code.write_text("1")
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    monkeypatch.setattr(record, "__file__", str(tmp_path / "benchmarks" / "record.py"))
    commit = record.revision()
    assert len(commit) == 40
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    (tmp_path / "benchmarks" / "results" / "new.json").write_text("{}")
    assert record.revision() == commit
    code.write_text("2")
    assert record.revision() == f"{commit}+"
