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
"""A text that is read in several calls: a cache that comes back is continued, and prompts are read in pieces.

Whoever writes the loop of decoding may also crop the cache, expand it, and exchange its rows.
"""

import pytest
import torch
from torch.utils._pytree import tree_leaves
from transformers import DynamicCache, StaticCache

from common import CLOSE, double_model, every_pattern, random_ids, tiny_model
from generating import NEW, each_cache, generate, left_padded
from modeling_latent.cache_name import CACHE_NAME, cache_of


# A cache that `generate()` has returned


@every_pattern
@each_cache
@pytest.mark.parametrize("extra", [0, 1, 6])
@pytest.mark.parametrize("lengths", [[7, 7], [7, 4, 1]])
def test_a_returned_cache_is_continued_as_if_all_had_been_one_prompt(lengths, extra, cache_implementation, pattern):
    """`extra`: tokens after the last generated one, which no forward has seen yet; padded in front like a prompt."""
    model, (_, batch) = double_model(**pattern), left_padded(lengths)
    settings = {"cache_implementation": cache_implementation, "return_dict_in_generate": True}
    out = generate(model, **batch, **settings)
    mask = [batch["attention_mask"], torch.ones(len(lengths), NEW, dtype=torch.long)]
    sequences = [out.sequences]
    if extra:
        turn = left_padded([max(extra - 2 * i, 1) for i in range(len(lengths))], seed=7)[1]
        mask, sequences = mask + [turn["attention_mask"]], sequences + [turn["input_ids"]]
    mask, sequences = torch.cat(mask, dim=1), torch.cat(sequences, dim=1)
    continued = generate(model, sequences, attention_mask=mask, cache=cache_of(out))
    for row, real, generated in zip(sequences, mask, continued, strict=True):
        alone = row[real.bool()][None]
        expected = generate(model, alone, attention_mask=torch.ones_like(alone))
        assert torch.equal(generated[-NEW:], expected[0, -NEW:])


def test_only_the_new_tokens_may_be_passed_beside_the_whole_mask():
    model, (_, batch) = double_model(), left_padded([7, 3])
    out, more = generate(model, **batch, return_dict_in_generate=True), random_ids(2, 5, seed=7)
    mask = torch.nn.functional.pad(batch["attention_mask"], (0, NEW + 5), value=1)
    expected = generate(model, torch.cat([out.sequences, more], dim=1), attention_mask=mask)
    unseen = torch.cat([out.sequences[:, -1:], more], dim=1)
    continued = generate(model, unseen, attention_mask=mask, cache=cache_of(out))
    assert torch.equal(continued[:, -NEW:], expected[:, -NEW:])


def test_a_cache_is_continued_from_embeddings():
    model, prompt = double_model(), random_ids(2, 6)
    out = generate(model, prompt, return_dict_in_generate=True)
    embeds = model.get_input_embeddings()(torch.cat([out.sequences, random_ids(2, 5, seed=7)], dim=1)).detach()
    continued = generate(model, inputs_embeds=embeds, cache=cache_of(out))
    assert torch.equal(continued, generate(model, inputs_embeds=embeds))


def test_a_continued_cache_holds_what_one_go_leaves():
    model, (_, batch) = double_model(), left_padded([7, 3])
    whole = generate(model, **batch, return_dict_in_generate=True)
    part = generate(model, **batch, return_dict_in_generate=True, max_new_tokens=NEW - 5)
    mask = torch.nn.functional.pad(batch["attention_mask"], (0, NEW - 5), value=1)
    settings = {"attention_mask": mask, "max_new_tokens": 5, "return_dict_in_generate": True}
    rest = generate(model, part.sequences, cache=cache_of(part), **settings)
    assert torch.equal(rest.sequences, whole.sequences)
    assert cache_of(rest).get_seq_length() == cache_of(whole).get_seq_length() == 7 + NEW - 1
    for ours, theirs in zip(cache_of(rest).layers, cache_of(whole).layers, strict=True):
        torch.testing.assert_close(tree_leaves(ours.state), tree_leaves(theirs.state), **CLOSE)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("cache_class", [DynamicCache, StaticCache])
@pytest.mark.parametrize("first", [True, False])
def test_a_cache_that_autocast_filled_is_continued_without_and_the_other_way_round(first, cache_class, attention):
    """Steps within and into chunks, and several tokens at once; within the rounding of bfloat16."""
    model = tiny_model(attn_implementation=attention)
    input_ids = random_ids(2, 30)
    cache = cache_class(config=model.config, **({"max_cache_len": 30} if cache_class is StaticCache else {}))
    pieces = [10, *[1] * 7, 7, *[1] * 6]
    with torch.no_grad():
        for index, (piece, expected) in enumerate(
            zip(input_ids.split(pieces, 1), model(input_ids).logits.split(pieces, 1), strict=True)
        ):
            with torch.autocast("cpu", torch.bfloat16, enabled=first == (index == 0 or index > 8)):
                logits = model(piece, cache=cache).logits
            assert (logits - expected).norm() / expected.norm() < 0.05


def test_padding_that_the_cache_has_read_is_not_hidden_afterwards():
    model, prompt = double_model(), random_ids(2, 6)
    eos = int(generate(model, prompt)[1, 8])
    out = generate(model, prompt, eos_token_id=eos, return_dict_in_generate=True)
    new = out.sequences[:, 6:]
    real = (new == eos).cumsum(1) - (new == eos).long() == 0
    assert not real[1].all()
    mask = torch.cat([torch.ones(2, 6), real, torch.ones(2, 3)], dim=1).long()
    whole = torch.cat([out.sequences, random_ids(2, 3, seed=5)], dim=1)
    with pytest.raises(ValueError, match=f"`attention_mask` hides tokens that `{CACHE_NAME}` has read"):
        generate(model, whole, attention_mask=mask, cache=cache_of(out))
    generate(model, whole, attention_mask=torch.ones_like(mask), cache=cache_of(out))


def test_a_single_row_may_have_meant_the_padding_token_that_the_cache_has_read():
    """Without a mask the library guesses one from padding tokens."""
    model, prompt = double_model(), random_ids(1, 9)
    prompt[0, 4] = 0
    cache = DynamicCache(config=model.config)
    model(prompt, cache=cache)
    whole = torch.cat([prompt, random_ids(1, 3, seed=5)], dim=1)
    expected = generate(model, whole, attention_mask=torch.ones_like(whole))
    assert torch.equal(generate(model, whole, cache=cache), expected)


@pytest.mark.parametrize("settings", [{}, {"prompt_lookup_num_tokens": 2}], ids=str)
def test_a_cache_made_without_a_configuration_gets_layers(settings):
    model, prompt, cache = double_model(), random_ids(1, 6), DynamicCache()
    assert torch.equal(generate(model, prompt, cache=cache, **settings), generate(model, prompt))
    expected = cache_of(generate(model, prompt, return_dict_in_generate=True))
    for ours, theirs in zip(cache.layers, expected.layers, strict=True):
        torch.testing.assert_close(tree_leaves(ours.state), tree_leaves(theirs.state), **CLOSE)


# Prefill in pieces


@every_pattern
@each_cache
@pytest.mark.parametrize("prefill_chunk_size", [1, 3, 4, 5, 8, 20])
def test_prefill_in_pieces_generates_the_same(prefill_chunk_size, cache_implementation, pattern):
    model, (_, batch) = double_model(**pattern), left_padded([11, 8, 1])
    expected = generate(model, **batch)
    settings = {"prefill_chunk_size": prefill_chunk_size, "cache_implementation": cache_implementation}
    assert torch.equal(generate(model, **batch, **settings), expected)
    assert torch.equal(generate(model, batch["input_ids"][:1], **settings), expected[:1])


# Decoding loops of one's own


def prefilled(model, prompt, mask=None) -> tuple[DynamicCache, dict]:
    """As a decoding loop of one's own has them after the prefill, `generate()`'s count of tokens among them."""
    cache = DynamicCache(config=model.config)
    kwargs = {CACHE_NAME: cache, "attention_mask": torch.ones_like(prompt) if mask is None else mask}
    outputs = model(**model.prepare_inputs_for_generation(prompt, is_first_iteration=True, **kwargs))
    return cache, model._update_model_kwargs_for_generation(outputs, kwargs)


def test_a_decoding_loop_of_ones_own_gets_a_cache_that_fits():
    def likeliest(model, input_ids, **kwargs):
        for _ in range(NEW):
            unseen = input_ids[:, kwargs[CACHE_NAME].get_seq_length() :]
            logits = model(unseen, cache=kwargs[CACHE_NAME]).logits
            input_ids = torch.cat([input_ids, logits[:, -1:].argmax(-1)], dim=1)
        return input_ids

    model, prompt = double_model(), random_ids(2, 6)
    assert torch.equal(generate(model, prompt, custom_generate=likeliest), generate(model, prompt))


@pytest.mark.parametrize("change", ["expanded", "cropped"])
@torch.no_grad()
def test_a_loop_of_ones_own_may_expand_or_crop_the_cache(change):
    """The host's count of tokens is then no longer the cache's, and the step has to look which rows enter a chunk."""
    model, prompt = double_model(), random_ids(1, 8 if change == "expanded" else 9)
    cache, kwargs = prefilled(model, prompt)
    if change == "expanded":
        cache.batch_repeat_interleave(3)
        _, kwargs = model._expand_inputs_for_generation(expand_size=3, **kwargs)
        sequence = torch.cat([prompt.repeat(3, 1), random_ids(3, 1, seed=2)], dim=1)
    else:
        cache, kwargs = DynamicCache(config=model.config), {}
        cache.activate_past_recording()
        outputs = model(prompt, cache=cache)
        kwargs = model._update_model_kwargs_for_generation(outputs, {"attention_mask": torch.ones_like(prompt)})
        cache.crop(-1)
        sequence = torch.cat([prompt[:, :-1], random_ids(1, 1, seed=2)], dim=1)
    kwargs[CACHE_NAME] = cache
    inputs = model.prepare_inputs_for_generation(sequence[:, -1:], next_sequence_length=1, **kwargs)
    torch.testing.assert_close(model(**inputs).logits[:, -1], model(sequence).logits[:, -1], **CLOSE)


@torch.no_grad()
def test_the_host_counts_several_tokens_of_one_forward():
    model, more = double_model(), random_ids(2, 3, seed=2)
    cache, kwargs = prefilled(model, random_ids(2, 6))
    kwargs = model._update_model_kwargs_for_generation(model(more, cache=cache), kwargs, num_new_tokens=3)
    assert kwargs["token_counts"].per_row == [9, 9]
    assert kwargs["token_counts"].fits(cache, more)


@pytest.mark.parametrize("change", ["reorder_cache", "batch_select_indices"])
@torch.no_grad()
def test_a_loop_of_ones_own_may_exchange_rows_of_different_lengths(change):
    """The host's counts are then those of other rows."""
    model, (rows, batch) = double_model(), left_padded([8, 6])  # one enters a chunk now
    cache, kwargs = prefilled(model, batch["input_ids"], batch["attention_mask"])
    getattr(cache, change)(torch.tensor([1, 0]))
    token = random_ids(2, 1, seed=2)
    inputs = model.prepare_inputs_for_generation(token, next_sequence_length=1, **kwargs)
    logits = model(**inputs).logits[:, -1]
    for row, prompt in enumerate(rows[::-1]):
        whole = torch.cat([prompt, token[row : row + 1]], dim=1)
        torch.testing.assert_close(logits[row], model(whole).logits[0, -1], **CLOSE)


@torch.no_grad()
def test_a_loop_of_ones_own_may_pass_the_mask_of_a_new_turn_alone():
    model, (_, batch), (_, turn) = double_model(), left_padded([7, 3]), left_padded([5, 2], seed=7)
    whole = {name: torch.cat([batch[name], turn[name]], dim=1) for name in turn}
    for first in (True, False):
        cache, kwargs = prefilled(model, batch["input_ids"], batch["attention_mask"])
        inputs = model.prepare_inputs_for_generation(**{**kwargs, **turn}, is_first_iteration=first)
        torch.testing.assert_close(model(**inputs).logits[:, -1], model(**whole).logits[:, -1], **CLOSE)


# Crops


def test_a_crop_can_be_followed_by_one_that_goes_further_back():
    model, input_ids = double_model(), random_ids(1, 200)
    cache = DynamicCache(config=model.config)
    model(input_ids[:, :7], cache=cache)
    cache.activate_past_recording()
    start = 7
    for size, removed in ((9, 3), (2, 5), (1, 4), (150, 1)):
        model(input_ids[:, start : start + size], cache=cache)
        cache.crop(-removed)
        start += size - removed
        state = DynamicCache(config=model.config)
        model(input_ids[:, :start], cache=state)
        for mine, whole in zip(cache.layers, state.layers, strict=True):
            for ours, theirs in zip(tree_leaves(mine.state), tree_leaves(whole.state), strict=True):
                torch.testing.assert_close(ours, theirs, **CLOSE)
    assert len(cache.layers[0].history) == 1  # the last piece alone is longer than what can be undone once more
    with pytest.raises(RuntimeError, match="64 tokens before it can still be undone"):
        cache.crop(-start)


def test_64_tokens_before_a_crop_can_still_be_undone():
    model, cache = double_model(), DynamicCache(config=double_model().config)
    cache.activate_past_recording()
    for token in random_ids(1, 80).split(1, dim=1):
        model(token, cache=cache)
    cache.crop(-1)
    cache.crop(-64)
    assert cache.get_seq_length() == 80 - 1 - 64


def test_nothing_recorded_is_left_when_recording_stops():
    """As the library stops it: forwards after that are not recorded, so a crop must not undo those before."""
    model = double_model()
    cache = DynamicCache(config=model.config)
    cache.activate_past_recording()
    model(random_ids(2, 13), cache=cache)
    for layer in cache.layers:
        layer.record_past = False
    model(random_ids(2, 5, seed=7), cache=cache)
    assert all(layer.history == [] for layer in cache.layers)
    with pytest.raises(RuntimeError, match="activate_past_recording"):
        cache.crop(-2)
    assert cache.get_seq_length() == 18


def test_a_cache_that_was_cropped_to_nothing_takes_another_batch_size():
    model = double_model()
    cache = DynamicCache(config=model.config)
    cache.activate_past_recording()
    for batch in (2, 3):
        model(random_ids(batch, 6), cache=cache)
        assert {layer.batch_size for layer in cache.layers} == {batch}
        cache.crop(-6)
