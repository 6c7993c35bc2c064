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
"""What a step of decoding computes, and whether it waits for the device: counted, not timed."""

import copy
import functools

import pytest
import torch
from torch.utils._pytree import tree_map

from common import double_model, random_ids
from generating import NEW, each_cache, generate, left_padded
from modeling_latent.cache_name import CACHE_NAME


CHUNK = 4


def record_calls(module: torch.nn.Module, calls: list) -> None:
    """The leading dimension, rows, of what the module is called with."""
    module.register_forward_pre_hook(lambda module, args: calls.append(args[0].shape[0]))


@each_cache
def test_the_latents_side_runs_once_per_chunk(cache_implementation):
    model = double_model(layer_pattern=["both", "latent"])
    names = ("latent_self", "input_to_latent.q_proj", "latent_to_input.k_proj")
    calls = [{name: [] for name in names} for _ in model.model.layers]
    for layer, of_layer in zip(model.model.layers, calls, strict=True):
        for name in names:
            record_calls(layer.latent_attention.get_submodule(name), of_layer[name])
    generate(model, random_ids(1, 6), max_new_tokens=3 * CHUNK, cache_implementation=cache_implementation)
    # Once in the prefill; then tokens 9, 13 and 17 enter a chunk. The last that is generated is not read.
    for of_layer in calls:
        assert {name: len(rows) for name, rows in of_layer.items()} == dict.fromkeys(names, 1 + 3)


@each_cache
def test_only_the_rows_that_enter_a_chunk_are_computed(cache_implementation):
    model, rows = double_model(), []
    record_calls(model.model.layers[0].latent_attention.latent_to_input.k_proj, rows)
    batch = left_padded([8, 6, 4, 2])[1]
    generate(model, **batch, max_new_tokens=CHUNK + 1, cache_implementation=cache_implementation)
    # Of four steps the first takes rows 0 and 2 into a new chunk, the third rows 1 and 3.
    assert rows == [4, 2, 2]


def test_beams_of_equal_lengths_enter_a_chunk_without_asking_the_device(monkeypatch):
    model, known = double_model(), []
    prepare = model.prepare_inputs_for_generation

    @functools.wraps(prepare)
    def recording(*args, **kwargs):
        inputs = prepare(*args, **kwargs)
        known.append("new_chunk_rows" in inputs)
        return inputs

    monkeypatch.setattr(model, "prepare_inputs_for_generation", recording)
    generate(model, random_ids(2, 6), num_beams=3)
    assert known == [False] + [True] * (NEW - 1)


def test_a_decoding_step_never_waits_for_the_device(monkeypatch):
    """On the meta device there are no values: to look at one, which elsewhere is to wait for it, is an error."""
    model, steps = double_model(), []
    prepare = model.prepare_inputs_for_generation

    @functools.wraps(prepare)
    def recording(*args, **kwargs):
        steps.append(copy.deepcopy((args, kwargs)))
        return prepare(*args, **kwargs)

    monkeypatch.setattr(model, "prepare_inputs_for_generation", recording)
    generate(model, **left_padded([8, 6, 4])[1], max_new_tokens=2 * CHUNK)

    def without_values(value):
        return value.to("meta") if isinstance(value, torch.Tensor) else value

    model, entering = double_model().to("meta"), []
    for args, kwargs in steps[1:]:  # the prefill may look
        cache = kwargs.pop(CACHE_NAME)  # how long it is, the host knows
        for layer in cache.layers:
            layer.state = tree_map(without_values, layer.state)
        args, kwargs = tree_map(without_values, (args, kwargs))
        kwargs[CACHE_NAME] = cache
        inputs = model.prepare_inputs_for_generation(*args, **kwargs)
        entering.append(inputs["new_chunk_rows"].shape[0])
        assert model(**inputs).logits.shape == (3, 1, 31)
    assert entering == [2, 0, 1, 0, 2, 0, 1]

    with pytest.raises((RuntimeError, NotImplementedError)):  # a mask passed by hand is looked at
        model(**{**inputs, "attention_mask": torch.ones(3, 1, device="meta")})
