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
"""Influence through the latents against plain loops, on random maps and on those of a model."""

import pytest
import torch

from common import random_ids, randomize, tiny_config, tiny_model
from influence import influence_through_latents, mass_by_distance, spread_window
from modeling_latent import LatentAttentionModel


H, M, C = 3, 5, 4
LENGTHS = [3, 4, 5, 16, 18]


def random_weights(*shape: int, visible: torch.Tensor | None = None) -> torch.Tensor:
    """Rows that sum to one over what is visible, to zero where nothing is."""
    weights = torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.1
    weights = weights if visible is None else weights * visible
    return weights / weights.sum(-1, keepdim=True).clamp(min=1e-9)


def causal_maps(length: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    chunks = -(-length // C)
    read = torch.arange(length) < torch.arange(chunks)[:, None] * C  # (N, T)
    compression = random_weights(chunks, H, M, length, visible=read[:, None, None])
    return random_weights(H, length, M), random_weights(chunks, H, M, M), compression


def influence_in_loops(retrieval, refinement, compression, bidirectional: bool) -> torch.Tensor:
    length = retrieval.shape[1]
    influence = torch.zeros(length, length, dtype=torch.float64)
    for reader in range(length):
        chunk = 0 if bidirectional else reader // C
        for token in range(length):
            for asked in range(M):
                for answering in range(M):
                    step = (refinement[chunk, :, asked, answering].mean() + (asked == answering)) / 2
                    known = compression[chunk, :, answering, token].mean()
                    influence[reader, token] += retrieval[:, reader, asked].mean() * step * known
    return influence


@pytest.mark.parametrize("length", LENGTHS)
def test_causal_influence_equals_loops_and_rows_sum_to_one(length):
    maps = causal_maps(length)
    influence = influence_through_latents(*maps, C)
    torch.testing.assert_close(influence, influence_in_loops(*maps, bidirectional=False), atol=1e-12, rtol=0)
    expected = (torch.arange(length) >= C).double()
    torch.testing.assert_close(influence.sum(1), expected, atol=1e-12, rtol=0)
    assert not influence.triu().any()


@pytest.mark.parametrize("length", LENGTHS)
def test_bidirectional_influence_equals_loops(length):
    maps = random_weights(H, length, M), random_weights(1, H, M, M), random_weights(1, H, M, length)
    influence = influence_through_latents(*maps, C)
    torch.testing.assert_close(influence, influence_in_loops(*maps, bidirectional=True), atol=1e-12, rtol=0)
    torch.testing.assert_close(influence.sum(1), torch.ones(length).double(), atol=1e-12, rtol=0)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(("sinks", "window"), [(0, 2 * C), (3, 2 * C), (C, 2 * C), (0, 3 * C)])
def test_windows_are_spread_to_the_tokens_that_their_slots_hold(length, sinks, window):
    local = random_weights(H, length, sinks + window)
    local[:, : 2 * C, :sinks] = 0  # in the first two chunks sinks are masked
    expected = torch.zeros(length, length, dtype=torch.float64)
    for token in range(length):
        for slot in range(sinks + window):
            other = slot if slot < sinks else (token // C - 1) * C + slot - sinks
            if 0 <= other < length:
                expected[token, other] += local[:, token, slot].mean()
    torch.testing.assert_close(spread_window(local, C, sinks), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("first", [0, 7])
def test_mass_by_distance_is_the_mean_over_tokens(first):
    length = 18
    weights = random_weights(length, length)
    expected = torch.zeros(length, dtype=torch.float64)
    for reader in range(first, length):
        for token in range(length):
            expected[abs(reader - token)] += weights[reader, token] / (length - first)
    mass = mass_by_distance(weights, first)
    torch.testing.assert_close(mass, expected, atol=1e-12, rtol=0)
    assert mass.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("length", LENGTHS)
def test_a_models_maps_give_rows_that_sum_to_one_and_no_future(length):
    settings = {"layer_pattern": ["both"], "num_sink_tokens": 3, "attn_implementation": "eager"}
    model = tiny_model(dtype=torch.float64, chunk_size=C, **settings)
    with torch.no_grad():
        outputs = model(random_ids(1, length), output_attentions=True)
    for layer in range(model.config.num_hidden_layers):
        maps = (outputs.attentions, outputs.refinement_attentions, outputs.compression_attentions)
        influence = influence_through_latents(*(kind[layer][0] for kind in maps), C)
        local = spread_window(outputs.local_attentions[layer][0], C, num_sinks=3)
        has_read = (torch.arange(length) >= C).double()
        torch.testing.assert_close(influence.sum(1), has_read, atol=1e-9, rtol=0)
        torch.testing.assert_close(local.sum(1), torch.ones(length).double(), atol=1e-9, rtol=0)
        assert not influence.triu().any()
        assert not local.triu(1).any()


def test_a_bidirectional_models_maps_give_rows_that_sum_to_one():
    config = tiny_config(chunk_size=C, is_causal=False, attn_implementation="eager")
    model = randomize(LatentAttentionModel(config)).double().eval()
    with torch.no_grad():
        outputs = model(random_ids(1, 18), output_attentions=True)
    maps = (outputs.attentions, outputs.refinement_attentions, outputs.compression_attentions)
    influence = influence_through_latents(*(kind[0][0] for kind in maps), C)
    for weights in (influence, spread_window(outputs.local_attentions[0][0], C, num_sinks=0)):
        torch.testing.assert_close(weights.sum(1), torch.ones(18).double(), atol=1e-9, rtol=0)
