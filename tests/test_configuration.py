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
"""The configuration: what its fields mean, what survives saving and loading, what it says about the state's size."""

import json
import math
import re

import pytest
import torch
import transformers
from packaging.version import Version
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, DynamicCache, LlamaConfig, PreTrainedConfig

from common import LLAMA3_ROPE, random_ids, randomize, tiny_config, tiny_model
from modeling_latent import LatentAttentionConfig, LatentAttentionForCausalLM, LatentAttentionModel
from modeling_latent.cache_name import cache_of


pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    ("layer_pattern", "layers", "kinds"),
    [
        (None, 5, ["both", "local", "both", "local", "both"]),
        (["latent"], 2, ["latent", "latent"]),
        (["both", "local", "latent"], 4, ["both", "local", "latent", "both"]),
        (["local", "local", "latent"], 2, ["local", "local"]),
    ],
    ids=str,
)
def test_the_pattern_repeats_and_ends_with_the_layers(layer_pattern, layers, kinds):
    config = tiny_config(layer_pattern=layer_pattern, num_hidden_layers=layers)
    assert config.layer_kinds == kinds
    assert config.has_windows == (kinds != ["latent", "latent"])
    assert config.has_latents == (kinds != ["local", "local"])
    assert [layer.kind for layer in LatentAttentionModel(config).layers] == kinds


@pytest.mark.parametrize(("local_attention", "layer_pattern"), [(True, ["both"]), (False, ["latent"])])
def test_local_attention_of_an_older_configuration_is_the_pattern_that_it_meant(
    local_attention, layer_pattern, tmp_path
):
    older = tiny_config().to_dict() | {"local_attention": local_attention}
    del older["layer_pattern"]
    (tmp_path / "config.json").write_text(json.dumps(older), encoding="utf-8")
    for config in (
        tiny_config(local_attention=local_attention),
        tiny_config(local_attention=local_attention, layer_pattern=layer_pattern),
        AutoConfig.from_pretrained(tmp_path),
        LatentAttentionConfig(**older),
    ):
        assert config.layer_pattern == layer_pattern
        assert "local_attention" not in config.to_dict()


@pytest.mark.parametrize(
    ("layer_pattern", "attentions"),
    [
        (["local"], {"local_attention"}),
        (["latent"], {"latent_attention"}),
        (["both"], {"local_attention", "latent_attention"}),
        (["local", "local", "both"], {"local_attention"}),
    ],
    ids=["local", "latent", "both", "last layer cut off"],
)
def test_the_tensor_parallel_plan_names_what_the_pattern_has(layer_pattern, attentions):
    plan = tiny_config(layer_pattern=layer_pattern).base_model_tp_plan
    assert {name.split(".")[2] for name in plan} == attentions | {"mlp"}


def test_older_versions_may_add_tied_embeddings_to_the_tensor_parallel_plan():
    config = tiny_config(tie_word_embeddings=True)
    config.base_model_tp_plan = {**config.base_model_tp_plan, "embed_tokens": "embedding_rowwise"}  # before 5.23
    assert config.base_model_tp_plan["embed_tokens"] == "embedding_rowwise"
    assert config.base_model_tp_plan["layers.*.mlp.gate_proj"] == "colwise"
    assert "base_model_tp_plan" not in config.to_dict()


def test_defaults_that_follow_from_other_fields():
    config = tiny_config(num_key_value_heads=None, head_dim=None)
    assert (config.num_key_value_heads, config.head_dim) == (4, 4)
    assert config.layer_types == ["latent_attention"] * 2
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 10000.0}


def test_rope_parameters_count_before_their_older_names():
    config = tiny_config(rope_parameters={"rope_theta": 7.0}, rope_theta=5.0, rope_scaling={"rope_theta": 3.0})
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 7.0}


def test_the_docstring_states_the_defaults():
    stated = re.findall(r"^ +(\w+) \(`\w+`, defaults to `?(.+?)`?\):", LatentAttentionConfig.__doc__, re.MULTILINE)
    stated += re.findall(
        r"^ +(\w+) \(`dict`\): .*Defaults to\s+`(\{.+?\})`", LatentAttentionConfig.__doc__, re.MULTILINE
    )
    assert {"num_latents", "mlp_conv_kernel_size", "norm_type", "rope_parameters"} < dict(stated).keys()
    config = LatentAttentionConfig()
    known = {"sqrt": math.sqrt, "hidden_size": config.hidden_size}
    assert {name: getattr(config, name) for name, _ in stated} == {name: eval(text, known) for name, text in stated}


# Nothing at its default, so that a field lost on the way shows.
UNUSUAL = {
    "num_key_value_heads": 1,
    "head_dim": 6,
    "conv_kernel_size": 0,
    "layer_pattern": ["both", "local", "latent"],
    "num_sink_tokens": 3,
    "max_chunk_repeats": 2.5,
    "hidden_act": "relu",
    "norm_type": "rms_norm",
    "norm_eps": 1e-3,
    "attention_bias": True,
    "qk_norm": True,
    "attention_dropout": 0.25,
    "rope_parameters": LLAMA3_ROPE,
    "initializer_range": 0.01,
    "use_cache": False,
    "tie_word_embeddings": True,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": [3, 4],
    "dtype": "bfloat16",
}


def through_dict(config, folder):
    return LatentAttentionConfig.from_dict(config.to_dict())


def through_json(config, folder):
    return LatentAttentionConfig(**json.loads(config.to_json_string()))


def through_folder(config, folder):
    config.save_pretrained(folder)
    return LatentAttentionConfig.from_pretrained(folder)


def through_auto_config(config, folder):
    config.save_pretrained(folder)
    return AutoConfig.from_pretrained(folder)


@pytest.mark.parametrize("way", [through_dict, through_json, through_folder, through_auto_config])
def test_round_trip_keeps_every_field(way, tmp_path):
    config = tiny_config(**UNUSUAL)
    again = way(config, tmp_path)
    assert type(again) is LatentAttentionConfig
    assert again.to_json_string() == config.to_json_string()
    assert {name: getattr(again, name) for name in UNUSUAL} == {**UNUSUAL, "dtype": torch.bfloat16}
    assert again.layer_types == ["latent_attention"] * 2
    assert again.layer_kinds == ["both", "local"]


def test_the_direction_survives_too(tmp_path):
    tiny_config(is_causal=False).save_pretrained(tmp_path)
    assert not AutoConfig.from_pretrained(tmp_path).is_causal


def test_without_the_code_the_plain_fields_are_readable(tmp_path):
    """`AutoTokenizer` reads the config this way where it may not run the folder's code."""
    tiny_config(**UNUSUAL).save_pretrained(tmp_path)
    config = PreTrainedConfig.from_pretrained(tmp_path)
    assert (config.num_latents, config.rope_parameters) == (3, LLAMA3_ROPE)


def test_fewer_layers_while_loading(tmp_path):
    """Fields given to `from_pretrained` are set after the rest: what follows from them has to follow."""
    tiny_config().save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path, num_hidden_layers=1)
    assert len(DynamicCache(config=config).layers) == 1
    assert config.layer_kinds == ["both"]
    config.save_pretrained(tmp_path)


def test_repository_names_in_auto_map_are_dropped():
    """A checkpoint read from the Hub names the repository that its code came from; a copy has code of its own."""
    read = {name: f"someone/model--{path}" for name, path in tiny_config().auto_map.items()}
    assert tiny_config(auto_map=read).auto_map == tiny_config().auto_map


@pytest.mark.parametrize("config_class", [LatentAttentionConfig, LlamaConfig])
def test_unknown_arguments_are_kept_as_in_llama(config_class, tmp_path):
    config_class(note="kept", rope_theta=500.0, num_labels=3).save_pretrained(tmp_path)
    config = config_class.from_pretrained(tmp_path)
    assert config.note == "kept"
    assert config.rope_parameters["rope_theta"] == 500.0
    assert config.num_labels == 3 and len(config.id2label) == 3


def test_arguments_of_from_pretrained_override_and_unknown_ones_come_back(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    config, unused = AutoConfig.from_pretrained(tmp_path, num_latents=7, note="x", return_unused_kwargs=True)
    assert config.num_latents == 7
    assert unused == {"note": "x"}


older_saves_no_negative = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.23"), reason="this version of transformers refuses to save it"
)


@pytest.mark.parametrize("pad_token_id", [pytest.param(-1, marks=older_saves_no_negative), 31, 40])
def test_a_padding_token_outside_of_the_vocabulary_is_no_token(pad_token_id, tmp_path):
    """As configurations on the Hub have it, or after `resize_token_embeddings`; the library warns."""
    randomize(LatentAttentionForCausalLM(tiny_config(pad_token_id=pad_token_id))).save_pretrained(tmp_path)
    model = LatentAttentionForCausalLM.from_pretrained(tmp_path)
    model(random_ids(1, 9), labels=random_ids(1, 9)).loss.backward()
    assert model.model.embed_tokens.padding_idx is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"layer_pattern": ["local"]},
        {"layer_pattern": ["latent"]},
        {"layer_pattern": ["both", "local", "latent"], "num_hidden_layers": 3, "num_sink_tokens": 2},
        {"conv_kernel_size": 0},
        {"conv_kernel_size": 1},
        {"mlp_conv_kernel_size": 0},
        {"mlp_conv_kernel_size": 1},
        {"num_key_value_heads": 4, "head_dim": 6, "num_latents": 5, "chunk_size": 3, "num_sink_tokens": 3},
    ],
)
def test_state_bytes_are_those_of_a_real_cache(overrides, dtype):
    model = tiny_model(dtype=dtype, **overrides)
    cache = cache_of(model(random_ids(3, 11), use_cache=True))
    tensors = [tensor for layer in cache.layers for tensor in tree_leaves(layer.state) if tensor is not None]
    assert model.config.state_bytes(batch_size=3, dtype=dtype) == sum(tensor.nbytes for tensor in tensors)
