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
"""Inputs that the model and `generate()` refuse, in words instead of other text."""

import re

import pytest
import torch

from common import double_model, random_ids, tiny_config
from generating import eager_model, generate
from modeling_latent import LatentAttention
from modeling_latent.cache_name import cache_of


# What does not generate


@pytest.mark.parametrize("settings", [{}, {"use_cache": False}, {"num_beams": 2}, {"prompt_lookup_num_tokens": 2}])
def test_a_bidirectional_model_does_not_generate(settings):
    with pytest.raises(ValueError, match="is_causal=True"):
        generate(double_model(is_causal=False), random_ids(1, 6), **settings)


def test_continuous_batching_is_refused():
    model = eager_model()
    with pytest.raises(ValueError, match="Continuous batching"):
        model.generate_batch([[2, 3, 4]])
    generate(model, random_ids(1, 6))


# Tokens


@pytest.mark.parametrize("names", [[], ["input_ids", "inputs_embeds"]], ids=str)
def test_it_takes_either_ids_or_embeddings(names):
    model, input_ids = double_model(), random_ids(1, 6)
    inputs = {"input_ids": input_ids, "inputs_embeds": model.get_input_embeddings()(input_ids)}
    with pytest.raises(ValueError, match="Pass exactly one of `input_ids` and `inputs_embeds`"):
        model(**{name: inputs[name] for name in names})


@pytest.mark.parametrize("shape", [(0, 6), (2, 0)])
def test_an_input_without_any_token_is_refused(shape):
    with pytest.raises(ValueError, match=rf"of shape \({shape[0]}, {shape[1]}\), without any token"):
        double_model()(random_ids(*shape))


def test_a_single_sequence_has_to_be_a_batch_of_one():
    with pytest.raises(
        ValueError, match=r"of shape \(6,\), or as embeddings \(6, 16\), but must be \(batch, tokens\)"
    ):
        double_model()(random_ids(6))
    with pytest.raises(ValueError, match="put a single sequence into a batch of one"):
        LatentAttention(tiny_config())(torch.randn(6, 16))


# Masks


def test_a_mask_of_four_dimensions_is_refused():
    model, mask = double_model(), torch.ones(1, 1, 6, 6)
    with pytest.raises(ValueError, match="must be 2D"):
        generate(model, random_ids(1, 6), attention_mask=mask)
    with pytest.raises(ValueError, match="must be 2-D"):
        model(random_ids(1, 6), attention_mask=mask)


@pytest.mark.parametrize(("past", "width"), [(0, 5), (0, 7), (4, 5)])
def test_a_mask_that_does_not_fit_the_tokens_is_refused(past, width):
    """Beside a cache it may be longer, and cover the past."""
    model = double_model()
    cache = cache_of(model(random_ids(1, past), use_cache=True)) if past else None
    with pytest.raises(ValueError, match=rf"`attention_mask` is of shape \(1, {width}\) but must be 2-D, \(1, 6\)"):
        model(random_ids(1, 6), torch.ones(1, width), cache=cache)


def test_right_padding_is_not_prefilled_in_pieces():
    model, prompt = double_model(), random_ids(1, 9)
    mask = torch.tensor([[1] * 6 + [0] * 3])
    with pytest.raises(ValueError, match="Pad on the left"):
        generate(model, prompt, attention_mask=mask, prefill_chunk_size=3)


# Packing


@pytest.mark.parametrize("name", ["position_ids", "seq_idx"])
@pytest.mark.parametrize("shape", [(6,), (1, 5), (2, 7), (3, 2, 6)], ids=str)
def test_packing_of_another_shape_is_refused(name, shape):
    message = re.escape(f"`{name}` is of shape {shape} but must be a tensor of shape (2, 6)")
    with pytest.raises(ValueError, match=message):
        double_model()(random_ids(2, 6), **{name: torch.zeros(shape, dtype=torch.long)})


@pytest.mark.parametrize(
    ("places", "found"),
    [
        ([0, 6], "of type list"),
        (torch.tensor([[0, 6]]), r"torch.int64 of shape \(1, 2\)"),
        (torch.tensor([0, 2.5, 6]), r"torch.float32 of shape \(3,\)"),
    ],
)
def test_sequences_are_told_by_a_vector(places, found):
    with pytest.raises(ValueError, match=f"`cu_seq_lens_q` is {found} but must be integers of shape"):
        double_model()(random_ids(1, 6), cu_seq_lens_q=places)


@pytest.mark.parametrize("start", [0, 1])
def test_packed_prompts_are_not_prefilled_in_pieces(start):
    model, prompt = double_model(), random_ids(1, 15)
    position_ids = torch.cat([torch.arange(6), torch.arange(9)])[None] + start
    with pytest.raises(ValueError, match="`position_ids` start anew"):
        generate(model, prompt, position_ids=position_ids, prefill_chunk_size=4)
