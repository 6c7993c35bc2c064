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
"""On a device that is not the CPU, everything is computed there and equals what the CPU computes.

`test_device.py` runs this in a process of its own. It finds what only a GPU would find otherwise: a tensor that was
made on the CPU. Kernels, precision and speed are left to `test_cuda.py`.
"""

from copy import deepcopy

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch.utils._pytree import tree_leaves
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from benchmarks.quality import ablations, capacity, language_model, mqar, passkey
from benchmarks.quality.training import Job
from benchmarks.speed import decoding, measures
from benchmarks.speed.bench import Bench
from benchmarks.speed.models import FULL, OURS, PEERS, equal_config
from common import PATTERNS, every_pattern, random_ids, randomize, tiny_config, tiny_model
from modeling_latent.attention_maps import MAPS
from modeling_latent.cache_name import CACHE_NAME, cache_of
from standin_device import NAME


CLOSE = {"atol": 1e-5, "rtol": 1e-5}  # the same operators in the same order, in float32


def move(value):
    return value.to(NAME) if isinstance(value, torch.Tensor) else value


def on_both(model, **inputs) -> list:
    """Outputs of a forward on the CPU, and of the same on the device, where they stay."""
    there = deepcopy(model).to(NAME)(**{name: move(value) for name, value in inputs.items()})
    return [model(**inputs), there]


def test_the_device_refuses_what_a_gpu_refuses():
    ours = torch.ones(3, device=NAME)
    assert ours.device.type == NAME and (ours + 1).sum().item() == 6
    with pytest.raises(RuntimeError, match="two devices"):
        ours + torch.ones(3)
    with pytest.raises(RuntimeError, match="two devices"):
        tiny_model().to(NAME)(random_ids(2, 9))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("sizes", [*PATTERNS.values(), {"is_causal": False}, {"conv_kernel_size": 0}], ids=str)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_training(attention, sizes, checkpointing):
    model, input_ids = tiny_model(**sizes).train(), random_ids(2, 11)
    model.set_attn_implementation(attention)
    if checkpointing:
        model.gradient_checkpointing_enable()
    there = deepcopy(model).to(NAME)
    model(input_ids, labels=input_ids).loss.backward()
    there(move(input_ids), labels=move(input_ids)).loss.backward()
    for ours, theirs in zip(there.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours.grad.cpu(), theirs.grad, **CLOSE)


INPUTS = {
    "left padding": {"attention_mask": torch.arange(11)[None] >= torch.tensor([[0], [5]])},
    "right padding": {"attention_mask": torch.arange(11)[None] < torch.tensor([[11], [6]])},
    "position_ids": {"position_ids": torch.cat([torch.arange(6), torch.arange(5)]).expand(2, -1)},
    "cu_seq_lens_q": {"cu_seq_lens_q": torch.tensor([0, 6, 11], dtype=torch.int32)},
    "seq_idx": {"seq_idx": torch.tensor([[0] * 6 + [1] * 5], dtype=torch.int32)},
}


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("inputs", INPUTS.values(), ids=INPUTS)
def test_padding_and_packing(is_causal, inputs):
    rows = 1 if {"cu_seq_lens_q", "seq_idx"} & set(inputs) else 2
    model = tiny_model(is_causal=is_causal, num_sink_tokens=2 if is_causal else 0)
    expected, ours = on_both(model, input_ids=random_ids(rows, 11), **inputs)
    torch.testing.assert_close(ours.logits.cpu(), expected.logits, **CLOSE)


GENERATION = {
    "greedy": {},
    "without a cache": {"use_cache": False},
    "sampling": {"do_sample": True, "top_k": 5},
    "beam search": {"num_beams": 3, "num_return_sequences": 2},
    "static cache": {"cache_implementation": "static"},
    "prefill in pieces": {"prefill_chunk_size": 3},
    "prompt lookup": {"prompt_lookup_num_tokens": 2},
}


def generate(model, settings: dict, device: str) -> torch.Tensor:
    """What follows a padded batch, where the method takes one."""
    rows = 1 if "prompt_lookup_num_tokens" in settings else 2
    mask = (torch.arange(7)[None] >= torch.tensor([[0], [3]]))[:rows].long()
    inputs = {"input_ids": random_ids(2, 7)[:rows] * mask, "attention_mask": mask}
    torch.manual_seed(0)
    given = {"do_sample": False, "max_new_tokens": 9, "pad_token_id": 0, **settings}
    return model.generate(**{name: value.to(device) for name, value in inputs.items()}, **given).cpu()


@every_pattern
@pytest.mark.parametrize("settings", GENERATION.values(), ids=GENERATION)
def test_generation(settings, pattern):
    model = tiny_model(**pattern)
    assert torch.equal(generate(deepcopy(model).to(NAME), settings, NAME), generate(model, settings, "cpu"))


def test_assisted_generation_and_a_continued_cache():
    model, prompt = tiny_model().to(NAME), move(random_ids(1, 6))
    settings = {"do_sample": False, "pad_token_id": 0, "return_dict_in_generate": True}
    first = model.generate(prompt, assistant_model=tiny_model(seed=3).to(NAME), max_new_tokens=9, **settings)
    then = model.generate(first.sequences, max_new_tokens=5, **{**settings, CACHE_NAME: cache_of(first)})
    expected = tiny_model().generate(prompt.cpu(), max_new_tokens=14, **settings)
    assert torch.equal(then.sequences.cpu(), expected.sequences)


HEADS = [
    (AutoModelForSequenceClassification, {"labels": torch.tensor([0, 1])}),
    (AutoModelForTokenClassification, {"labels": torch.arange(18).view(2, 9) % 2}),
    (
        AutoModelForQuestionAnswering,
        {"start_positions": torch.tensor([1, 2]), "end_positions": torch.tensor([3, 4])},
    ),
    (AutoModelForMaskedLM, {"labels": random_ids(2, 9)}),
]


@pytest.mark.parametrize(("head", "labels"), HEADS)
def test_heads(head, labels):
    model = randomize(head.from_config(tiny_config(is_causal=False, pad_token_id=0))).eval()
    mask = torch.arange(9)[None] < torch.tensor([[9], [5]])
    expected, ours = on_both(model, input_ids=random_ids(2, 9) * mask, attention_mask=mask, **labels)
    torch.testing.assert_close(ours.loss.cpu(), expected.loss, **CLOSE)


def test_attention_maps():
    model = tiny_model(layer_pattern=["both"], num_sink_tokens=2)
    model.set_attn_implementation("eager")
    expected, ours = on_both(model, input_ids=random_ids(2, 11), output_attentions=True, use_cache=False)
    assert set(MAPS) <= expected.keys()
    for there, here in zip(tree_leaves(dict(ours)), tree_leaves(dict(expected)), strict=True):
        torch.testing.assert_close(there.cpu(), here, **CLOSE)


# Layers on several devices


def spread(model):
    """A copy as `device_map` spreads it, by accelerate's hooks: all but the last layer on the device."""
    model = deepcopy(model)
    settings = {"skip_keys": model._skip_keys_device_placement}
    head = list(model.children())[-1]
    for module in (model.model.layers[-1], model.model.norm, head):
        add_hook_to_module(module, AlignDevicesHook("cpu", **settings))
    for module in (model.model.embed_tokens, *model.model.layers[:-1]):
        module.to(NAME)
    return add_hook_to_module(model, AlignDevicesHook(io_same_device=True, **settings))


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("inputs", [{}, *INPUTS.values()], ids=["plain", *INPUTS])
def test_spread_layers_with_padding_and_packing(is_causal, inputs):
    model = tiny_model(is_causal=is_causal, layer_pattern=["both"], num_sink_tokens=2 if is_causal else 0)
    model.set_attn_implementation("eager")
    rows = 1 if {"cu_seq_lens_q", "seq_idx"} & set(inputs) else 2
    inputs = {**inputs, "input_ids": random_ids(rows, 11), "labels": random_ids(rows, 11), "use_cache": False}
    inputs["num_items_in_batch"] = torch.tensor(20)  # as `Trainer` counts, on the device of the inputs
    settings = {"output_hidden_states": True, "output_attentions": True}
    there = spread(model)(**{name: move(value) for name, value in inputs.items()}, **settings)
    expected = model(**inputs, **settings)
    for ours, theirs in zip(tree_leaves(dict(there)), tree_leaves(dict(expected)), strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, **CLOSE)


@pytest.mark.parametrize("settings", GENERATION.values(), ids=GENERATION)
@every_pattern
def test_spread_layers_generate(settings, pattern):
    model = tiny_model(**pattern)
    assert torch.equal(generate(spread(model), settings, NAME), generate(model, settings, "cpu"))


@pytest.mark.parametrize(("head", "labels"), HEADS)
def test_spread_heads(head, labels):
    model = randomize(head.from_config(tiny_config(is_causal=False, pad_token_id=0))).eval()
    mask = torch.arange(9)[None] < torch.tensor([[9], [5]])
    inputs = {"input_ids": random_ids(2, 9) * mask, "attention_mask": mask, **labels}
    ours = spread(model)(**{name: move(value) for name, value in inputs.items()})
    torch.testing.assert_close(ours.loss.cpu(), model(**inputs).loss, **CLOSE)


# Benchmarks


@pytest.mark.parametrize("table", [mqar, passkey, language_model, capacity])
def test_benchmarks_of_quality(table, tmp_path):
    for point in table.points(table.FORMS["smoke"]):
        job = Job(NAME, float("inf"), tmp_path / "unit.pt")
        assert table.run_unit({**point, "seed": 0, "learning_rate": 1e-3}, job)["trained_steps"] > 0


@pytest.mark.parametrize("task", ablations.TASKS)
def test_benchmarks_of_every_variant(task, tmp_path):
    """One step of each."""
    one_step = {"mqar": {"examples": 16, "passes": 1, "test_examples": 4}, "language_model": {"steps": 1}}[task]
    smoke = ablations.FORMS["smoke"]
    form = {**smoke, task: {**smoke[task], **one_step}, "variants": list(ablations.VARIANTS)}
    for point in ablations.task_points(form, task):
        job = Job(NAME, float("inf"), tmp_path / "unit.pt")
        assert ablations.run_unit({**point, "seed": 0, "learning_rate": 1e-3}, job)["trained_steps"] == 1


def test_benchmarks_of_speed():
    ours = tiny_config(bos_token_id=None, eos_token_id=None)
    configs = {OURS: ours} | {name: equal_config(name, ours) for name in PEERS}
    bench = Bench(configs, NAME, seconds=0, limit=60, result={})
    measures.prefill(bench, (8, 16), few=(8,))
    measures.prefill_growth(bench, (8, 16))
    measures.training(bench, (8,), few=(8,))
    decoding.decode(bench, (8, 40), few=(8,))
    decoding.decode_growth(bench, (8, 40))
    decoding.decode_throughput(bench, 8, batches=(4, 2))
    measures.limits(bench, length=8, context=8, matmul_size=8, copied=64)
    measures.attention_kernels(bench, (8,), names=(OURS, FULL))
    for name in (OURS, FULL):
        assert measures.training_peak(configs[name], NAME, torch.float32, 8)["seconds"] > 0
    assert measures.read_and_decode(ours, NAME, torch.float32, tokens=30, piece=8, batch=2)["tokens"] == 30
    assert all(model in bench.result[measure] for measure in ("prefill", "training", "decode") for model in configs)
