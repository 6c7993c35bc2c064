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
"""Training, and saving and loading in all the ways of the library."""

import functools
import itertools
import math
import re
from pathlib import Path

import accelerate
import onnxruntime
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import distributed
from torch.distributed.tensor import DTensor
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    DataCollatorWithFlattening,
    DynamicCache,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.distributed import DistributedConfig

from common import random_ids, randomize, tiny_config, tiny_model
from modeling_latent import (
    LatentAttention,
    LatentAttentionForCausalLM,
    LatentAttentionForMaskedLM,
    LatentAttentionModel,
)
from modeling_latent.cache_name import CACHE_NAME, cache_of
from modeling_latent.prefix_statistics import Statistics, merge, repeated_at_random
from ranks import run_ranks


VOCAB = 31
LENGTH = 14  # three complete chunks of 4 tokens and a half


@pytest.fixture(autouse=True)
def fixed_seed():
    set_seed(0)


def close(actual, expected, atol: float = 1e-5):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=atol, check_dtype=False)


def gradients(model: torch.nn.Module, **inputs) -> dict[str, torch.Tensor | None]:
    """Of the loss, by parameter; `None` for those that the loss does not depend on."""
    model.zero_grad(set_to_none=True)
    model(**inputs).loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def padded_batch() -> dict[str, torch.Tensor]:
    """Three rows, one padded on the left, one on the right."""
    input_ids = random_ids(3, LENGTH)
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, :5] = 0
    attention_mask[2, -3:] = 0
    labels = input_ids.where(attention_mask.bool(), -100)
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


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


def train_beside_another(folder: Path) -> dict:
    """One of two processes: the first has rows of several chunks, the second rows of one."""
    model = DistributedDataParallel(tiny_model().train())
    input_ids = random_ids(2, (LENGTH, 3)[distributed.get_rank()])
    for _ in range(2):
        model.zero_grad()
        model(input_ids, labels=input_ids).loss.backward()
    return {name: parameter.grad for name, parameter in model.module.named_parameters()}


def test_two_processes_of_which_one_has_short_rows_take_the_mean_of_their_gradients(tmp_path):
    found = run_ranks(train_beside_another, tmp_path, 2)
    model, parts = tiny_model().train(), []
    for length in (LENGTH, 3):
        input_ids = random_ids(2, length)
        parts.append(gradients(model, input_ids=input_ids, labels=input_ids))
    expected = {name: (gradient + parts[1][name]) / 2 for name, gradient in parts[0].items()}
    for of_rank in found:
        close(of_rank, expected, atol=1e-6)


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


def test_inputs_embeds_equal_their_ids_and_get_a_gradient():
    model, input_ids = tiny_model(), random_ids(2, LENGTH)
    embeds = model.get_input_embeddings()(input_ids).detach().requires_grad_()
    outputs = model(inputs_embeds=embeds, labels=input_ids)
    close(outputs.logits, model(input_ids).logits)
    outputs.loss.backward()
    assert embeds.grad[:, :-1].abs().amax(-1).gt(0).all()  # the last token predicts nothing


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


# torch.compile


@pytest.fixture
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def one_layer(**overrides) -> LatentAttentionForCausalLM:
    """With both attentions: what is compiled or traced is then small, and has everything."""
    return tiny_model(num_hidden_layers=1, layer_pattern=["both"], **overrides)


def in_direction(is_causal: bool) -> dict:
    """What is read in both directions has no sinks."""
    return {"is_causal": is_causal, "num_sink_tokens": 2 if is_causal else 0}


def assert_compiled_equals_eager(model: LatentAttentionForCausalLM, **inputs):
    expected_loss, expected = model(**inputs).loss, gradients(model, **inputs)
    model.zero_grad(set_to_none=True)
    # Captures the forward and the backward whole; which code is then made of the graphs is not this model's matter.
    loss = torch.compile(model, fullgraph=True, backend="aot_eager")(**inputs).loss
    loss.backward()
    close(loss, expected_loss)
    close({name: parameter.grad for name, parameter in model.named_parameters()}, expected)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("is_causal", [True, False])
def test_compiled_forward_and_backward_equal_eager(is_causal, padded, fresh_compiler):
    inputs = padded_batch()
    if not padded:
        del inputs["attention_mask"]
    assert_compiled_equals_eager(one_layer(**in_direction(is_causal)).train(), **inputs)


def test_compiled_packed_documents_equal_eager(fresh_compiler):
    collator = DataCollatorWithFlattening(return_position_ids=False, return_flash_attn_kwargs=True)
    batch = collator([{"input_ids": random_ids(length).tolist()} for length in (5, 8, 1)])
    assert_compiled_equals_eager(one_layer(num_sink_tokens=2).train(), **batch)


def test_compiled_takes_position_ids_that_do_not_restart_and_refuses_others(fresh_compiler):
    model, input_ids = one_layer(), random_ids(1, LENGTH)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    position_ids = torch.arange(LENGTH)[None]
    close(compiled(input_ids, position_ids=position_ids, use_cache=False).logits, model(input_ids).logits)
    with pytest.raises(RuntimeError, match="cu_seq_lens_q"):
        compiled(input_ids, position_ids=position_ids % 5, use_cache=False)


def test_compiled_refuses_what_it_would_silently_read_as_one_sequence(fresh_compiler):
    model, input_ids = one_layer(), random_ids(1, 12)
    compiled = torch.compile(model, backend="eager")
    cache = DynamicCache(config=model.config)
    model(input_ids, cache=cache)
    with pytest.raises(RuntimeError, match="`position_ids` start anew"):
        compiled(input_ids, position_ids=torch.arange(12)[None], cache=cache)
    with pytest.raises(RuntimeError, match="`cu_seq_lens_q` must be rising places in the row of 12 tokens"):
        compiled(input_ids, cu_seq_lens_q=torch.tensor([0, 5, 13]), use_cache=False)


@pytest.mark.parametrize("lengths", [[5, 1, 6], [1, 1, 1]], ids=str)  # the second needs all the room there is
def test_compiled_takes_sequences_that_do_not_make_up_the_row(lengths, fresh_compiler):
    model, input_ids = one_layer(), random_ids(1, sum(lengths))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    inner = torch.tensor(lengths).cumsum(0)[:-1]
    logits = compiled(input_ids, cu_seq_lens_q=inner, use_cache=False).logits
    close(logits, torch.cat([model(part).logits for part in input_ids.split(lengths, dim=1)], dim=1))


def test_compiled_takes_a_mask_of_floats(fresh_compiler):
    """Whose values it can't look at."""
    model, batch = one_layer(), padded_batch()
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"].float(), "use_cache": False}
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    close(compiled(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize("padded", [False, True])
def test_one_graph_serves_all_batch_sizes_and_lengths(padded, fresh_compiler):
    model, graphs = one_layer(num_sink_tokens=2), []

    def counting(graph, example_inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=counting)
    # Without a mask, lengths that fill their last chunk are the plainer case and get a graph of their own.
    for batch, length in ((2, 14), (3, 9), (5, 33)):
        inputs = {"input_ids": random_ids(batch, length)}
        if padded:
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"]).tril(length - 3)
        with torch.no_grad():
            close(compiled(**inputs, use_cache=False).logits, model(**inputs).logits)
    assert len(graphs) == 1


# Packed documents


@pytest.mark.parametrize("lengths", [(5, 8, 1, 13), (4, 8, 4), (1, 1, 3), (9,)])
@pytest.mark.parametrize("sent", ["position_ids", "position_ids_from_2", "cu_seq_lens", "both", "seq_idx"])
@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("kernel", [0, 4])
def test_packed_documents_equal_the_documents_one_by_one(lengths, sent, is_causal, kernel):
    model = tiny_model(dtype=torch.float64, is_causal=is_causal, conv_kernel_size=kernel)
    documents = [random_ids(length, seed=length) for length in lengths]
    collator = DataCollatorWithFlattening(
        return_position_ids="position_ids" in sent or sent == "both",
        return_flash_attn_kwargs=sent in ("cu_seq_lens", "both"),
        return_seq_idx=sent == "seq_idx",
    )
    batch = collator([{"input_ids": document.tolist()} for document in documents])
    if sent == "position_ids_from_2":  # the collator's `position_ids_start`
        batch["position_ids"] += 2
    tokens = sum(length - 1 for length in lengths)  # that a label is known for

    packed = gradients(model, **batch, num_items_in_batch=tokens)
    outputs = model(**batch, num_items_in_batch=tokens)
    model.zero_grad(set_to_none=True)
    alone = [model(document[None], labels=document[None], num_items_in_batch=tokens) for document in documents]
    loss = sum(output.loss for output in alone)
    loss.backward()
    close(outputs.logits, torch.cat([output.logits for output in alone], dim=1), atol=1e-9)
    close(outputs.loss, loss, atol=1e-6)  # the library computes it in float32
    for name, parameter in model.named_parameters():
        expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        actual = torch.zeros_like(parameter) if packed[name] is None else packed[name]
        close(actual, expected, atol=1e-6)


@pytest.mark.parametrize("packed", [{"cu_seq_lens_q": torch.tensor([0, 2, 5])}, {"seq_idx": torch.ones(1, 5)}])
def test_packed_documents_beside_a_filled_cache_are_refused(packed):
    model = tiny_model()
    cache = cache_of(model(random_ids(1, 6), use_cache=True))
    with pytest.raises(ValueError, match=f"`{CACHE_NAME}` holds tokens"):
        model(random_ids(1, 5), cache=cache, **packed)


# Embeddings


@pytest.mark.parametrize("size", [40, 20])
@pytest.mark.parametrize("tied", [True, False])
def test_resized_embeddings_keep_the_old_logits_and_survive_saving(tied, size, tmp_path):
    model, input_ids = tiny_model(tie_word_embeddings=tied), random_ids(2, LENGTH, vocab_size=20)
    before = model(input_ids).logits
    model.resize_token_embeddings(size)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    logits = model(input_ids, labels=input_ids).logits
    assert logits.shape == (2, LENGTH, size)
    close(logits[..., :20], before[..., :20])
    model.save_pretrained(tmp_path)
    loaded = LatentAttentionForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.vocab_size == size
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied
    assert torch.equal(loaded(input_ids).logits, logits)


# Saving and loading


@pytest.fixture
def sharded(tmp_path) -> tuple[LatentAttentionForCausalLM, Path]:
    model = tiny_model()
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    return model, tmp_path


@pytest.mark.parametrize("device_map", [None, "cpu", "auto", {"": "cpu"}])
def test_shards_load_on_any_device_map(device_map, sharded):
    model, folder = sharded
    input_ids = random_ids(2, LENGTH)
    loaded = LatentAttentionForCausalLM.from_pretrained(folder, device_map=device_map)
    close(loaded(input_ids.to(loaded.device)).logits.cpu(), model(input_ids).logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_dtype_auto_is_the_saved_one(dtype, tmp_path):
    tiny_model(dtype=dtype).save_pretrained(tmp_path)
    loaded = LatentAttentionForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}


def test_a_device_map_never_splits_a_block():
    """Its parts would meet on two devices, at the residual connections."""
    model = tiny_model(num_hidden_layers=4, layer_pattern=["both"])
    nbytes = sum(tensor.nbytes for tensor in model.model.layers[0].parameters())
    memory = {"cpu": model.model.embed_tokens.weight.nbytes + 5 * nbytes // 2, "disk": 10**9}
    device_map = accelerate.infer_auto_device_map(model, memory, no_split_module_classes=model._no_split_modules)
    blocks = {name: device for name, device in device_map.items() if name.startswith("model.layers")}
    assert blocks.keys() == {f"model.layers.{index}" for index in range(4)}
    assert set(blocks.values()) == {"cpu", "disk"}


def test_layers_offloaded_to_disk_give_the_same_logits_and_text(sharded, tmp_path):
    model, folder = sharded
    input_ids = random_ids(2, LENGTH)
    device_map = {"model.embed_tokens": "cpu", "model.norm": "cpu", "lm_head": "cpu"}
    device_map |= {"model.layers.0": "disk", "model.layers.1": "cpu"}
    loaded = LatentAttentionForCausalLM.from_pretrained(
        folder, device_map=device_map, offload_folder=tmp_path / "offloaded"
    )
    assert loaded.model.layers[0].latent_attention.latents.device.type == "meta"
    assert torch.equal(loaded(input_ids).logits, model(input_ids).logits)
    options = {"max_new_tokens": 9, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(loaded.generate(input_ids, **options), model.generate(input_ids, **options))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("make_empty", [lambda: torch.device("meta"), accelerate.init_empty_weights])
def test_a_model_on_the_meta_device_takes_a_state_dict(make_empty, tied):
    model, input_ids = tiny_model(tie_word_embeddings=tied), random_ids(2, LENGTH)
    with make_empty():
        empty = LatentAttentionForCausalLM(model.config).eval()
    assert all(tensor.device.type == "meta" for tensor in (*empty.parameters(), *empty.buffers()))
    empty.load_state_dict(model.state_dict(), assign=True)
    assert torch.equal(empty(input_ids).logits, model(input_ids).logits)


def test_an_empty_model_is_loaded_and_dispatched_by_accelerate(sharded):
    model, folder = sharded
    input_ids = random_ids(2, LENGTH)
    with accelerate.init_empty_weights():
        empty = LatentAttentionForCausalLM(model.config).eval()
    loaded = accelerate.load_checkpoint_and_dispatch(empty, folder, device_map="auto")
    close(loaded(input_ids.to(loaded.device)).logits.cpu(), model(input_ids).logits)


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_weights_offloaded_by_accelerate_give_the_same_logits(where, tmp_path):
    model, input_ids = tiny_model(), random_ids(2, LENGTH)
    expected = model(input_ids).logits
    if where == "memory":
        accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    else:
        accelerate.disk_offload(model, tmp_path, execution_device=torch.device("cpu"))
    assert all(parameter.device.type == "meta" for parameter in model.parameters())
    assert torch.equal(model(input_ids).logits, expected)


# Initialisation

WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_latents": 64, "initializer_range": 0.03}
UNIT = 256**-0.5
BRANCH = 0.03 / 6**0.5  # two layers of up to three branches
STD = {
    r"latents": 1.0,
    r"[qkv]_proj\.weight|input_to_latent\.o_proj\.weight|(gate|up)_proj\.weight": UNIT,
    r"latent_self\.o_proj\.weight": 0.1 * UNIT,
    r"(local_attention|latent_to_input)\.o_proj\.weight": BRANCH * UNIT,
    r"down_proj\.weight": BRANCH * 512**-0.5,
    r"(embed_tokens|lm_head)\.weight": 0.03,
    r"latent_attention\.token_conv\.weight": 1.0,
    r"mlp\.token_conv\.weight": 3**-0.5,
    r"bias": 0.0,
}


def assert_initialised(name: str, parameter: torch.Tensor):
    if name.endswith("norm.weight"):
        assert (parameter == 1).all(), name
        return
    (std,) = [std for pattern, std in STD.items() if re.search(rf"(^|\.)({pattern})$", name)]
    # The smallest, the convolution, has 1,024 elements: their standard deviation is within 2 % of its own.
    assert parameter.std().item() == pytest.approx(std, rel=0.1), name
    assert abs(parameter.mean().item()) <= 0.1 * std, name


@pytest.mark.parametrize("layer_pattern", [["local", "both"], ["both"], ["local", "latent"]], ids="-".join)
def test_fresh_parameters_follow_the_table(layer_pattern):
    """Whatever a layer leaves out, the others start as they do beside it."""
    settings = {"layer_pattern": layer_pattern, "vocab_size": 100, "attention_bias": True, "qk_norm": True}
    model = LatentAttentionForCausalLM(tiny_config(**WIDE, **settings))
    for name, parameter in model.named_parameters():
        assert_initialised(name, parameter)


@pytest.mark.parametrize("pad_token_id", [0, VOCAB - 1])
def test_the_embedding_of_padding_is_zero_and_gets_no_gradient(pad_token_id):
    model = LatentAttentionModel(tiny_config(pad_token_id=pad_token_id))
    embeddings, other = model.embed_tokens.weight, torch.arange(VOCAB) != pad_token_id
    model(torch.arange(VOCAB)[None]).last_hidden_state.square().sum().backward()
    for rows in (embeddings, embeddings.grad):
        assert not rows[pad_token_id].any() and rows[other].any(-1).all()


def test_missing_parameters_follow_the_table_and_loaded_ones_stay(tmp_path):
    saved = randomize(LatentAttentionForCausalLM(tiny_config(**WIDE, vocab_size=100, attention_bias=True)))
    saved.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(file).items() if ".layers.0." not in name}
    kept = {name: tensor for name, tensor in kept.items() if not re.search(r"lm_head|layers\.1.*(latents|conv)", name)}
    save_file(kept, file, metadata={"format": "pt"})
    loaded = LatentAttentionForCausalLM.from_pretrained(tmp_path)
    for name, parameter in loaded.named_parameters():
        if name in kept:
            assert torch.equal(parameter, kept[name]), name
        else:
            assert_initialised(name, parameter)


# torch.export


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("padded", [False, True])
def test_exported_forward_equals_eager(is_causal, padded):
    model, inputs = tiny_model(**in_direction(is_causal)), padded_batch()
    inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")[: 1 + padded]}
    program = torch.export.export(model, (), {**inputs, "use_cache": False}, strict=False)
    close(program.module()(**inputs, use_cache=False).logits, model(**inputs).logits)


def test_exported_forward_takes_other_batch_sizes_and_lengths():
    model = one_layer(num_sink_tokens=2)
    shapes = {"input_ids": {0: torch.export.Dim("batch"), 1: torch.export.Dim.AUTO}, "use_cache": None}
    inputs = {"input_ids": random_ids(2, LENGTH), "use_cache": False}
    program = torch.export.export(model, (), inputs, dynamic_shapes=shapes, strict=False)
    for batch, length in ((3, 9), (1, 33)):  # as the one it was made with, not multiples of the chunk
        input_ids = random_ids(batch, length)
        close(program.module()(input_ids=input_ids, use_cache=False).logits, model(input_ids).logits)


@pytest.mark.parametrize("is_causal", [True, False])
def test_onnx_gives_the_same_at_any_batch_size_and_length(is_causal, tmp_path):
    model = one_layer(**in_direction(is_causal), use_cache=False)
    inputs = {name: padded_batch()[name] for name in ("input_ids", "attention_mask")}
    torch.onnx.export(
        model,
        (),
        tmp_path / "model.onnx",
        kwargs=inputs,
        dynamic_shapes={name: {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO} for name in inputs},
        dynamo=True,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for rows, tokens in ((3, LENGTH), (1, 9), (2, 33), (2, 16)):
        input_ids, mask = random_ids(rows, tokens), torch.ones(rows, tokens, dtype=torch.long)
        mask[0, :2] = 0
        feed = {"input_ids": input_ids.numpy(), "attention_mask": mask.numpy()}
        logits = torch.from_numpy(session.run(None, feed)[0])
        expected = model(input_ids, attention_mask=mask).logits
        close(logits[mask.bool()], expected[mask.bool()], atol=1e-4)


@pytest.mark.filterwarnings("ignore")  # tracing warns of every shape that it takes for a constant
def test_a_trace_made_with_a_full_mask_takes_padding():
    class Logits(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, input_ids, attention_mask):
            return self.model(input_ids, attention_mask=attention_mask, use_cache=False).logits

    model, inputs = one_layer(num_sink_tokens=2), padded_batch()
    input_ids, mask = inputs["input_ids"], inputs["attention_mask"]
    traced = torch.jit.trace(Logits(model), (input_ids, torch.ones_like(mask)), check_trace=False)
    close(traced(input_ids, mask)[mask.bool()], model(input_ids, mask).logits[mask.bool()])


# Trainer

TEXT = b"the quick brown fox jumps over the lazy dog. "


def text_dataset(rows: int = 8) -> list[dict[str, list[int]]]:
    """Pieces of one repeated sentence as bytes less 32. Rows have labels in different numbers."""
    ids = [max(byte - 32, 0) for byte in TEXT * 3]
    pieces = [ids[start : start + 32] for start in range(0, 5 * rows, 5)]
    return [{"input_ids": piece, "labels": [-100] * (3 * row) + piece[3 * row :]} for row, piece in enumerate(pieces)]


def make_trainer(folder, **arguments) -> Trainer:
    set_seed(0)
    settings = {
        "max_steps": 20,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 0,
    }
    arguments = TrainingArguments(folder, **{**settings, **arguments})
    pattern = ["local", "both"]  # of the ready-made configurations, which learn a language sooner with it
    model = LatentAttentionForCausalLM(tiny_config(vocab_size=96, hidden_size=32, chunk_size=8, layer_pattern=pattern))
    return Trainer(model, arguments, train_dataset=text_dataset(), eval_dataset=text_dataset(2))


def losses(trainer: Trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_trainer_overfits_evaluates_saves_and_resumes(tmp_path):
    trainer = make_trainer(tmp_path, save_strategy="steps", save_steps=10)
    trainer.train()
    steps = losses(trainer)
    assert len(steps) == 20
    # Any of 96 tokens is a loss of log(96) = 4.56; it has to be less than half of that.
    assert steps[0] > 4 and steps[-1] < 2.28
    evaluated = trainer.evaluate()["eval_loss"]
    assert evaluated < 2.28

    trainer.save_model(tmp_path / "model")
    saved = make_trainer(tmp_path / "other")
    saved.model = LatentAttentionForCausalLM.from_pretrained(tmp_path / "model")
    assert saved.evaluate()["eval_loss"] == pytest.approx(evaluated, abs=1e-6)

    resumed = make_trainer(tmp_path)
    resumed.train(resume_from_checkpoint=tmp_path / "checkpoint-10")
    assert losses(resumed)[10:] == pytest.approx(steps[10:], abs=1e-6)


def test_trainer_evaluates_a_left_padded_batch_as_the_rows_alone(tmp_path):
    """It counts the labels by itself, also those that do not count, of tokens behind left padding."""
    trainer, batch = make_trainer(tmp_path), padded_batch()
    trainer.model = tiny_model()
    trainer.eval_dataset = [dict(zip(batch, row, strict=True)) for row in zip(*batch.values(), strict=True)]
    rows = [row[mask.bool()][None] for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    summed = sum(trainer.model(row, labels=row).loss.item() * (row.shape[1] - 1) for row in rows)
    expected = summed / sum(row.shape[1] - 1 for row in rows)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, abs=1e-5)


def test_a_batch_without_anything_to_predict_has_no_loss():
    model, mask = tiny_model(), torch.tensor([[0, 0, 1]])
    assert model(random_ids(1, 3), mask, labels=random_ids(1, 3), num_items_in_batch=2).loss == 0


def test_gradient_accumulation_equals_a_big_batch(tmp_path):
    settings = {"max_steps": 3, "learning_rate": 1e-3}
    whole = make_trainer(tmp_path, **settings)
    whole.train()
    parts = make_trainer(tmp_path, **settings, per_device_train_batch_size=1, gradient_accumulation_steps=4)
    parts.train()
    assert losses(parts) == pytest.approx(losses(whole), abs=1e-4)
    close(dict(parts.model.named_parameters()), dict(whole.model.named_parameters()), atol=1e-4)


@pytest.mark.parametrize(
    "auto_class", [AutoModelForCausalLM, AutoModelForSequenceClassification, AutoModelForTokenClassification]
)
def test_every_loss_is_a_mean_however_gradients_are_accumulated(auto_class, tmp_path):
    def trained(**arguments) -> dict[str, torch.Tensor]:
        # Clipping would hide the size of a gradient.
        trainer = make_trainer(tmp_path, max_steps=1, optim="sgd", max_grad_norm=0.0, **arguments)
        trainer = Trainer(randomize(auto_class.from_config(tiny_config())), trainer.args, train_dataset=rows)
        trainer.train()
        return dict(trainer.model.named_parameters())

    ids = random_ids(8, 9).tolist()
    labels = [sum(row) % 2 for row in ids] if "Sequence" in auto_class.__name__ else [[0, 1, 1] * 3] * 8
    rows = [{"input_ids": row, "labels": label} for row, label in zip(ids, labels, strict=True)]
    parts = trained(per_device_train_batch_size=1, gradient_accumulation_steps=4)
    close(parts, trained(per_device_train_batch_size=4), atol=1e-4)


def test_label_smoothing_is_of_the_next_token(tmp_path):
    """So little of it that the loss is that without, which the model shifts by itself."""
    trainer = make_trainer(tmp_path, label_smoothing_factor=1e-6)
    batch = {"input_ids": random_ids(2, 9), "labels": random_ids(2, 9)}
    close(trainer.compute_loss(trainer.model, dict(batch)), trainer.model(**batch).loss, atol=1e-4)


# Parallel plans


def test_the_tensor_parallel_plan_names_every_linear_layer_of_a_block_and_nothing_else():
    model = tiny_model().model
    named = set(model.config.base_model_tp_plan)
    linear = {name for name, module in model.layers.named_modules() if isinstance(module, torch.nn.Linear)}
    assert named == {re.sub(r"^\d+", "layers.*", name) for name in linear}


def run_in_parallel(folder: Path, plan: dict, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple:
    """One of two processes that share a model: its logits, generated tokens and gradients."""
    model = LatentAttentionForCausalLM.from_pretrained(folder, distributed_config=DistributedConfig(**plan))
    whole = [name for name, tensor in model.named_parameters() if not isinstance(tensor, DTensor)]
    outputs = model(input_ids, attention_mask=attention_mask, labels=input_ids)
    grads = {}
    if outputs.loss is not None:  # a pipeline has none
        outputs.loss.backward()
        grads = {name: tensor.grad for name, tensor in model.named_parameters()}
        grads = {name: grad.full_tensor() if isinstance(grad, DTensor) else grad for name, grad in grads.items()}
    generated = model.generate(input_ids, attention_mask=attention_mask, **GREEDY)
    return outputs.logits.detach(), generated, grads, whole


GREEDY = {"max_new_tokens": 9, "do_sample": False, "pad_token_id": 0}
PLANS = {"tensor": {"tp_plan": "auto"}, "sharded": {"fsdp_size": 2}, "pipeline": {"pp_size": 2}}


@pytest.mark.parametrize(("parallel", "tied"), [("tensor", False), ("sharded", True), ("pipeline", True)])
def test_two_processes_that_share_a_model_equal_one(parallel, tied, tmp_path):
    model, input_ids = tiny_model(vocab_size=32, tie_word_embeddings=tied), random_ids(2, LENGTH)
    inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
    inputs["attention_mask"][0, :3] = 0
    real = inputs["attention_mask"].bool()
    model.save_pretrained(tmp_path)
    for logits, generated, grads, whole in run_ranks(run_in_parallel, tmp_path, 2, PLANS[parallel], *inputs.values()):
        close(logits[real], model(**inputs).logits[real])
        assert torch.equal(generated, model.generate(**inputs, **GREEDY))
        if parallel == "tensor":
            assert not [name for name in whole if "_proj" in name or "lm_head" in name]
        if parallel == "sharded":
            assert whole == []
        if parallel != "pipeline":
            close(grads, gradients(model, **inputs, labels=input_ids))


def test_the_head_is_in_every_parallel_plan():
    model = tiny_model()
    assert model.tp_plan.keys() >= {"lm_head"} | {f"model.{name}" for name in model.config.base_model_tp_plan}
    assert model.pp_plan.keys() == {"lm_head"} | {f"model.{name}" for name in model.config.base_model_pp_plan}
    assert model.fsdp_plan.keys() == {"lm_head"} | {f"model.{name}" for name in model.config.base_model_fsdp_plan}
    assert "lm_head" in LatentAttentionForMaskedLM(tiny_config(is_causal=False)).tp_plan


def test_the_pipeline_parallel_plan_names_modules_in_the_order_of_the_forward():
    model = tiny_model().model
    assert list(model.config.base_model_pp_plan) == [name for name, _ in model.named_children()]


# PEFT


@pytest.mark.filterwarnings("ignore:.*checkpointing.*:FutureWarning")  # peft asks by the old name
def test_lora_trains_merges_saves_and_loads(tmp_path):
    input_ids = random_ids(2, LENGTH)
    settings = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"])
    model = peft.get_peft_model(tiny_model(), settings)
    before = model(input_ids=input_ids, labels=input_ids).loss.item()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(10):
        model(input_ids=input_ids, labels=input_ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    trained = model.eval()(input_ids=input_ids, labels=input_ids)
    assert trained.loss.item() < before - 0.2
    adapted = {name for name, module in model.named_modules() if hasattr(module, "lora_A")}
    assert len(adapted) == 2 * (1 + 4)  # projections of each attention, in a layer without latents and one with them

    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(tiny_model(), tmp_path)
    close(loaded(input_ids=input_ids).logits, trained.logits, atol=1e-6)
    close(model.merge_and_unload()(input_ids).logits, trained.logits, atol=1e-4)


def two_adapters(**settings) -> peft.PeftModel:
    settings = peft.LoraConfig(task_type="CAUSAL_LM", r=2, init_lora_weights=False, **settings)
    torch.manual_seed(0)
    model = peft.get_peft_model(tiny_model(), settings, adapter_name="one")
    model.add_adapter("two", settings)
    return model.eval()


def test_rows_take_adapters_of_their_own_in_local_attention_and_mlp():
    model = two_adapters(target_modules=r".*\.(local_attention|mlp)\..*_proj")
    input_ids = random_ids(3, LENGTH)
    names = ["two", "one", "two"]
    together = model(input_ids=input_ids, adapter_names=names).logits
    for row, name in enumerate(names):
        model.set_adapter(name)
        close(together[row : row + 1], model(input_ids=input_ids[row : row + 1]).logits, atol=1e-5)


STATES_OF_THREE_DIMENSIONS = {
    "OFT": peft.OFTConfig(target_modules=r".*_proj", oft_block_size=4),
    "GraLoRA": peft.GraloraConfig(target_modules=r".*_proj", r=4, gralora_k=2),
}


@pytest.mark.parametrize("kind", STATES_OF_THREE_DIMENSIONS)
def test_adapters_that_ask_for_three_dimensions_train(kind):
    input_ids = random_ids(2, LENGTH)
    model = peft.get_peft_model(tiny_model(), STATES_OF_THREE_DIMENSIONS[kind])
    before = model(input_ids=input_ids).logits
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        model(input_ids=input_ids, labels=input_ids).loss.backward()
        optimizer.step()
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert [name for name, weight in trained.items() if weight.grad is None] == []
    logits = model.eval()(input_ids=input_ids).logits
    assert (logits - before).abs().max() > 1e-3
    generated = model.generate(input_ids=input_ids, max_new_tokens=1, do_sample=False, pad_token_id=0)
    assert torch.equal(generated[:, -1], logits[:, -1].argmax(-1))


@pytest.mark.parametrize("is_causal", [True, False])
def test_every_linear_layer_gets_three_dimensions(is_causal):
    """As in the library's models, and as LLM.int8 asks for."""
    model, shapes, input_ids = tiny_model(is_causal=is_causal), [], random_ids(2, LENGTH)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(lambda module, args: shapes.append(args[0].shape))
    model(input_ids, attention_mask=torch.ones_like(input_ids))
    model(input_ids, position_ids=torch.arange(LENGTH).remainder(5).expand(2, -1))
    if is_causal:
        model.generate(input_ids, max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert {len(shape) for shape in shapes} == {3}


def test_activated_lora_is_refused():
    """It would act on the wrong tokens."""
    settings = {"target_modules": r".*mlp.*_proj", "task_type": "CAUSAL_LM", "alora_invocation_tokens": [5, 6]}
    model = peft.get_peft_model(tiny_model(), peft.LoraConfig(**settings))
    with pytest.raises(ValueError, match=r"`default` has `alora_invocation_tokens` \[5, 6\], but must have none"):
        model(input_ids=random_ids(2, LENGTH))


def test_rows_are_not_taken_for_latents():
    """A batch of as many rows as there are latents would give each latent the adapter of a row."""
    model = two_adapters(target_modules=["q_proj"])
    with pytest.raises(ValueError, match="Length of `adapter_names` should be the same as the number of inputs"):
        model(input_ids=random_ids(model.config.num_latents, LENGTH), adapter_names=["one", "two", "one"])


@pytest.mark.filterwarnings("ignore")  # of peft, which asks by old names
def test_a_tuned_prompt_stands_in_front_of_the_text_and_learns():
    settings = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=6)
    model = peft.get_peft_model(tiny_model(), settings).eval()
    model.prompt_encoder["default"].embedding.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    base, input_ids = model.get_base_model(), random_ids(2, LENGTH)

    def behind_the_prompt(input_ids: torch.Tensor) -> torch.Tensor:
        inputs_embeds = torch.cat([model.get_prompt(2), base.get_input_embeddings()(input_ids)], dim=1)
        return base(inputs_embeds=inputs_embeds).logits[:, 6:]

    outputs = model(input_ids=input_ids, labels=input_ids)
    close(outputs.logits[:, 6:], behind_the_prompt(input_ids), atol=1e-6)
    outputs.loss.backward()
    assert model.prompt_encoder["default"].embedding.weight.grad.abs().sum(1).min() > 0
    # Without a cache: with one, peft 0.21 inserts the prompt before every token if transformers is 5.24.
    kwargs = {"attention_mask": torch.ones_like(input_ids), "max_new_tokens": 9, "use_cache": False}
    expected = input_ids
    for _ in range(9):
        expected = torch.cat([expected, behind_the_prompt(expected)[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(model.generate(input_ids=input_ids, do_sample=False, **kwargs), expected)
