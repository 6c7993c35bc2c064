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
"""What must hold of latent attention, in the order and with the numbers of docs/architecture.md.

All on random weights of visible size. Unless a test says otherwise float64 with atol 1e-9, where the float32
tolerance would be 1e-5: what is equal in exact arithmetic is then told from what is only close.
"""

import copy
import io
import itertools

import pytest
import torch
from torch.utils._pytree import tree_leaves
from transformers import DynamicCache, StaticCache

import reference
from common import CLOSE, LLAMA3_ROPE, PATTERNS, double_model, random_ids, randomize, tiny_config, tiny_model
from modeling_latent import LatentAttention, LatentAttentionForCausalLM
from modeling_latent.cache_name import cache_of
from modeling_latent.chunk_layout import bidirectional_layout, grid_layout
from modeling_latent.local_attention import local_attention_mask, rotary_embedding
from modeling_latent.prefix_statistics import (
    BLOCK,
    Statistics,
    chunk_statistics,
    empty_statistics,
    exclusive_prefix,
    merge,
)


# (T, C, M): T < C, T = C, T = kC, kC - 1, kC + 1, M = 1, C = 1
SHAPES = [(3, 4, 3), (4, 4, 3), (12, 4, 3), (11, 4, 3), (13, 4, 3), (9, 4, 1), (5, 1, 2)]
CACHES = [DynamicCache, lambda config: StaticCache(config, max_cache_len=64)]
LAYER_PATTERNS = [["local"], ["latent"], ["both"], ["both", "local"], ["local", "both", "latent"]]
# What the properties of whole models are held to.
MODELS = {
    **PATTERNS,
    "local with sinks": {"layer_pattern": ["local"], "num_sink_tokens": 2},
    "a whole chunk of sinks": {"num_sink_tokens": 4},
    "no convolution": {"conv_kernel_size": 0, "mlp_conv_kernel_size": 0},
    "chunks of one token": {"chunk_size": 1},
    "chunks of one token with a sink": {"chunk_size": 1, "num_sink_tokens": 1},
    "chunks of five tokens, one latent": {"chunk_size": 5, "num_latents": 1},
    "rms norm, biases": {"norm_type": "rms_norm", "attention_bias": True},
    "norms on queries and keys": {"norm_type": "rms_norm", "qk_norm": True, "num_sink_tokens": 2},
}
every_model = pytest.mark.parametrize("overrides", MODELS.values(), ids=MODELS.keys())


def tensors(tree) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def in_direction(is_causal: bool, overrides: dict) -> dict:
    """The same model in one direction or in both; what is read in both has no sinks."""
    return {**overrides, "is_causal": is_causal} | ({} if is_causal else {"num_sink_tokens": 0})


def assert_same_state(ours: DynamicCache, expected: DynamicCache) -> None:
    for mine, theirs in zip(ours.layers, expected.layers, strict=True):
        torch.testing.assert_close(tensors(mine.state), tensors(theirs.state), **CLOSE)


def step_by_step(model, input_ids, pieces, **inputs):
    """Logits of a forward in pieces of the given sizes, through a cache."""
    cache, logits, start = DynamicCache(config=model.config), [], 0
    for size in pieces:
        stop = start + size
        more = {name: value[:, :stop] for name, value in inputs.items()}
        logits.append(model(input_ids[:, start:stop], cache=cache, **more).logits)
        start = stop
    return torch.cat(logits, dim=1)


# 1. The definition


def assert_equals_the_reference(length: int, **overrides) -> None:
    """Logits and all gradients."""
    model = double_model(attention_bias=True, **overrides)
    input_ids = random_ids(2, length)
    target = torch.randn(2, length, 31, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    weights = {name: value.detach().clone().requires_grad_() for name, value in model.named_parameters()}
    expected = torch.stack([reference.logits(weights, row, model.config) for row in input_ids])
    logits = model(input_ids).logits
    torch.testing.assert_close(logits, expected, **CLOSE)
    (logits * target).sum().backward()
    (expected * target).sum().backward()
    for name, parameter in model.named_parameters():
        ours = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        theirs = torch.zeros_like(parameter) if weights[name].grad is None else weights[name].grad
        torch.testing.assert_close(ours, theirs, **CLOSE, msg=lambda message, name=name: f"{name}: {message}")


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("kernels", itertools.product([0, 4], [0, 3]), ids=str)
@pytest.mark.parametrize("layer_pattern", [["both"], ["local", "latent"]], ids="-".join)
@pytest.mark.parametrize(("length", "chunk_size", "num_latents"), SHAPES)
def test_1_model_and_all_gradients_equal_the_reference(
    length, chunk_size, num_latents, layer_pattern, kernels, is_causal
):
    assert_equals_the_reference(
        length,
        chunk_size=chunk_size,
        num_latents=num_latents,
        layer_pattern=layer_pattern,
        conv_kernel_size=kernels[0],
        mlp_conv_kernel_size=kernels[1],
        is_causal=is_causal,
    )


@pytest.mark.quick
@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("layer_pattern", LAYER_PATTERNS, ids="-".join)
def test_1_every_pattern_equals_the_reference(layer_pattern, is_causal):
    assert_equals_the_reference(13, layer_pattern=layer_pattern, num_hidden_layers=3, is_causal=is_causal)


# (T, C, S): without a chunk that sees sinks, with one that starts with the last token, and with several
@pytest.mark.parametrize(
    ("length", "chunk_size", "num_sink_tokens"), [(8, 4, 1), (9, 4, 1), (15, 4, 1), (15, 4, 4), (5, 1, 1), (13, 3, 2)]
)
@pytest.mark.parametrize(
    "layer_pattern", [pattern for pattern in LAYER_PATTERNS if pattern != ["latent"]], ids="-".join
)
def test_1_sinks_equal_the_reference(layer_pattern, length, chunk_size, num_sink_tokens):
    assert_equals_the_reference(
        length,
        layer_pattern=layer_pattern,
        num_hidden_layers=len(layer_pattern),
        chunk_size=chunk_size,
        num_sink_tokens=num_sink_tokens,
    )


@pytest.mark.parametrize("is_causal", [True, False])
def test_1_rotary_embeddings_as_in_llama_3_equal_the_reference(is_causal):
    overrides = in_direction(is_causal, {"head_dim": 12, "chunk_size": 16, "num_sink_tokens": 3})
    model = double_model(**overrides, rope_parameters=LLAMA3_ROPE)
    input_ids = random_ids(1, 40)
    expected = reference.logits(dict(model.named_parameters()), input_ids[0], model.config)[None]
    torch.testing.assert_close(model(input_ids).logits, expected, **CLOSE)
    if is_causal:
        torch.testing.assert_close(step_by_step(model, input_ids, [19] + [1] * 21), expected, **CLOSE)


@pytest.mark.quick
@pytest.mark.parametrize("norm_type", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize("is_causal", [True, False])
def test_1_layer_alone_equals_the_reference(is_causal, norm_type):
    config = tiny_config(is_causal=is_causal, norm_type=norm_type)
    layer = randomize(LatentAttention(config)).double().eval()
    hidden_states = torch.randn(2, 11, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    weights = dict(layer.named_parameters())
    expected = torch.stack([reference.latent_attention(weights, row, config) for row in hidden_states])
    torch.testing.assert_close(layer(hidden_states), expected, **CLOSE)


def test_1_layer_alone_takes_padding():
    layer = randomize(LatentAttention(tiny_config())).double().eval()
    hidden_states = torch.randn(1, 11, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    mask = torch.tensor([[0, 0, 1, 1, 1, 0, 1, 1, 1, 1, 1]])
    torch.testing.assert_close(
        layer(hidden_states, mask)[mask.bool()], layer(hidden_states[mask.bool()][None])[0], **CLOSE
    )


def test_1_layer_alone_refuses_a_mask_of_another_shape():
    layer = LatentAttention(tiny_config())
    with pytest.raises(ValueError, match=r"`attention_mask` is of shape \(1, 5\)"):
        layer(torch.randn(2, 5, 16), torch.ones(1, 5))


def test_1_a_fresh_layer_alone_is_initialised():
    layer = LatentAttention(tiny_config(hidden_size=256, num_latents=64))
    assert 0.9 < layer.latents.std() < 1.1
    assert 0.9 < layer.input_to_latent.q_proj.weight.std() * 256**0.5 < 1.1


@pytest.mark.parametrize("chunks", [1, 2, BLOCK, BLOCK + 1, 2 * BLOCK + 3])
def test_1_prefix_merge_equals_softmax_over_all_tokens_before(chunks):
    generator = torch.Generator().manual_seed(chunks)
    queries = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    keys, values = torch.randn(2, chunks, 2, 2, 4, generator=generator, dtype=torch.float64)  # (N, H, C, d)
    statistics = (tensor[None] for tensor in chunk_statistics(queries, keys[:-1], values[:-1], 1.0, 0.0))
    first = empty_statistics((1, 2, 3), 4, torch.float64, "cpu")
    peak, total, out = exclusive_prefix(Statistics(*statistics), first)
    assert peak.shape == total.shape == (1, chunks, 2, 3)
    assert not total[:, 0].any() and not out[:, 0].any()
    for n in range(1, chunks):
        before_keys, before_values = (part[:n].transpose(0, 1).flatten(1, 2) for part in (keys, values))
        scores = queries @ before_keys.transpose(1, 2)  # (H, M, n C)
        torch.testing.assert_close(peak[0, n], scores.amax(-1), **CLOSE)
        torch.testing.assert_close(peak[0, n] + total[0, n].log(), scores.logsumexp(-1), **CLOSE)
        torch.testing.assert_close(out[0, n], scores.softmax(-1) @ before_values, **CLOSE)


def some_statistics(*shape: int, peak: float | None = None, head_dim: int = 4) -> Statistics:
    """As of spans with tokens: a total is at least 1."""
    generator = torch.Generator().manual_seed(0)
    peaks = torch.randn(shape, generator=generator) if peak is None else torch.full(shape, peak)
    return Statistics(
        peaks, 1 + torch.rand(shape, generator=generator), torch.randn(*shape, head_dim, generator=generator)
    )


def test_1_merging_with_an_empty_span_is_the_identity_forward_and_backward():
    span, empty = some_statistics(1, 2, 3), empty_statistics((1, 2, 3), 4, torch.float32, "cpu")
    total, out = span.total.requires_grad_(), span.out.requires_grad_()
    both = merge(empty, merge(span, empty))
    assert all(map(torch.equal, both, span))
    assert all(map(torch.equal, merge(empty, empty), empty))
    (both.total.sum() + both.out.sum()).backward()
    # total / total is 1 up to float32 rounding of the derivative
    torch.testing.assert_close(total.grad, torch.ones_like(total), atol=1e-6, rtol=0)
    torch.testing.assert_close(out.grad, torch.ones_like(out), atol=1e-6, rtol=0)


@pytest.mark.parametrize("peak", [-1e6, 1e6])
def test_1_a_chunk_of_extreme_scores_is_read_whole(peak):
    """What stands for a span without tokens is far below the scores of any real one."""
    chunk = some_statistics(1, 1, 2, 3, peak=peak)
    prefix = exclusive_prefix(chunk, empty_statistics((1, 2, 3), 4, torch.float32, "cpu"))
    assert all(torch.equal(after[:, 1:], one) for after, one in zip(prefix, chunk, strict=True))


# 2. Causality


@pytest.mark.quick
@every_model
@pytest.mark.parametrize("length", [45, 48])
def test_2_a_token_changes_nothing_before_it_and_something_far_after_it_is_remembered(length, overrides):
    """Latents remember every token; windows alone, however many of them, only those that are sinks."""
    model = tiny_model(**overrides)
    input_ids = random_ids(1, length)
    logits = model(input_ids).logits
    for position in (0, 3, 4, 9, 19):
        changed = input_ids.clone()
        changed[0, position] = (changed[0, position] + 7) % 31
        after = model(changed).logits
        assert torch.equal(after[:, :position], logits[:, :position])
        after_5_chunks = position + 5 * model.config.chunk_size
        remembered = model.config.has_latents or position < model.config.num_sink_tokens
        assert torch.equal(after[:, after_5_chunks], logits[:, after_5_chunks]) == (not remembered)


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


def test_4_an_additive_mask_is_refused():
    mask = torch.tensor([[0.0, 0.0, -torch.inf]])
    with pytest.raises(ValueError, match="must be 0 for padding and 1 for tokens"):
        double_model()(random_ids(1, 3), attention_mask=mask)
    model, input_ids = double_model(), random_ids(2, 3)
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    assert torch.equal(model(input_ids, mask.double()).logits, model(input_ids, mask).logits)


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

STATES = {
    "default": {},
    "local with sinks": {"layer_pattern": ["local"], "num_sink_tokens": 3},
    "latent, no convolution": {"layer_pattern": ["latent"], "conv_kernel_size": 0, "mlp_conv_kernel_size": 0},
    "mixed with sinks": PATTERNS["mixed with sinks"],
}


def saved_bytes(cache: DynamicCache) -> int:
    buffer = io.BytesIO()
    torch.save(cache, buffer)
    return buffer.tell()


def storage_bytes(cache) -> int:
    return sum(leaf.untyped_storage().nbytes() for layer in cache.layers for leaf in tensors(layer.state))


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


# 9. Precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_9_half_precision_is_close_to_float32_at_16384_tokens(dtype):
    """Relative error of the logits, norm over norm, under 3e-2, with the weights that training starts from."""
    torch.manual_seed(0)
    config = tiny_config(hidden_size=64, num_latents=16, chunk_size=64, vocab_size=97)
    model = LatentAttentionForCausalLM(config).eval()
    input_ids = random_ids(1, 16_384, vocab_size=97)
    with torch.no_grad():
        expected = model(input_ids).logits
        outputs = model.to(dtype)(input_ids, use_cache=True)
    assert (outputs.logits.float() - expected).norm() / expected.norm() < 3e-2
    statistics = cache_of(outputs).layers[0].state.memory.statistics
    assert {tensor.dtype for tensor in statistics} == {torch.float32}


@pytest.mark.parametrize("peak", [0.0, 30.0, 300.0])
@pytest.mark.parametrize("how", ["one by one", "by prefix"])
def test_9_what_a_long_text_is_worth_does_not_drift(how, peak):
    """5,000 chunks after a million: relative error under 1e-5 of float64, at whatever size of the scores."""
    noise = some_statistics(1, 5000, 1, 8, head_dim=2)
    chunks = noise._replace(peak=peak + 0.3 * noise.peak, out=1 + 0.5 * noise.out)
    known = Statistics(torch.full((1, 1, 8), peak), torch.full((1, 1, 8), 1.5e6), torch.full((1, 1, 8, 2), 0.7))

    def read(known: Statistics, chunks: Statistics) -> torch.Tensor:
        if how == "by prefix":
            return exclusive_prefix(chunks, known).out[:, -1]
        for chunk in zip(*(tensor.unbind(1) for tensor in chunks), strict=True):
            known = merge(known, Statistics(*chunk))
        return known.out

    expected = read(*(Statistics(*(tensor.double() for tensor in part)) for part in (known, chunks)))
    torch.testing.assert_close(read(known, chunks).double(), expected, atol=0, rtol=1e-5)


def test_9_a_text_that_says_the_same_for_ever_leaves_the_latents_as_they_are():
    chunk = some_statistics(1, 1, 8)
    known = Statistics(chunk.peak, 1e6 * chunk.total, chunk.out)
    for _ in range(1000):
        known = merge(known, chunk)
    assert torch.equal(known.out, chunk.out)


def test_9_statistics_merge_in_float32_under_autocast():
    chunks = some_statistics(1, 9, 2, 3)
    first = empty_statistics((1, 2, 3), 4, torch.float32, "cpu")
    expected = exclusive_prefix(chunks, first)
    with torch.autocast("cpu", torch.bfloat16):
        merged = exclusive_prefix(chunks, first)
    assert all(map(torch.equal, merged, expected))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_9_statistics_of_a_chunk_are_float32(dtype):
    """By themselves, before they are merged with others."""
    queries, keys, values = torch.randn(2, 4, 8, dtype=dtype), *torch.randn(2, 3, 2, 4, 8, dtype=dtype)
    statistics = chunk_statistics(queries, keys, values, 1.0, 0.0)
    assert {tensor.dtype for tensor in statistics} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_9_rotary_angles_are_computed_in_float32(dtype):
    config, like = tiny_config(), torch.empty(0)
    expected = rotary_embedding(config, 512, like).to(dtype)
    assert torch.equal(rotary_embedding(config, 512, like.to(dtype)), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_9_large_scores_stay_finite_forward_and_backward(dtype):
    model = tiny_model()
    with torch.no_grad():
        for layer in model.model.layers:
            for name, module in layer.named_modules():
                if name.endswith("q_proj"):
                    module.weight.mul_(100)
    model.to(dtype)
    logits = model(random_ids(1, 41)).logits
    logits.float().square().mean().backward()
    assert torch.isfinite(logits).all()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


# 10. Attention backends


@pytest.mark.parametrize("backend", ["sdpa", "flex_attention"])
@pytest.mark.parametrize("is_causal", [True, False])
def test_10_backends_agree_with_eager(backend, is_causal):
    torch.compiler.reset()  # flex attention compiles; on a CPU its kernels for dynamic shapes do not build
    overrides = in_direction(is_causal, {"num_sink_tokens": 2})
    model = tiny_model(num_hidden_layers=1, layer_pattern=["both"], **overrides)
    input_ids, mask = random_ids(2, 11), torch.ones(2, 11, dtype=torch.long)
    mask[0, :3] = 0
    logits = {}
    with torch.no_grad():  # flex attention has no backward pass on a CPU
        for name in ("eager", backend):
            model.set_attn_implementation(name)
            assert model.model.layers[0].latent_attention.latent_self.config._attn_implementation == name
            logits[name] = model(input_ids, attention_mask=mask).logits[mask.bool()]
    torch.testing.assert_close(logits[backend], logits["eager"], atol=1e-5, rtol=0)


def test_10_every_step_goes_through_the_attention_interface(monkeypatch):
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    sdpa, calls = ALL_ATTENTION_FUNCTIONS["sdpa"], []

    def counting(module, *args, **kwargs):
        calls.append(module)
        return sdpa(module, *args, **kwargs)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, "sdpa", counting)
    for is_causal, expected in ((True, 3), (False, 4)):
        model = tiny_model(is_causal=is_causal, num_hidden_layers=1, layer_pattern=["both"])
        calls.clear()
        model(random_ids(1, 9))
        layer = model.model.layers[0]
        steps = [layer.local_attention, layer.latent_attention.latent_self, layer.latent_attention.latent_to_input]
        steps += [] if is_causal else [layer.latent_attention.input_to_latent]
        assert len(calls) == expected
        assert {id(module) for module in calls} == {id(module) for module in steps}


def test_10_flash_attention_is_a_clear_error():
    """Whether it is installed or not: it takes no mask, and local attention needs one."""
    with pytest.raises((ValueError, ImportError), match="[Ff]lash"):
        tiny_model().set_attn_implementation("flash_attention_2")


# 11. Memory


def test_11_activations_are_linear_in_the_number_of_tokens():
    """Bytes that autograd keeps for the backward pass, 4 times the tokens: at most 4.3 times as many."""
    model, kept = tiny_model(num_hidden_layers=1, layer_pattern=["both"], chunk_size=16, num_sink_tokens=4), []
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    for length in (4096, 16_384):
        storages = {}

        def pack(tensor, storages=storages):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in parameters:
                storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = model(random_ids(1, length), use_cache=False).logits
        kept.append(sum(storages.values()))
        del output
    assert 3.9 < kept[1] / kept[0] < 4.3


def test_11_no_single_tensor_of_a_forward_grows_faster_than_the_tokens():
    """The prefix weights of N chunks would be N x N: no tensor may be more than linear in the tokens."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            self.largest = max([self.largest, *(leaf.numel() for leaf in tensors(result))])
            return result

    model, largest = tiny_model(num_hidden_layers=1, layer_pattern=["both"], chunk_size=1, num_sink_tokens=1), []
    for length in (2048, 8192):
        with Largest() as mode, torch.no_grad():
            model(random_ids(1, length), use_cache=False, logits_to_keep=1)
        largest.append(mode.largest)
    assert largest[1] <= 4.3 * largest[0]
