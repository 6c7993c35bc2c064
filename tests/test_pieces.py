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
"""Long rows without gradients go through in pieces, and nothing differs but the memory."""

import pytest
import torch
from transformers import DynamicCache

from common import CLOSE, double_model, every_pattern, random_ids
from contract_cases import assert_same_state
from modeling_latent import LatentAttentionModel, pieces


pytestmark = pytest.mark.quick

PIECE = 10  # tokens: with chunks of 4, two chunks of a single row make a piece, or one chunk of each of two rows
MASKS = {
    "none": torch.ones(2, 27, dtype=torch.long),
    "left": (torch.arange(27) >= torch.tensor([[0], [13]])).long(),
    "right": (torch.arange(27) < torch.tensor([[27], [13]])).long(),  # the second row ends two pieces before the first
    "holes": (torch.arange(27) % torch.tensor([[5], [28]]) != 3).long(),
}


def forward(model, input_ids, cache=None, **arguments):
    cache = DynamicCache(config=model.config) if cache is None else cache
    with torch.no_grad():
        return model.model(input_ids, cache=cache, **arguments).last_hidden_state, cache


@pytest.fixture
def run_lengths(monkeypatch) -> list[int]:
    """How many tokens of a row the layers were given, each time that they ran."""
    lengths, run_layers = [], LatentAttentionModel.run_layers

    def noted(self, layout, inputs_embeds, *arguments, **kwargs):
        lengths.append(inputs_embeds.shape[1])
        return run_layers(self, layout, inputs_embeds, *arguments, **kwargs)

    monkeypatch.setattr(LatentAttentionModel, "run_layers", noted)
    return lengths


@every_pattern
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_pieces_give_the_hidden_states_and_the_state_of_whole_rows(monkeypatch, run_lengths, pattern, mask):
    model, input_ids = double_model(**pattern), random_ids(2, 27)
    expected, expected_cache = forward(model, input_ids, attention_mask=mask)
    monkeypatch.setattr(pieces, "PIECE", PIECE)
    hidden_states, cache = forward(model, input_ids, attention_mask=mask)
    assert run_lengths == [27, *[4] * 6, 3]
    torch.testing.assert_close(hidden_states, expected, **CLOSE)
    assert_same_state(cache, expected_cache)


def test_pieces_continue_from_a_cache_in_the_middle_of_a_chunk_and_can_be_undone(monkeypatch, run_lengths):
    model, input_ids = double_model(), random_ids(1, 30)
    _, before = forward(model, input_ids[:, :3])
    expected, after = forward(model, input_ids[:, 3:], cache=forward(model, input_ids[:, :3])[1])
    monkeypatch.setattr(pieces, "PIECE", PIECE)
    before.activate_past_recording()
    hidden_states, cache = forward(model, input_ids[:, 3:], cache=before)
    assert run_lengths[-4:] == [8, 8, 8, 3]
    torch.testing.assert_close(hidden_states, expected, **CLOSE)
    assert_same_state(cache, after)
    cache.crop(-20)  # to the middle of the first piece
    assert_same_state(cache, forward(model, input_ids[:, :10])[1])


def test_whole_rows_where_gradients_or_layers_are_wanted(monkeypatch, run_lengths):
    monkeypatch.setattr(pieces, "PIECE", PIECE)
    model, input_ids = double_model(), random_ids(1, 30)
    model(input_ids, labels=input_ids).loss.backward()
    with torch.no_grad():
        assert len(model(input_ids, output_hidden_states=True).hidden_states) == 3
        model(input_ids, position_ids=torch.arange(30)[None] % 15)  # packed
    assert run_lengths == [30, 30, 30]


def test_generate_reads_a_long_prompt_in_pieces(monkeypatch, run_lengths):
    model, input_ids = double_model(), random_ids(2, 30)
    settings = {"attention_mask": torch.tensor([[0] * 12 + [1] * 18, [1] * 30]), "max_new_tokens": 6}
    settings |= {"do_sample": False, "pad_token_id": 0}
    expected = model.generate(input_ids, **settings)
    monkeypatch.setattr(pieces, "PIECE", PIECE)
    run_lengths.clear()
    assert torch.equal(model.generate(input_ids, **settings), expected)
    assert run_lengths == [*[4] * 7, 2, *[1] * 5]
