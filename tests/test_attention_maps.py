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
"""The maps of `output_attentions=True`: that they sum to one, keep the definition's zeros, and make the output."""

import pytest
import torch
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)
from transformers.testing_utils import CaptureLogger
from transformers.utils.logging import warning_once

from common import random_ids, randomize, tiny_config, tiny_model
from modeling_latent import LatentAttentionForMaskedLM, LatentAttentionModel, attention_maps
from modeling_latent.cache_name import CACHE_NAME, cache_of


C, M, H, S = 4, 3, 4, 2
MAPS = ("attentions", "compression_attentions", "refinement_attentions", "local_attentions")


def eager_model(**overrides) -> LatentAttentionModel:
    config = tiny_config(attn_implementation="eager", **overrides)
    return randomize(LatentAttentionModel(config)).double().eval()


def maps(model, input_ids, **kwargs):
    with torch.no_grad():
        return model(input_ids, output_attentions=True, **kwargs)


def assert_sums(weights, expected=1.0):
    torch.testing.assert_close(weights.sum(-1), torch.full_like(weights.sum(-1), expected))


@pytest.mark.parametrize("length", [3, 4, 5, 11, 12])
def test_causal_maps_sum_to_one_and_are_zero_where_the_definition_forbids(length):
    chunks = -(-length // C)
    outputs = maps(eager_model(layer_pattern=["both"], num_sink_tokens=S), random_ids(2, length))
    for layer in zip(*(outputs[name] for name in MAPS), strict=True):
        retrieval, compression, refinement, local = layer
        assert retrieval.shape == (2, H, length, M)
        assert compression.shape == (2, chunks, H, M, length)
        assert refinement.shape == (2, chunks, H, M, M)
        assert local.shape == (2, H, length, S + 2 * C)
        for weights in (retrieval, refinement, local):
            assert_sums(weights)
        for n in range(chunks):
            assert_sums(compression[:, n], float(n > 0))
            assert (compression[:, n, ..., n * C :] == 0).all()
            assert (compression[:, n, ..., : n * C] > 0).all()
        for t in range(length):
            for slot in range(S + 2 * C):
                position = (t // C - 1) * C + slot - S
                allowed = t >= 2 * C if slot < S else 0 <= position <= t
                assert (local[:, :, t, slot] > 0).all() == allowed
                assert (local[:, :, t, slot] == 0).all() != allowed


def test_bidirectional_maps_read_every_token():
    outputs = maps(eager_model(is_causal=False, layer_pattern=["both"]), random_ids(2, 10))
    assert outputs.compression_attentions[0].shape == (2, 1, H, M, 10)
    assert outputs.refinement_attentions[0].shape == (2, 1, H, M, M)
    assert outputs.local_attentions[0].shape == (2, H, 10, 3 * C)
    for name in MAPS:
        for weights in outputs[name]:
            assert_sums(weights)
    assert (outputs.compression_attentions[1] > 0).all()


def multiply(weights, values, config):
    """`(..., H, Q, S)` times `(..., S, Hkv d)` to `(..., Q, H d)`, as the input of `o_proj`."""
    values = values.unflatten(-1, (config.num_key_value_heads, -1)).transpose(-3, -2)
    values = values.repeat_interleave(config.num_attention_heads // config.num_key_value_heads, dim=-3)
    return (weights @ values).transpose(-3, -2).flatten(-2)


@pytest.mark.parametrize("is_causal", [True, False])
def test_maps_multiply_back_to_the_layers_output(is_causal):
    """From what compression's `v_proj` makes of the tokens, the maps alone give what the layer adds to them."""
    length, chunks = 10, 3
    model = eager_model(is_causal=is_causal)
    layer, seen = model.layers[0].latent_attention, {}
    layer.input_to_latent.v_proj.register_forward_hook(lambda *call: seen.update(values=call[2]))
    layer.register_forward_hook(lambda module, args, output: seen.update(output=output[0]))
    outputs = maps(model, random_ids(2, length))
    retrieval, compression, refinement = (outputs[name][0] for name in MAPS[:3])
    with torch.no_grad():
        values = seen["values"].reshape(2, 1, chunks * C, -1)[:, :, :length]
        read = layer.input_to_latent.o_proj(multiply(compression, values, model.config))  # (B, N, M, D)
        latents = layer.latents + read
        values = layer.latent_self.v_proj(layer.refine_norm(latents))
        latents = latents + layer.latent_self.o_proj(multiply(refinement, values, model.config))
        values = layer.latent_to_input.v_proj(layer.readout_norm(latents))
        for n in range(chunks):
            tokens = slice(n * C, min((n + 1) * C, length))
            memory = values[:, n if is_causal else 0]
            added = layer.latent_to_input.o_proj(multiply(retrieval[:, :, tokens], memory, model.config))
            slots = slice(0, added.shape[1])
            torch.testing.assert_close(added, seen["output"][:, n, slots])


@pytest.mark.parametrize("sinks", [0, S])
def test_local_map_multiplies_back_to_local_attention(sinks):
    model, seen, chunks = eager_model(num_sink_tokens=sinks), {}, 4
    local = model.layers[0].local_attention
    local.v_proj.register_forward_hook(lambda *call: seen.update(values=call[2]))
    local.register_forward_hook(lambda *call: seen.update(output=call[2][0]))
    weights = maps(model, random_ids(1, chunks * C)).local_attentions[0]
    values = seen["values"].reshape(1, chunks * C, -1)  # (B, T, Hkv d)
    behind_nothing = torch.cat([torch.zeros_like(values[:, :C]), values], dim=1)
    for n in range(chunks):
        window = torch.cat([values[:, :sinks], behind_nothing[:, n * C : (n + 2) * C]], dim=1)  # (B, S + 2C, Hkv d)
        added = local.o_proj(multiply(weights[:, :, n * C : (n + 1) * C], window, model.config))
        torch.testing.assert_close(added, seen["output"][:, n])


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("holes", [[0, 1, 2], [9, 10], [0, 4, 10]], ids=["left", "right", "holes"])
def test_padding_is_read_by_nothing_and_changes_no_map(is_causal, holes):
    model, input_ids = eager_model(is_causal=is_causal, layer_pattern=["both"]), random_ids(2, 11)
    mask = torch.ones(2, 11, dtype=torch.long)
    mask[0, holes] = 0
    real = mask[0].bool()
    padded = maps(model, input_ids, attention_mask=mask)
    alone = maps(model, input_ids[:1, real])
    chunks = alone.compression_attentions[0].shape[1]
    for layer in range(2):
        compression = padded.compression_attentions[layer][0]
        assert (compression[..., ~real] == 0).all()
        torch.testing.assert_close(compression[:chunks][..., real], alone.compression_attentions[layer][0])
        torch.testing.assert_close(padded.attentions[layer][0][:, real], alone.attentions[layer][0])
        torch.testing.assert_close(
            padded.refinement_attentions[layer][0, :chunks], alone.refinement_attentions[layer][0]
        )


@pytest.mark.parametrize("is_causal", [True, False])
def test_packed_documents_do_not_read_each_other(is_causal):
    model, lengths = eager_model(is_causal=is_causal), (6, 9)
    documents = [random_ids(1, length, seed=length) for length in lengths]
    position_ids = torch.cat([torch.arange(length) for length in lengths])[None]
    packed = maps(model, torch.cat(documents, dim=1), position_ids=position_ids)
    first_token = first_chunk = 0
    for i, (document, length) in enumerate(zip(documents, lengths, strict=True)):
        alone, chunks = maps(model, document), -(-length // C) if is_causal else 1
        own = slice(first_token, first_token + length)
        at = slice(first_chunk, first_chunk + chunks) if is_causal else slice(0, 1)
        compression = packed.compression_attentions[1][:, at]
        torch.testing.assert_close(compression[..., own], alone.compression_attentions[1])
        if is_causal:
            assert_sums(compression[..., own], 0.0) if chunks == 1 else assert_sums(compression[:, 1:])
            refinement = packed.refinement_attentions[1][:, at]
        else:
            refinement = packed.refinement_attentions[1][i : i + 1]
        torch.testing.assert_close(refinement, alone.refinement_attentions[1])
        first_token, first_chunk = first_token + length, first_chunk + chunks


def test_what_a_cache_holds_is_missing_from_the_sum():
    model, input_ids = eager_model(), random_ids(1, 16)
    whole = maps(model, input_ids).compression_attentions[1]  # (B, 4, H, M, 16)
    start = maps(model, input_ids[:, :6], use_cache=True)
    rest = maps(model, input_ids[:, 6:], cache=cache_of(start)).compression_attentions[1]
    # The first chunk of the continued grid is the one in progress: chunk 1 of the whole.
    torch.testing.assert_close(rest[:, : whole.shape[1] - 1], whole[:, 1:, ..., 6:])


def test_a_step_of_decoding_gives_what_belongs_to_tokens():
    model, input_ids = eager_model(num_sink_tokens=S), random_ids(2, 9)
    whole = maps(model, input_ids)
    cache = cache_of(maps(model, input_ids[:, :8], use_cache=True))
    step = maps(model, input_ids[:, 8:], cache=cache)
    assert step.compression_attentions is None
    assert step.refinement_attentions is None
    assert not {"compression_attentions", "refinement_attentions"} & step.keys()
    for name in ("attentions", "local_attentions"):
        for ours, theirs in zip(step[name], whole[name], strict=True):
            torch.testing.assert_close(ours, None if theirs is None else theirs[:, :, 8:])


def test_language_models_pass_the_maps_on():
    causal = tiny_model(attn_implementation="eager")
    config = tiny_config(is_causal=False, attn_implementation="eager")
    masked = randomize(LatentAttentionForMaskedLM(config)).eval()
    for model in (causal, masked):
        ours, base = (maps(part, random_ids(1, 9)) for part in (model, model.model))
        for name in MAPS:
            torch.testing.assert_close(ours[name], base[name])
    causal.config.output_attentions = True
    assert causal(random_ids(1, 9)).local_attentions is not None
    assert causal(random_ids(1, 9), output_attentions=False).local_attentions is None


@pytest.mark.skipif(CACHE_NAME != "cache", reason="older versions leave out the places of the others")
def test_only_the_hidden_states_that_are_asked_for_are_returned():
    model, input_ids = eager_model(), random_ids(1, 9)
    expected = model(input_ids, output_hidden_states=True).hidden_states
    found = model(input_ids, output_hidden_states=[1]).hidden_states
    assert [state is None for state in found] == [True, False, True]
    torch.testing.assert_close(found[1], expected[1])


def test_maps_are_of_the_models_dtype():
    with torch.no_grad():
        outputs = eager_model().bfloat16()(random_ids(1, 9), output_attentions=True)
    assert {weights[1].dtype for weights in (outputs[name] for name in MAPS)} == {torch.bfloat16}


@pytest.mark.parametrize(
    "auto_class",
    [AutoModelForQuestionAnswering, AutoModelForSequenceClassification, AutoModelForTokenClassification],
)
def test_task_heads_return_what_tokens_read(auto_class):
    model = randomize(auto_class.from_config(tiny_config(attn_implementation="eager"))).eval()
    settings = {"output_attentions": True, "output_hidden_states": True}
    ours, base = (part(random_ids(1, 9), **settings) for part in (model, model.base_model))
    for name in ("attentions", "hidden_states"):
        torch.testing.assert_close(ours[name], base[name])


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("pattern", [["local", "latent", "both"], ["latent"], ["local"]], ids="-".join)
def test_maps_of_an_attention_that_a_layer_does_not_have_are_over_nothing(pattern, is_causal):
    model = eager_model(layer_pattern=pattern, num_hidden_layers=3, is_causal=is_causal)
    whole, everywhere = maps(model, random_ids(2, 9)), maps(eager_model(is_causal=is_causal), random_ids(2, 9))
    for name in MAPS:
        without, last = ("latent", -1) if name == "local_attentions" else ("local", -2)
        for weights, kind in zip(whole[name], model.config.layer_kinds, strict=True):
            full = everywhere[name][0].shape  # of a layer of the kind "both"
            assert (weights.shape == full) == (kind != without)
            assert (weights.numel() == 0) == (kind == without)
            assert weights.ndim == len(full) and weights.shape[:last] == full[:last]


def test_fused_attention_has_no_weights_and_says_so():
    warning_once.cache_clear()  # an earlier test may have had the warning
    with CaptureLogger(attention_maps.logger) as captured:
        outputs = tiny_model(attn_implementation="sdpa")(random_ids(1, 9), output_attentions=True)
    assert "`attn_implementation` is 'sdpa', which has no attention weights" in captured.out
    assert outputs.attentions == ()
    assert outputs.compression_attentions is outputs.refinement_attentions is outputs.local_attentions is None
