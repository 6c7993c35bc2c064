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
"""Caches by other names, of other models or of other sizes: which are taken, and in which words others are refused."""

import functools

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, StaticCache

from common import CLOSE, double_model, random_ids
from generating import CACHES, NEW, generate, left_padded
from modeling_latent import cache_latent
from modeling_latent.cache_name import CACHE_NAME, cache_of


# Names


old_name = pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning")


@old_name
@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_a_cache_is_taken_by_either_name(name):
    """As transformers calls it since 5.24, and before."""
    model, prompt = double_model(), random_ids(2, 7)
    expected = model(prompt).logits[:, 5:]
    for step in (model, model.model):
        cache = DynamicCache(config=model.config)
        for piece in prompt.split([5, 1, 1], dim=1):
            outputs = step(piece, **{name: cache})
        assert cache_of(outputs) is cache and cache.get_seq_length() == 7
    torch.testing.assert_close(model.lm_head(outputs.last_hidden_state), expected[:, -1:], **CLOSE)
    inputs = model.prepare_inputs_for_generation(prompt, **{name: cache})
    assert inputs[CACHE_NAME] is cache


@pytest.mark.skipif(CACHE_NAME != "cache", reason="of a version that has no other name")
def test_the_older_name_is_said_to_be_deprecated():
    model = double_model()
    with pytest.warns(FutureWarning, match="`past_key_values` is deprecated: pass `cache`"):
        model(random_ids(1, 5), past_key_values=DynamicCache(config=model.config))


def test_a_cache_by_a_third_name_is_not_ignored():
    model = double_model()
    with pytest.raises(ValueError, match="`cache_params` is a cache, but its name is"):
        model(random_ids(1, 5), cache_params=DynamicCache(config=model.config))


@old_name
def test_two_caches_are_refused():
    model, one, other = double_model(), *(DynamicCache(config=double_model().config) for _ in range(2))
    assert cache_of(model(random_ids(1, 5), cache=one, past_key_values=one)) is one
    for call in (model, model.model, model.prepare_inputs_for_generation):
        with pytest.raises(ValueError, match="two names of the same argument"):
            call(random_ids(1, 5), cache=one, past_key_values=other)


# Models and ways of generation without a cache of that kind


def test_training_with_gradient_checkpointing_keeps_no_cache():
    model, prompt = double_model(), random_ids(2, 6)
    model.gradient_checkpointing_enable()
    expected = generate(model, prompt)
    model.train()
    assert cache_of(model(prompt, use_cache=True)) is None
    with pytest.raises(ValueError, match="gradient checkpointing, whose layers keep no cache"):
        model(prompt, cache=DynamicCache(config=model.config))
    for use_cache in (True, False):  # where there are no gradients, there are no checkpoints
        assert torch.equal(generate(model, prompt, use_cache=use_cache), expected)


def test_a_bidirectional_model_takes_no_cache():
    model = double_model(is_causal=False)
    with pytest.raises(ValueError, match=f"`{CACHE_NAME}` is for causal models"):
        model(random_ids(1, 6), cache=DynamicCache(config=model.config))


def makes_streams() -> bool:
    """Whether there is a stream on the device of these tests, as the library's offloaded caches want one."""
    try:
        torch.Stream(device=torch.accelerator.current_accelerator() or "cpu")
    except RuntimeError:
        return False
    return True


needs_streams = pytest.mark.skipif(not makes_streams(), reason="this version of torch makes no stream on a CPU")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        pytest.param({"cache_implementation": "offloaded"}, "stays on the device", marks=needs_streams),
        pytest.param({"cache_implementation": "offloaded_static"}, "stays on the device", marks=needs_streams),
        ({"cache_implementation": "quantized"}, "QuantizedCache.*latent_attention"),
        (
            {"cache_implementation": "quantized", "cache_config": {"backend": "hqq"}},
            "QuantizedCache.*latent_attention",
        ),
    ],
)
def test_caches_that_it_cannot_have_are_refused(settings, reason):
    with pytest.raises(ValueError, match=reason):
        generate(double_model(), random_ids(1, 6), **settings)


def test_a_tuple_is_no_cache():
    with pytest.raises(ValueError, match=f"`{CACHE_NAME}` is a tuple of 0 layers"):
        double_model()(random_ids(1, 6), cache=())


# Caches of other models


@pytest.mark.parametrize(
    "make",
    [
        lambda: DynamicCache(config=LlamaConfig(num_hidden_layers=2)),
        lambda: StaticCache(config=LlamaConfig(num_hidden_layers=2), max_cache_len=64),
        lambda: DynamicCache(config=double_model(num_hidden_layers=3).config),
    ],
    ids=["Llama", "static Llama", "more layers"],
)
def test_an_empty_cache_made_for_another_model_is_refused(make):
    for call in (double_model(), functools.partial(generate, double_model())):
        with pytest.raises(ValueError, match=r"Pass `DynamicCache\(config=model.config\)`"):
            call(random_ids(1, 6), cache=make())


@pytest.mark.parametrize("tokens", [1, 6])
@pytest.mark.parametrize(
    "other",
    [
        {"chunk_size": 8},
        {"num_latents": 5},
        {"hidden_size": 32},
        {"num_key_value_heads": 4},
        {"num_attention_heads": 8, "head_dim": 4},
        {"head_dim": 8},
        {"conv_kernel_size": 0},
        {"conv_kernel_size": 3},
        {"mlp_conv_kernel_size": 0},
        {"mlp_conv_kernel_size": 4},
        {"num_sink_tokens": 2},
        {"layer_pattern": ["local"]},
        {"layer_pattern": ["latent"]},
        {"layer_pattern": ["local", "both"]},
    ],
    ids=str,
)
def test_a_cache_that_another_model_has_filled_is_refused(other, tokens):
    other = double_model(**other)
    cache = DynamicCache(config=other.config)
    other(random_ids(1, 9), cache=cache)
    with pytest.raises(ValueError, match=r"Pass `DynamicCache\(config=model.config\)`"):
        double_model()(random_ids(1, tokens), cache=cache)


def test_the_error_names_what_differs_and_nothing_else():
    other = double_model(chunk_size=8)
    cache = cache_of(other(random_ids(1, 9), use_cache=True))
    with pytest.raises(ValueError, match="a model with {'chunk_size': 8}, but this one has {'chunk_size': 4}"):
        double_model()(random_ids(1, 1), cache=cache)
    # A pattern counts by the layers that come of it.
    same = double_model(layer_pattern=["both", "local", "latent"])
    same(random_ids(1, 1), cache=cache_of(double_model()(random_ids(1, 9), use_cache=True)))


def test_empty_layers_of_another_copy_of_the_code_give_way_to_layers_of_the_same_kind():
    def of_another_copy(own, **attributes):
        return type(own.__name__, (), {"state": None, "record_past": False, **attributes})()

    dynamic, static = cache_latent.LatentAttentionCacheLayer, cache_latent.StaticLatentAttentionCacheLayer
    layers = [of_another_copy(dynamic), of_another_copy(dynamic, record_past=True)]
    layers.append(of_another_copy(static, max_cache_len=64))
    cache_latent.take_over_empty_layers(layers)
    assert [type(layer) for layer in layers] == [dynamic, dynamic, static]
    assert [layer.record_past for layer in layers] == [False, True, False]
    assert layers[2].max_cache_len == 64


# Tokens that do not fit the cache


@pytest.mark.parametrize("make", CACHES)
def test_a_cache_of_another_batch_size_is_refused(make):
    model = double_model()
    cache = make(config=model.config)
    generate(model, random_ids(2, 6), cache=cache)
    for tokens in (1, 6):
        with pytest.raises(ValueError, match="batch size 2 but the input of 3.*batch_repeat_interleave"):
            model(random_ids(3, tokens), cache=cache)


def test_a_padded_cache_is_not_expanded_for_beams():
    model, (_, batch) = double_model(), left_padded([6, 3])
    out = generate(model, **batch, return_dict_in_generate=True)
    mask = torch.nn.functional.pad(batch["attention_mask"], (0, NEW), value=1)
    with pytest.raises(ValueError, match="batch size 2 but the input of 4.*batch_repeat_interleave"):
        generate(model, out.sequences, attention_mask=mask, cache=cache_of(out), num_beams=2)


def test_a_new_turn_alone_needs_the_mask_of_the_past():
    model = double_model()
    cache = cache_of(generate(model, random_ids(1, 6), return_dict_in_generate=True))
    with pytest.raises(ValueError, match="a mask that covers the past as well"):
        generate(model, random_ids(1, 5, seed=4), cache=cache)


def test_a_prompt_without_a_token_behind_the_cache_is_refused():
    model, prompt = double_model(), random_ids(1, 6)
    cache = cache_of(model(prompt, use_cache=True))
    with pytest.raises(ValueError, match="at least one token more"):
        generate(model, prompt, cache=cache)
