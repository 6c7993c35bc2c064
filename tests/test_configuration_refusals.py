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
"""What the configuration refuses: each error names the field, its value, and what is allowed."""

import re

import pytest
from huggingface_hub.errors import StrictDataclassError

from common import LLAMA3_ROPE, tiny_config, tiny_model
from modeling_latent import LatentAttentionForCausalLM


pytestmark = pytest.mark.quick


# (field, value, what is allowed)
BAD_VALUES = [
    ("vocab_size", 0, "an integer of at least 1"),
    ("hidden_size", 0, "an integer of at least 1"),
    ("intermediate_size", 0, "an integer of at least 1"),
    ("num_hidden_layers", 0, "an integer of at least 1"),
    ("num_attention_heads", 0, "an integer of at least 1"),
    ("num_key_value_heads", 0, "an integer of at least 1"),
    ("head_dim", 0, "an integer of at least 1"),
    ("num_latents", 0, "an integer of at least 1"),
    ("num_latents", -3, "an integer of at least 1"),
    ("chunk_size", 0, "an integer of at least 1"),
    ("chunk_size", -4, "an integer of at least 1"),
    ("conv_kernel_size", -1, "an integer of at least 0"),
    ("mlp_conv_kernel_size", -1, "an integer of at least 0"),
    ("num_attention_heads", 3, "a divisor of `hidden_size` (16)"),
    ("num_key_value_heads", 3, "a divisor of `num_attention_heads` (4)"),
    ("num_key_value_heads", 8, "a divisor of `num_attention_heads` (4)"),
    ("head_dim", 5, "even"),
    ("norm_type", "batch_norm", '"layer_norm" or "rms_norm"'),
    ("norm_eps", 0.0, "greater than 0"),
    ("norm_eps", float("inf"), "finite"),
    ("initializer_range", -0.02, "greater than 0"),
    ("initializer_range", 0.0, "greater than 0"),
    ("initializer_range", float("inf"), "finite"),
    ("attention_dropout", 1.0, "at least 0 and less than 1"),
    ("attention_dropout", -0.1, "at least 0 and less than 1"),
    ("hidden_act", "sillu", "gelu, "),
    ("layer_pattern", ["local", "global"], 'a list of "local", "latent" and "both"'),
    ("layer_pattern", [], "at least one of them"),
    ("num_sink_tokens", -1, "at least 0"),
    ("num_sink_tokens", 5, "at most `chunk_size` (4)"),
    ("max_chunk_repeats", 0.5, "at least 1 and finite"),
    ("max_chunk_repeats", float("inf"), "at least 1 and finite"),
    # Refused by type, in the words of the library.
    ("num_latents", 64.0, "expected int"),
    ("chunk_size", 64.0, "expected int"),
    ("conv_kernel_size", 4.0, "expected int"),
    ("mlp_conv_kernel_size", 4.0, "expected int"),
    ("num_latents", True, "expected int"),
    ("num_latents", "64", "expected int"),
    ("chunk_size", None, "expected int"),
    ("layer_pattern", "both", "expected a list"),
    ("layer_pattern", [True], "Invalid item at index 0"),
    ("num_sink_tokens", 1.0, "expected int"),
    ("num_sink_tokens", None, "expected int"),
    ("max_chunk_repeats", None, "float"),
    ("is_causal", 1, "expected bool"),
    ("norm_eps", 1, "expected float"),
    ("attention_dropout", None, "float"),
    ("layer_types", ["full_attention", "full_attention"], '"latent_attention" once for each of the 2 layers'),
    ("layer_types", ["latent_attention"] * 3, '"latent_attention" once for each of the 2 layers'),
]


@pytest.mark.parametrize("field, value, allowed", BAD_VALUES)
def test_a_bad_value_is_refused_with_field_value_and_what_is_allowed(field, value, allowed):
    with pytest.raises((ValueError, StrictDataclassError)) as error:
        tiny_config(**{field: value})
    message = str(error.value)
    assert re.search(rf"{field}.*\b(is|value:?) {re.escape(repr(value))}", message)
    assert allowed in message


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ({"is_causal": False}, "0 where `is_causal` is False"),
        ({"layer_pattern": ["latent"]}, "where no layer of `layer_pattern` has local attention"),
        ({"layer_pattern": ["latent", "latent", "both"]}, "where no layer of `layer_pattern` has local attention"),
    ],
    ids=str,
)
def test_sinks_that_no_layer_sees_are_refused(overrides, reason):
    """Of two layers here: a pattern may be longer."""
    with pytest.raises((ValueError, StrictDataclassError), match="`num_sink_tokens` is 2 but must be") as error:
        tiny_config(num_sink_tokens=2, **overrides)
    assert reason in str(error.value)


@pytest.mark.parametrize(
    ("local_attention", "layer_pattern"),
    [(True, ["latent"]), (False, ["both", "local"]), ("yes", None), (1, None), ([True], None)],
    ids=str,
)
def test_local_attention_that_means_no_pattern_or_another_one_is_refused(local_attention, layer_pattern):
    stated = re.escape(f"`local_attention` is {local_attention!r}, but must be True")
    with pytest.raises((ValueError, StrictDataclassError), match=stated):
        tiny_config(local_attention=local_attention, layer_pattern=layer_pattern)


@pytest.mark.parametrize("field", ["rope_parameters", "rope_scaling"])
@pytest.mark.parametrize("rope_type", ["linear", "dynamic", "yarn", "longrope", "llama3", "unheard_of"])
def test_scaled_rotary_embeddings_are_refused(rope_type, field):
    """By the name of older configurations, `rope_scaling`, too."""
    with pytest.raises((ValueError, StrictDataclassError), match=f"rope_parameters.*{rope_type}.*default"):
        tiny_config(**{field: {"rope_type": rope_type, "factor": 2.0}})


@pytest.mark.parametrize(
    "settings",
    [
        {"rope_parameters": {"rope_theta": 0.0}},
        {"rope_parameters": {"rope_theta": None}},
        {"rope_parameters": {"rope_theta": True}},
        {"rope_parameters": {"rope_theta": float("inf")}},
        {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
        {"rope_parameters": {"latent_attention": {"rope_theta": 1e4}}},
        {"rope_parameters": {**LLAMA3_ROPE, "factor": -8.0}},
        {"rope_parameters": {**LLAMA3_ROPE, "high_freq_factor": 1.0}},
        {"rope_parameters": {**LLAMA3_ROPE, "original_max_position_embeddings": None}},
        {"rope_parameters": {**LLAMA3_ROPE, "beta_fast": 32}},
        {"rope_theta": -1.0},
        {"partial_rotary_factor": 0.5},
    ],
)
def test_rotary_settings_that_no_model_follows_are_refused(settings):
    """Accepted, they would fail in the first forward, or be without effect."""
    with pytest.raises((ValueError, StrictDataclassError), match="rope_parameters"):
        tiny_config(**settings)


@pytest.mark.parametrize(
    "overrides",
    [
        {"chunk_size": 0},
        {"norm_type": "batch_norm"},
        {"attention_dropout": 1.5},
        {"hidden_act": "sillu"},
        {"conv_kernel_size": -1},
        {"layer_pattern": ["global"]},
        {"num_sink_tokens": 5},
        {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4}},
        {"rope_parameters": None},
    ],
)
def test_bad_values_are_refused_while_weights_are_loaded_too(overrides, tmp_path):
    """The library sets such fields after the configuration has been made."""
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises((ValueError, StrictDataclassError), match=f"`{next(iter(overrides))}` is "):
        LatentAttentionForCausalLM.from_pretrained(tmp_path, **overrides)
