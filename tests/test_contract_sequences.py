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
"""Properties 3 to 5 of docs/architecture.md: a text in pieces, padded or packed gives what it does whole and alone."""

import pytest
import torch
from transformers import DynamicCache

from common import CLOSE, double_model, in_direction, random_ids, tiny_config, tiny_model
from contract_cases import assert_same_state, every_model, step_by_step
from modeling_latent.cache_name import cache_of
from modeling_latent.chunk_layout import bidirectional_layout, grid_layout
from modeling_latent.local_attention import local_attention_mask
from modeling_latent.prefix_statistics import BLOCK


# 3. Continuation


@pytest.mark.quick
@pytest.mark.parametrize(
    "pieces", [[1] * 21, [9] + [1] * 12, [4, 4, 4, 4, 5], [1, 2, 3, 5, 10], [8, 13], [13, 8], [20, 1]]
)
@every_model
def test_3_one_forward_equals_pieces_of_any_sizes(pieces, overrides):
    model = double_model(**overrides)
    input_ids = random_ids(2, 21)
    torch.testing.assert_close(step_by_step(model, input_ids, pieces), model(input_ids).logits, **CLOSE)


@every_model
@pytest.mark.parametrize("rest", [[1] * 10, [3, 7], [10]])
def test_3_rows_whose_prompts_differ_in_length_continue_as_if_alone(rest, overrides):
    model = double_model(**overrides)
    input_ids, lengths = random_ids(5, 23), [13, 12, 9, 8, 0]  # of a prompt padded to 13; one row has none
    mask = torch.ones(5, 23, dtype=torch.long)
    for row, length in enumerate(lengths):
        mask[row, : 13 - length] = 0
    logits = step_by_step(model, input_ids, [13, *rest], attention_mask=mask)
    for row, length in enumerate(lengths):
        alone = model(input_ids[row : row + 1, 13 - length :]).logits
        torch.testing.assert_close(logits[row : row + 1, 13 - length :], alone, **CLOSE)


@every_model
def test_3_padding_may_come_with_any_piece(overrides):
    model = double_model(**overrides)
    input_ids = random_ids(3, 20)
    mask = torch.rand(3, 20, generator=torch.Generator().manual_seed(5)) > 0.4
    logits = step_by_step(model, input_ids, [6, 1, 1, 5, 1, 1, 1, 4], attention_mask=mask.long())
    for row in range(3):
        alone = model(input_ids[row][mask[row]][None]).logits[0]
        torch.testing.assert_close(logits[row][mask[row]], alone, **CLOSE)


# 4. Padding


@pytest.mark.quick
@every_model
@pytest.mark.parametrize("is_causal", [True, False])
def test_4_padding_anywhere_leaves_a_row_as_it_is_alone(is_causal, overrides):
    model = double_model(**in_direction(is_causal, overrides))
    input_ids = random_ids(5, 14)
    mask = torch.ones(5, 14, dtype=torch.long)
    mask[0, :5] = 0  # left
    mask[1, 9:] = 0  # right
    mask[2, 3:5] = mask[2, 8] = 0  # holes
    mask[3] = 0  # nothing at all
    logits = model(input_ids, attention_mask=mask).logits
    assert torch.isfinite(logits).all()
    for row in (0, 1, 2, 4):
        real = mask[row].bool()
        torch.testing.assert_close(logits[row, real], model(input_ids[row, real][None]).logits[0], **CLOSE)
    other_padding = torch.where(mask.bool(), input_ids, (input_ids + 11) % 31)
    real = mask.bool()
    assert torch.equal(model(other_padding, attention_mask=mask).logits[real], logits[real])


@pytest.mark.parametrize("is_causal", [True, False])
def test_4_padding_may_hold_embeddings_that_are_no_numbers(is_causal):
    model, mask = double_model(is_causal=is_causal), torch.ones(2, 14, dtype=torch.long)
    mask[0, :5] = mask[1, 9:] = 0
    embeds, real = model.get_input_embeddings()(random_ids(2, 14)).detach(), mask.bool()
    garbage = embeds.masked_fill(~real[..., None], torch.nan)
    logits = [model(inputs_embeds=inputs, attention_mask=mask).logits[real] for inputs in (embeds, garbage)]
    assert torch.equal(*logits)


@pytest.mark.parametrize("is_causal", [True, False])
def test_4_every_slot_has_something_to_look_at(is_causal):
    """Where a row of the mask allows nothing, some kernels give NaN."""
    config = tiny_config(**in_direction(is_causal, {"num_sink_tokens": 2}))
    valid = torch.arange(11) >= torch.tensor([[11], [7], [0]])
    layout = (grid_layout if is_causal else bidirectional_layout)((3, 11), 4, "cpu", valid)
    assert (local_attention_mask(config, layout, torch.float32) == 0).any(-1).all()  # 0 is added where it may look


@pytest.mark.parametrize("is_causal", [True, False])
def test_4_gradients_stay_finite_beside_a_row_of_padding(is_causal):
    model = tiny_model(**in_direction(is_causal, {"num_sink_tokens": 2}))
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[0] = 0
    model(random_ids(2, 9), attention_mask=mask).logits[1].sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters() if parameter.grad is not None)


@pytest.mark.parametrize("is_causal", [True, False])
def test_4_padding_gets_what_the_real_token_before_it_gets_and_zeros_in_front_of_the_first(is_causal):
    model = double_model(is_causal=is_causal)
    mask = torch.tensor([[0, 0, 1, 1, 0, 1, 0], [0] * 7])
    logits = model(random_ids(2, 7), attention_mask=mask).logits
    assert not logits[0, :2].any() and not logits[1].any()
    assert torch.equal(logits[0, 4], logits[0, 3]) and torch.equal(logits[0, 6], logits[0, 5])


def test_4_right_padding_without_a_mask_changes_no_real_logit():
    model = tiny_model()
    input_ids = random_ids(1, 14)
    padded = torch.cat([input_ids, torch.zeros(1, 10, dtype=torch.long)], dim=1)
    torch.testing.assert_close(model(padded).logits[:, :14], model(input_ids).logits, atol=1e-5, rtol=0)


def test_4_an_additive_mask_is_refused():
    mask = torch.tensor([[0.0, 0.0, -torch.inf]])
    with pytest.raises(ValueError, match="must be 0 for padding and 1 for tokens"):
        double_model()(random_ids(1, 3), attention_mask=mask)
    model, input_ids = double_model(), random_ids(2, 3)
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    assert torch.equal(model(input_ids, mask.double()).logits, model(input_ids, mask).logits)


# 5. Packing


@pytest.mark.quick
@every_model
@pytest.mark.parametrize("is_causal", [True, False])
def test_5_packed_documents_give_the_logits_and_gradients_of_each_alone(is_causal, overrides):
    model = double_model(**in_direction(is_causal, overrides))
    lengths = [5, 1, 8, 4, 1, 2, 1, 13, 2, 3, 1, 3]  # of chunks of 4: two, three and two documents share one
    input_ids = random_ids(1, sum(lengths))
    position_ids = torch.cat([torch.arange(length) for length in lengths])[None]
    target = torch.randn(sum(lengths), 31, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    packed = model(input_ids, position_ids=position_ids).logits[0]
    ends = torch.tensor([0, *lengths]).cumsum(0)
    by_lengths = model(input_ids, cu_seq_lens_q=ends.int()).logits[0]
    torch.testing.assert_close(by_lengths, packed, atol=0, rtol=0)
    alone = torch.cat([model(part).logits[0] for part in input_ids.split(lengths, dim=1)])
    torch.testing.assert_close(packed, alone, **CLOSE)
    gradients = [
        torch.autograd.grad((logits * target).sum(), list(model.parameters()), allow_unused=True)
        for logits in (packed, alone)
    ]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)


def test_5_packed_rows_of_a_batch_with_padding_between():
    model = double_model()
    input_ids = random_ids(2, 12)
    position_ids = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 0, 0, 0, 1, 2], [0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]])
    mask = torch.tensor([[1] * 7 + [0, 0] + [1] * 3, [0] + [1] * 11])
    logits = model(input_ids, position_ids=position_ids, attention_mask=mask).logits
    for row, span in ((0, slice(0, 5)), (0, slice(5, 7)), (0, slice(9, 12)), (1, slice(1, 12))):
        torch.testing.assert_close(logits[row, span], model(input_ids[row, span][None]).logits[0], **CLOSE)


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("padding", [(5,), (4, 5), (5, 6, 7), (0, 4, 5), (2, 5, 11), (1, 6)], ids=str)
def test_5_a_document_that_starts_with_padding_is_a_document_of_its_own(padding, is_causal):
    model = double_model(is_causal=is_causal)
    input_ids, lengths = random_ids(1, 12), [5, 7]
    mask = torch.ones_like(input_ids).index_fill(1, torch.tensor(padding), 0)
    real = [part[keep.bool()] for part, keep in zip(input_ids[0].split(lengths), mask[0].split(lengths), strict=True)]
    alone = torch.cat([model(part[None]).logits[0] for part in real])
    for packing in (
        {"position_ids": torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6]])},
        {"seq_idx": torch.tensor([[0] * 5 + [1] * 7])},
        {"cu_seq_lens_q": torch.tensor([0, 5, 12])},
    ):
        packed = model(input_ids, attention_mask=mask, **packing).logits
        torch.testing.assert_close(packed[mask.bool()], alone, **CLOSE)


@pytest.mark.parametrize("places", [[-3, 12], [0, 5, 13], [0, 7, 5, 12]], ids=str)
def test_5_sequences_that_do_not_lie_in_the_row_are_refused(places):
    with pytest.raises(ValueError, match="`cu_seq_lens_q` must be rising places in the row of 12 tokens"):
        double_model()(random_ids(1, 12), cu_seq_lens_q=torch.tensor(places))


def test_5_a_sequence_may_be_empty():
    model, input_ids = double_model(), random_ids(1, 12)
    logits = [
        model(input_ids, cu_seq_lens_q=torch.tensor(places)).logits for places in ([0, 0, 5, 5, 12, 12], [0, 5, 12])
    ]
    assert torch.equal(*logits)


def test_5_of_several_ways_to_tell_documents_apart_the_lengths_count_then_the_numbers():
    model, input_ids = double_model(), random_ids(1, 9)
    position_ids = torch.tensor([[0, 1, 0, 1, 2, 3, 4, 5, 6]])
    numbers, places = {"seq_idx": torch.tensor([[0] * 4 + [1] * 5])}, {"cu_seq_lens_q": torch.tensor([0, 6, 9])}
    for packing in (numbers, places, {**numbers, **places}):
        logits = model(input_ids, position_ids=position_ids, **packing).logits
        assert torch.equal(logits, model(input_ids, **(places if places.keys() <= packing.keys() else numbers)).logits)


def test_5_the_number_of_padding_inside_a_document_does_not_matter():
    model, input_ids = double_model(), random_ids(1, 9)
    seq_idx, mask = torch.zeros(1, 9, dtype=torch.long), torch.ones(1, 9, dtype=torch.long)
    seq_idx[0, 3], mask[0, 3] = 7, 0
    logits = model(input_ids, attention_mask=mask, seq_idx=seq_idx).logits[mask.bool()]
    torch.testing.assert_close(logits, model(input_ids[mask.bool()][None]).logits[0], **CLOSE)


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("packing", [{"cu_seq_lens_q": [0, 5, 12]}, {"seq_idx": [[0] * 5 + [1] * 7]}], ids=str)
def test_5_packed_padding_alone_gives_finite_numbers(packing, is_causal):
    model, packing = double_model(is_causal=is_causal), {name: torch.tensor(value) for name, value in packing.items()}
    logits = model(random_ids(1, 12), attention_mask=torch.zeros(1, 12, dtype=torch.long), **packing).logits
    assert logits.isfinite().all()


@pytest.mark.parametrize("first", [1, 2])
def test_5_positions_that_do_not_count_from_0(first):
    model, input_ids = double_model(), random_ids(1, 5)
    position_ids = torch.tensor([[first, first, first + 1, first + 2, first]])
    logits = model(input_ids, position_ids=position_ids).logits
    alone = torch.cat([model(part).logits for part in input_ids.split([1, 3, 1], dim=1)], dim=1)
    torch.testing.assert_close(logits, alone, **CLOSE)


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize("packing", ["position_ids", "seq_idx"])
def test_5_packing_may_be_told_once_for_all_rows(packing, padding, is_causal):
    model, input_ids, mask = double_model(is_causal=is_causal), random_ids(2, 9), torch.ones(2, 9, dtype=torch.long)
    mask[0, :padding] = 0
    once = torch.tensor([{"position_ids": [0, 1, 2, 3, 0, 1, 2, 3, 4], "seq_idx": [0] * 4 + [1] * 5}[packing]])
    logits = [model(input_ids, mask, **{packing: told}).logits for told in (once, once.expand(2, -1))]
    assert torch.equal(*logits)


@pytest.mark.parametrize("packed", [[1, 1, 1, 1, 2, 3, 1, 2, 3], [0, 1, 2, 3, 4, 5, 0, 1, 2]], ids=str)
def test_5_packed_documents_behind_left_padding(packed):
    """Positions of the first document do not begin at 0."""
    model, input_ids = double_model(), random_ids(1, 9)
    mask = torch.tensor([[0] * 3 + [1] * 6])
    logits = model(input_ids, position_ids=torch.tensor([packed]), attention_mask=mask).logits[0, 3:]
    alone = torch.cat([model(input_ids[:, span]).logits[0] for span in (slice(3, 6), slice(6, 9))])
    torch.testing.assert_close(logits, alone, **CLOSE)


def test_5_the_last_packed_document_continues_from_the_cache():
    model = double_model()
    input_ids = random_ids(1, 24)
    position_ids = torch.cat([torch.arange(9), torch.arange(2), torch.arange(1)])[None]
    cache = DynamicCache(config=model.config)
    model(input_ids[:, :12], position_ids=position_ids, cache=cache)
    rest = torch.cat([model(token, cache=cache).logits for token in input_ids[:, 12:].split(1, 1)], dim=1)
    torch.testing.assert_close(rest, model(input_ids[:, 11:]).logits[:, 1:], **CLOSE)


def test_5_documents_stay_apart_where_their_chunks_are_merged_in_several_blocks():
    model = double_model(chunk_size=1, num_sink_tokens=1)
    lengths = [3, BLOCK, 2 * BLOCK, 5]
    input_ids = random_ids(1, sum(lengths))
    logits = model(input_ids, cu_seq_lens_q=torch.tensor([0, *lengths]).cumsum(0)).logits
    alone = torch.cat([model(part).logits for part in input_ids.split(lengths, dim=1)], dim=1)
    torch.testing.assert_close(logits, alone, **CLOSE)


@pytest.mark.parametrize("last", [1, 4, 6, 10, 13])
@every_model
def test_5_packed_documents_leave_the_state_of_the_last_one_alone(last, overrides):
    model, input_ids = double_model(**overrides), random_ids(1, 9 + last)
    packed = cache_of(model(input_ids, cu_seq_lens_q=torch.tensor([0, 9, 9 + last]), use_cache=True))
    alone = cache_of(model(input_ids[:, 9:], use_cache=True))
    assert_same_state(packed, alone)
