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
"""Properties 1 and 2 of docs/architecture.md: the model equals the reference, and no token changes earlier ones."""

import itertools

import pytest
import torch

import reference
from common import CLOSE, LLAMA3_ROPE, double_model, in_direction, random_ids, randomize, tiny_config, tiny_model
from contract_cases import LAYER_PATTERNS, every_model, some_statistics, step_by_step
from modeling_latent import LatentAttention
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
    "layer_pattern", [kinds for kinds in LAYER_PATTERNS if tiny_config(layer_pattern=kinds).has_windows], ids="-".join
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
        # A new kind of layer that remembers all tokens has to be added here; one that forgets them must not be.
        remembered = model.config.has_latents or position < model.config.num_sink_tokens
        assert torch.equal(after[:, after_5_chunks], logits[:, after_5_chunks]) == (not remembered)
