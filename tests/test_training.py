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
"""Losses and gradients, with checkpointed activations, dropout, repeated chunks, and in bfloat16."""

import functools
import itertools
import math
import re

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import DynamicCache, set_seed

from common import random_ids, randomize, tiny_config, tiny_model
from modeling_latent import LatentAttention, LatentAttentionForCausalLM
from modeling_latent.prefix_statistics import Statistics, merge, repeated_at_random
from training import LENGTH, close, fixed_seed, gradients, padded_batch  # noqa: F401 (a fixture)


# Loss


def test_loss_is_of_the_next_token_where_the_label_is_not_minus_100():
    model, input_ids = tiny_model(), random_ids(2, LENGTH)
    labels = input_ids.clone()
    labels[:, 3:6] = -100
    outputs = model(input_ids, labels=labels)
    kept = labels[:, 1:] != -100
    close(outputs.loss, cross_entropy(outputs.logits[:, :-1][kept], input_ids[:, 1:][kept]))


def test_num_items_in_batch_divides_the_summed_loss():
    model, input_ids = tiny_model(), random_ids(2, LENGTH)
    mean = model(input_ids, labels=input_ids).loss
    close(model(input_ids, labels=input_ids, num_items_in_batch=100).loss, mean * 2 * (LENGTH - 1) / 100)


def test_shift_labels_are_taken_as_they_are():
    model, input_ids, targets = tiny_model(), random_ids(2, LENGTH), random_ids(2, LENGTH, seed=2)
    outputs = model(input_ids, labels=input_ids, shift_labels=targets)
    close(outputs.loss, cross_entropy(outputs.logits.flatten(0, 1), targets.flatten()))


def test_shift_labels_of_a_left_padded_row_are_divided_by_num_items_alone():
    model, batch = tiny_model(), padded_batch()
    targets = random_ids(3, LENGTH, seed=2)
    outputs = model(**batch, shift_labels=targets, num_items_in_batch=100)
    close(outputs.loss, cross_entropy(outputs.logits.flatten(0, 1), targets.flatten(), reduction="sum") / 100)


def test_a_left_padded_row_trains_as_it_does_alone():
    """
    Its first token has nothing to be predicted from, least of all what stands at the padding: that once was the
    output of a slot that the token itself had been read by.
    """
    model, batch = tiny_model(dtype=torch.float64), padded_batch()
    batch["labels"] = batch["input_ids"]  # at padding, too: what is to be predicted there does not count
    tokens = sum(int(row.sum()) - 1 for row in batch["attention_mask"][:2])
    counted = 2 * (LENGTH - 1)  # labels that `Trainer` would count
    two = {name: value[:2] for name, value in batch.items()}
    ours = gradients(model, **two, num_items_in_batch=counted)
    loss = model(**two, num_items_in_batch=counted).loss
    model.zero_grad(set_to_none=True)
    rows = [row[mask.bool()][None] for row, mask in zip(two["input_ids"], two["attention_mask"], strict=True)]
    alone = sum(model(row, labels=row, num_items_in_batch=tokens).loss for row in rows)
    alone.backward()
    close(loss, alone, atol=1e-6)
    close(ours, {name: parameter.grad for name, parameter in model.named_parameters()}, atol=1e-6)
    # Not by the labels alone: `Trainer` takes them away to smooth them.
    logits = model(batch["input_ids"], batch["attention_mask"]).logits
    assert not logits[1, :5].any() and logits[1, 5:].any()


def test_loss_beside_a_cache_takes_the_mask_of_the_whole_row():
    model, batch = tiny_model(), padded_batch()
    input_ids, mask, labels = batch["input_ids"], batch["attention_mask"], batch["labels"]
    cache = DynamicCache(config=model.config)
    model(input_ids[:, :7], mask[:, :7], cache=cache)
    loss = model(input_ids[:, 7:], mask, labels=labels[:, 7:], cache=cache).loss
    logits = model(input_ids, mask).logits[:, 7:-1]
    close(loss, cross_entropy(logits.flatten(0, 1), labels[:, 8:].flatten()))


def test_a_batch_without_anything_to_predict_has_no_loss():
    model, mask = tiny_model(), torch.tensor([[0, 0, 1]])
    assert model(random_ids(1, 3), mask, labels=random_ids(1, 3), num_items_in_batch=2).loss == 0


@pytest.mark.parametrize(("kept", "positions"), [(1, [-1]), (3, [-3, -2, -1]), (torch.tensor([0, 5]), [0, 5])])
def test_logits_to_keep(kept, positions):
    model, input_ids = tiny_model(), random_ids(2, LENGTH)
    close(model(input_ids, logits_to_keep=kept).logits, model(input_ids).logits[:, positions])


# Gradients


@pytest.mark.parametrize("randomized", [True, False])
@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("kernel", [4, 0])
@pytest.mark.parametrize("layer_pattern", [["both"], ["latent"], ["local", "both"]], ids="-".join)
def test_every_parameter_has_a_gradient(is_causal, layer_pattern, kernel, randomized):
    model = LatentAttentionForCausalLM(
        tiny_config(is_causal=is_causal, layer_pattern=layer_pattern, conv_kernel_size=kernel, attention_bias=True)
    )
    model = randomize(model) if randomized else model
    input_ids = random_ids(2, LENGTH)
    for name, gradient in gradients(model, input_ids=input_ids, labels=input_ids).items():
        # Adding the same number to all scores of a query changes nothing, so a bias of keys that are not rotated
        # has a gradient of rounding errors.
        no_rotation = name.endswith("k_proj.bias") and "local_attention" not in name
        assert gradient is not None and (gradient.abs().max() > 0 or no_rotation), name


@pytest.mark.parametrize("length", [3, 4])
def test_in_a_single_chunk_nothing_is_compressed_and_the_compression_has_a_gradient_of_zero(length):
    # Missing ones would let processes that train together wait for each other, or exchange unlike buffers.
    model, input_ids = tiny_model(layer_pattern=["both"]).train(), random_ids(2, length)
    found = gradients(model, input_ids=input_ids, labels=input_ids)
    assert None not in found.values()
    without = {re.sub(r"^model\.layers\.\d\.", "", name) for name, gradient in found.items() if not gradient.any()}
    compression = [f"input_to_latent.{letter}_proj.weight" for letter in "qkvo"]
    compression += [f"{module}.{name}" for module in ("token_conv", "latent_norm") for name in ("weight", "bias")]
    assert without == {f"latent_attention.{name}" for name in compression}


def test_inputs_embeds_equal_their_ids_and_get_a_gradient():
    model, input_ids = tiny_model(), random_ids(2, LENGTH)
    embeds = model.get_input_embeddings()(input_ids).detach().requires_grad_()
    outputs = model(inputs_embeds=embeds, labels=input_ids)
    close(outputs.logits, model(input_ids).logits)
    outputs.loss.backward()
    assert embeds.grad[:, :-1].abs().amax(-1).gt(0).all()  # the last token predicts nothing


def checkpoint_activations(model: LatentAttentionForCausalLM, use_reentrant: bool):
    # Newer versions have another name for it and warn of this one.
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": use_reentrant})


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("is_causal", [True, False])
def test_gradient_checkpointing_gives_equal_gradients(is_causal, use_reentrant, dropout):
    model = tiny_model(is_causal=is_causal, attention_dropout=dropout).train()
    calls = []
    model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    set_seed(1)
    expected = gradients(model, **padded_batch())
    checkpoint_activations(model, use_reentrant)
    set_seed(1)
    close(gradients(model, **padded_batch()), expected)
    assert len(calls) == 1 + 2, "the layer was not computed again in the backward"


# Dropout


@pytest.mark.parametrize("is_causal", [True, False])
def test_attention_dropout_is_for_training(is_causal):
    model, input_ids = tiny_model(is_causal=is_causal, attention_dropout=0.3), random_ids(2, LENGTH)
    assert torch.equal(model(input_ids).logits, tiny_model(is_causal=is_causal)(input_ids).logits)
    model.train()
    assert not torch.allclose(model(input_ids).logits, model(input_ids).logits, atol=1e-2)


def read_chunks(layer: LatentAttention, times: int, compression: bool) -> torch.Tensor:
    """What the latents read in one chunk, each time anew: as in step 1, or through the attention interface."""
    chunk = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(1)).expand(times, -1, -1, -1, -1)
    keys, values = chunk.unbind(1)  # (X, Hkv, C, d)
    if compression:
        return layer.statistics(keys, values).out  # (X, H, M, d)
    return layer.input_to_latent(layer.latent_queries().expand(times, -1, -1, -1), keys, values)[0]  # (X, M, D)


@pytest.mark.parametrize(("compression", "attention"), [(True, "sdpa"), (False, "sdpa"), (False, "eager")])
@torch.no_grad()
def test_attention_dropout_leaves_the_mean_as_it_is(compression, attention):
    """Of 20,000 draws, within five standard errors."""
    config = tiny_config(attention_dropout=0.3, attn_implementation=attention)
    layer = randomize(LatentAttention(config)).eval()
    expected = read_chunks(layer, 2, compression)
    assert torch.equal(expected[0], expected[1])
    draws = read_chunks(layer.train(), 20_000, compression)
    assert not torch.allclose(draws[0], draws[1], atol=1e-2)
    assert ((draws.mean(0) - expected[0]).abs() < 5 * draws.std(0) / 20_000**0.5).all()


# Chunks that weigh as if the text repeated them


def repeating_model(**overrides) -> LatentAttentionForCausalLM:
    return tiny_model(max_chunk_repeats=8, **overrides)


def test_chunks_are_repeated_in_training_only():
    input_ids = random_ids(2, LENGTH)
    expected = tiny_model()(input_ids).logits
    assert torch.equal(repeating_model()(input_ids).logits, expected)
    logits = repeating_model().train()(input_ids).logits
    changed = (logits - expected).abs().amax((0, 2)) > 1e-3
    # What one chunk says is the same however often it says it; from the third chunk on its share counts.
    assert changed.tolist() == [False] * 8 + [True] * (LENGTH - 8)


@pytest.mark.parametrize(("length", "is_causal"), [(3, True), (4, True), (LENGTH, False)])
def test_where_no_chunk_is_compressed_alone_none_is_repeated(length, is_causal):
    input_ids = random_ids(2, length)
    repeated = repeating_model(is_causal=is_causal).train()(input_ids)
    assert torch.equal(repeated.logits, tiny_model(is_causal=is_causal).train()(input_ids).logits)


def test_a_chunk_weighs_as_if_it_had_been_merged_so_often(monkeypatch):
    times = torch.tensor([[1, 3, 8], [5, 2, 1]])  # of each row's chunks
    shape = (*times.shape, 2, 4)  # (R, N, H, M)
    chunks = Statistics(torch.randn(shape), 1 + torch.rand(shape), torch.randn(*shape, 5))
    chunks = Statistics(*(tensor.double() for tensor in chunks))
    monkeypatch.setattr(torch, "rand", lambda *size, **kwargs: times.to(torch.float64).log() / math.log(8))
    repeated = repeated_at_random(chunks, 8)
    for row, chunk in itertools.product(range(2), range(3)):
        one = Statistics(*(tensor[row, chunk] for tensor in chunks))
        merged = functools.reduce(merge, [one] * times[row, chunk])
        close(Statistics(*(tensor[row, chunk] for tensor in repeated)), merged, atol=1e-12)


def test_how_often_is_drawn_anew_for_every_row_and_chunk_from_once_to_the_most():
    chunks = Statistics(torch.zeros(40, 50, 2, 3), torch.ones(40, 50, 2, 3), torch.zeros(40, 50, 2, 3, 4))
    repeated = repeated_at_random(chunks, 8)
    assert torch.equal(repeated.out, chunks.out) and torch.equal(repeated.peak, chunks.peak)
    times = repeated.total[:, :, 0, 0]
    assert torch.equal(repeated.total, times[..., None, None].expand_as(repeated.total))  # for all heads and latents
    draws = times.log()
    assert draws.unique().numel() > 1900
    assert 0 <= draws.min() < 0.01 * math.log(8) and 0.99 * math.log(8) < draws.max() <= math.log(8) + 1e-6
    assert draws.mean().item() == pytest.approx(math.log(8) / 2, rel=0.05)  # uniform: its standard error is 1.3 %


def test_every_parameter_has_a_gradient_where_chunks_are_repeated():
    model, input_ids = repeating_model().train(), random_ids(2, LENGTH)
    assert all(gradient.any() for gradient in gradients(model, input_ids=input_ids, labels=input_ids).values())


# Autocast


def assert_bf16_autocast_is_close(model: LatentAttentionForCausalLM, of_logits: float, of_gradients: float):
    expected_logits, expected = model(padded_batch()["input_ids"]).logits, gradients(model, **padded_batch())
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(padded_batch()["input_ids"]).logits
        actual = gradients(model, **padded_batch())
    assert logits.dtype == torch.bfloat16
    assert (logits - expected_logits).norm() / expected_logits.norm() < of_logits
    assert {gradient.dtype for gradient in actual.values()} == {torch.float32}
    assert all(gradient.any() for gradient in actual.values())
    actual, expected = (torch.cat([g.flatten() for g in grads.values()]) for grads in (actual, expected))
    assert (actual - expected).norm() / expected.norm() < of_gradients


@pytest.mark.parametrize("is_causal", [True, False])
def test_bf16_autocast_is_close_to_float32(is_causal):
    """Without the MLP's convolution: with it, weights so large amplify rounding, to 1 to 8 % by the seed."""
    assert_bf16_autocast_is_close(tiny_model(is_causal=is_causal, mlp_conv_kernel_size=0), 3e-2, 5e-2)


@pytest.mark.parametrize("is_causal", [True, False])
def test_bf16_autocast_is_close_to_float32_when_training_starts(is_causal):
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "initializer_range": 64**-0.5}
    assert_bf16_autocast_is_close(LatentAttentionForCausalLM(tiny_config(is_causal=is_causal, **sizes)), 2e-2, 2e-2)
