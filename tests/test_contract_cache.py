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
"""Properties 6 to 8 of docs/architecture.md: a cache goes back, its rows can be moved, and its size stays the same."""

import copy
import io

import pytest
import torch
from transformers import DynamicCache, StaticCache

from common import CLOSE, double_model, random_ids, tiny_model
from contract_cases import STATES, assert_same_state, every_model, storage_bytes, tensors


CACHES = [DynamicCache, lambda config: StaticCache(config, max_cache_len=64)]


# 6. Rollback


# Back from the last of five chunks into every one before it: into the first with 15 and 16 of 19 tokens.
@pytest.mark.quick
@pytest.mark.parametrize("removed", [0, 1, 2, 3, 5, 8, 12, 15, 16])
@pytest.mark.parametrize("pieces", [[16], [1] * 16, [5, 1, 1, 9]])
@every_model
def test_6_crop_gives_the_state_of_never_having_seen_the_tokens(removed, pieces, overrides):
    model = double_model(**overrides)
    input_ids, mask = random_ids(2, 19), torch.ones(2, 19, dtype=torch.long)
    mask[1, :2] = 0
    cache, never = DynamicCache(config=model.config), DynamicCache(config=model.config)
    model(input_ids[:, :3], attention_mask=mask[:, :3], cache=cache)
    model(input_ids[:, :3], attention_mask=mask[:, :3], cache=never)
    cache.activate_past_recording()
    start = 3
    for size in pieces:
        model(input_ids[:, start : start + size], cache=cache)
        start += size
    cache.crop(-removed)
    for position in range(3, 19 - removed):
        model(input_ids[:, position : position + 1], cache=never)
    assert cache.get_seq_length() == never.get_seq_length() == 19 - removed
    assert_same_state(cache, never)


def test_6_crop_takes_the_sinks_out_of_the_state_where_the_window_still_holds_them():
    model = double_model(num_sink_tokens=2)
    cache = DynamicCache(config=model.config)
    cache.activate_past_recording()
    model(random_ids(1, 14), cache=cache)
    for removed, has_sinks in ((0, True), (5, True), (1, False), (5, False)):  # 14, 9, 8 and 3 tokens are left
        cache.crop(-removed)
        for layer in cache.layers:
            assert layer.state.window.slots(0, 2).keys.any() == has_sinks
            assert layer.state.window.slots(0, 2).values.any() == has_sinks


def test_6_crop_undoes_padding_that_came_with_the_tokens():
    model = double_model()
    input_ids, mask = random_ids(2, 16), torch.ones(2, 16, dtype=torch.long)
    mask[0, 9:11] = mask[1, 5] = 0
    cache = DynamicCache(config=model.config)
    cache.activate_past_recording()
    model(input_ids[:, :12], attention_mask=mask[:, :12], cache=cache)
    cache.crop(-2)
    logits = model(input_ids[:, 10:], attention_mask=mask, cache=cache).logits
    for row in range(2):
        real = mask[row].bool()
        alone = model(input_ids[row, real][None]).logits[0, -mask[row, 10:].sum() :]
        torch.testing.assert_close(logits[row][mask[row, 10:].bool()], alone, **CLOSE)


def test_6_crop_says_what_it_cannot_do():
    model = tiny_model()
    cache = DynamicCache(config=model.config)
    model(random_ids(1, 6), cache=cache)
    with pytest.raises(RuntimeError, match="activate_past_recording"):
        cache.crop(-1)
    with pytest.raises(ValueError, match="negative"):
        cache.crop(3)
    with pytest.raises(ValueError, match="use a `DynamicCache`"):
        StaticCache(model.config, max_cache_len=64).crop(-1)


@every_model
@pytest.mark.parametrize("helper", ["same model", "random model", "prompt lookup"])
def test_6_assisted_generation_equals_greedy(helper, overrides):
    model = double_model(**overrides)
    settings = {
        "same model": {"assistant_model": model},
        "random model": {"assistant_model": tiny_model(seed=9, dtype=torch.float64, num_hidden_layers=1)},
        "prompt lookup": {"prompt_lookup_num_tokens": 3},
    }[helper]
    prompt = random_ids(1, 5).repeat(1, 3)
    common = {"max_new_tokens": 30, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(prompt, **common, **settings), model.generate(prompt, **common))


# 7. Beam search and the batch operations


@every_model
def test_7_beam_search_with_cache_equals_without(overrides):
    model = double_model(**overrides)
    prompt, mask = random_ids(2, 7), torch.ones(2, 7, dtype=torch.long)
    mask[0, :2] = 0
    common = {"attention_mask": mask, "num_beams": 3, "max_new_tokens": 14, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(prompt, **common), model.generate(prompt, **common, use_cache=False))


every_batch_operation = pytest.mark.parametrize(
    ("change", "rows"),
    [
        (lambda cache: cache.reorder_cache(torch.tensor([2, 0, 0])), [2, 0, 0]),
        (lambda cache: cache.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2]),
        (lambda cache: cache.batch_select_indices(torch.tensor([2, 1])), [2, 1]),
    ],
)


@pytest.mark.quick
@every_model
@every_batch_operation
def test_7_batch_operations_move_whole_rows(change, rows, overrides):
    model = double_model(**overrides)
    input_ids, mask = random_ids(3, 18), torch.ones(3, 18, dtype=torch.long)
    mask[0, :2] = mask[1, :5] = 0
    cache = DynamicCache(config=model.config)
    model(input_ids[:, :10], attention_mask=mask[:, :10], cache=cache)
    change(cache)
    assert cache.batch_size == len(rows)
    rest = torch.cat([model(ids, cache=cache).logits for ids in input_ids[rows, 10:].split(1, 1)], dim=1)
    torch.testing.assert_close(rest, model(input_ids[rows], attention_mask=mask[rows]).logits[:, 10:], **CLOSE)


@every_batch_operation
def test_7_crop_does_not_go_back_behind_a_batch_operation(change, rows):
    """What was recorded before it is of the rows as they were."""
    model = double_model()
    cache = DynamicCache(config=model.config)
    cache.activate_past_recording()
    model(random_ids(3, 10), cache=cache)
    change(cache)
    with pytest.raises(RuntimeError, match="goes back further than what was recorded"):
        cache.crop(-1)
    assert cache.batch_size == len(rows) and cache.get_seq_length() == 10


def test_7_crop_does_not_go_back_behind_a_reset():
    model = double_model()
    cache = DynamicCache(config=model.config)
    cache.activate_past_recording()
    model(random_ids(2, 10), cache=cache)
    cache.reset()
    with pytest.raises(RuntimeError, match="goes back further than what was recorded"):
        cache.crop(-1)


@pytest.mark.parametrize("make", CACHES)
def test_7_reset_leaves_a_cache_as_good_as_new(make):
    model = double_model()
    cache, input_ids = make(config=model.config), random_ids(2, 15)
    for _ in range(2):
        logits = [model(ids, cache=cache).logits for ids in input_ids.split([9, 1, 1, 1, 3], 1)]
        torch.testing.assert_close(torch.cat(logits, 1), model(input_ids).logits, **CLOSE)
        cache.reset()
        assert cache.get_seq_length() == 0


# 8. Constant state


def saved_bytes(cache: DynamicCache) -> int:
    buffer = io.BytesIO()
    torch.save(cache, buffer)
    return buffer.tell()


def assert_storage_is_owned(cache) -> None:
    """A view would keep the whole of what it is a view of, in memory and on disk."""
    leaves = [leaf for layer in cache.layers for leaf in tensors(layer.state)]
    assert [leaf.shape for leaf in leaves if leaf.untyped_storage().nbytes() != leaf.nbytes] == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("overrides", STATES.values(), ids=STATES)
@torch.no_grad()
def test_8_the_cache_has_the_bytes_of_the_formula_after_64_and_after_65536_tokens(overrides, dtype):
    model = tiny_model(dtype=dtype, **{"chunk_size": 32, **overrides})
    expected, sizes = model.config.state_bytes(batch_size=2, dtype=dtype), []
    for length in (64, 65_536):
        cache = DynamicCache(config=model.config)
        for piece in random_ids(2, length).split([length - 20, 19, 1], dim=1):  # a prompt, more of it and a step
            model(piece, cache=cache, logits_to_keep=1)
            assert storage_bytes(cache) == expected
            sizes += [saved_bytes(cache), saved_bytes(copy.deepcopy(cache))]
        assert cache.get_seq_length() == length
    assert max(sizes) - min(sizes) < 300  # numbers that say how many tokens there were


@pytest.mark.quick
@every_model
@torch.no_grad()
def test_8_every_tensor_of_a_state_owns_its_storage(overrides):
    model, mask = double_model(**overrides), torch.ones(3, 7, dtype=torch.long)
    mask[0, :2] = 0
    for inputs in ({}, {"attention_mask": mask}, {"position_ids": torch.tensor([[0, 1, 0, 1, 2, 3, 4]] * 3)}):
        cache = DynamicCache(config=model.config)
        cache.activate_past_recording()
        model(random_ids(3, 7), cache=cache, **inputs)
        assert_storage_is_owned(cache)
        for piece in random_ids(3, 14).split([1, 1, 1, 1, 1, 9], dim=1):  # steps within and into chunks
            model(piece, cache=cache)
            assert_storage_is_owned(cache)
        for removed in (3, 7, 6):  # to within the last piece, to a step and to within the first piece
            cache.crop(-removed)
            assert_storage_is_owned(cache)
        cache.reorder_cache(torch.tensor([2, 0, 0]))
        assert_storage_is_owned(cache)
        cache.batch_repeat_interleave(2)
        assert_storage_is_owned(cache)
        cache.batch_select_indices(torch.tensor([5, 1]))
        assert_storage_is_owned(cache)


@every_model
@torch.no_grad()
def test_8_every_tensor_of_a_static_state_owns_its_storage(overrides):
    model = double_model(**overrides)
    cache = StaticCache(config=model.config, max_cache_len=64)
    for piece in random_ids(3, 16).split([7, 1, 1, 1, 1, 5], dim=1):
        model(piece, cache=cache)
        assert_storage_is_owned(cache)
    cache.reorder_cache(torch.tensor([2, 0, 0]))
    assert_storage_is_owned(cache)


@pytest.mark.parametrize("make", CACHES)
@torch.no_grad()
def test_8_every_layer_counts_the_tokens_that_it_has_seen(make):
    model = double_model()
    cache = make(config=model.config)
    for piece in random_ids(2, 9).split([5, 1, 1, 2], dim=1):
        model(piece, cache=cache)
    assert [layer.state.tokens_seen.tolist() for layer in cache.layers] == [[9, 9], [9, 9]]
    model(random_ids(2, 1), cache=cache)
    assert [layer.state.tokens_seen.tolist() for layer in cache.layers] == [[10, 10], [10, 10]]
