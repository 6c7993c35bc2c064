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
"""The models that are compared, from the same widths.

A *shape* is what the library's configurations have in common: `vocab_size`, `hidden_size`, `intermediate_size`,
`num_hidden_layers` and `num_attention_heads`. Peers come from transformers (or flash-linear-attention) with the
defaults of their configurations where nothing else is said here.
"""

import math

import torch
from torch import nn
from torch.utils._pytree import tree_leaves
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    PreTrainedModel,
    Qwen3NextConfig,
)

from benchmarks.peers import GatedDeltaNet, cache_name_of, nearest_size, parameters_of
from modeling_latent import LatentAttentionConfig, LatentAttentionForCausalLM

from .changes import CHANGES


def full_attention(shape: dict) -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**shape, pad_token_id=None))


def latents_and_window(shape: dict, change: str | None = None, **config) -> PreTrainedModel:
    """
    Our model, by default a window in every layer and latents in every second one, from the first.

    Args:
        shape: see above.
        change: of `CHANGES`, what is taken away or done otherwise.
        config: fields of the configuration; embeddings start at 1/√width, as in the ready-made configurations.
    """
    fields = {**shape, "initializer_range": shape["hidden_size"] ** -0.5, **config}
    model = LatentAttentionForCausalLM(LatentAttentionConfig(**fields))
    if change is not None:
        CHANGES[change](model)
    return model


def latents_in_every_layer(shape: dict, **settings) -> PreTrainedModel:
    """Beside a window, as version 0.1.0 had them by default."""
    return latents_and_window(shape, layer_pattern=["both"], **settings)


def latents_from_the_second_layer(shape: dict, **settings) -> PreTrainedModel:
    """In every second layer as by default, but not in the first."""
    return latents_and_window(shape, layer_pattern=["local", "both"], **settings)


def latents(shape: dict, **settings) -> PreTrainedModel:
    return latents_and_window(shape, layer_pattern=["latent"], **settings)


def window(shape: dict, chunk_size: int) -> PreTrainedModel:
    return latents_and_window(shape, layer_pattern=["local"], chunk_size=chunk_size)


def whole_window(shape: dict, chunk_size: int) -> PreTrainedModel:
    """With a chunk as long as a text in training: full attention with our convolution, norms and start."""
    return window(shape, chunk_size)


def mamba2(shape: dict, state_size: int) -> PreTrainedModel:
    """Mamba-2 has no feed-forward layers, so `intermediate_size` has no effect."""
    shape = {name: shape[name] for name in ("vocab_size", "hidden_size", "num_hidden_layers")}
    heads = {"num_heads": 4, "head_dim": shape["hidden_size"] // 2, "n_groups": 1}
    special = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
    return Mamba2ForCausalLM(Mamba2Config(**shape, **heads, **special, state_size=state_size, chunk_size=32))


def gated_delta_net(shape: dict, key_dim: int) -> PreTrainedModel:
    """The linear layers of Qwen3-Next, each before a dense feed-forward layer instead of experts."""
    layers, heads = shape["num_hidden_layers"], shape["num_attention_heads"]
    model = GatedDeltaNet(
        Qwen3NextConfig(
            **shape,
            layer_types=["linear_attention"] * layers,
            mlp_only_layers=list(range(layers)),
            linear_num_key_heads=heads,
            linear_num_value_heads=heads,
            linear_key_head_dim=key_dim,
            linear_value_head_dim=shape["hidden_size"] // heads,
        )
    )
    for layer in model.model.layers:
        keep_what_came_before(layer.linear_attn)
    return model


@torch.no_grad()
def keep_what_came_before(layer: nn.Module, least: float = 0.001, most: float = 0.1) -> None:
    """
    Draw time steps log-uniformly between `least` and `most`, as the authors of gated delta net do
    (`fla/layers/gated_deltanet.py`). Qwen3-Next's library class starts with steps of 1.3, at which a state has
    forgotten everything within a token or two: it has only ever to load weights that were trained.
    """
    steps = torch.empty_like(layer.dt_bias).uniform_(math.log(least), math.log(most)).exp()
    layer.dt_bias.copy_(steps + torch.log(-torch.expm1(-steps)))  # the inverse of softplus


def gated_slot_attention(shape: dict, num_slots: int) -> PreTrainedModel:
    """From flash-linear-attention, whose kernels need a GPU; with short convolutions, as all the others have them."""
    from fla.models import GSAConfig, GSAForCausalLM

    shape = {("num_heads" if name == "num_attention_heads" else name): size for name, size in shape.items()}
    return GSAForCausalLM(GSAConfig(**shape, num_slots=num_slots, use_short_conv=True))


BUILDERS = {
    build.__name__: build
    for build in (
        full_attention,
        window,
        whole_window,
        latents,
        latents_and_window,
        latents_in_every_layer,
        latents_from_the_second_layer,
        mamba2,
        gated_delta_net,
        gated_slot_attention,
    )
}


def build(model: str, shape: dict, settings: dict) -> PreTrainedModel:
    """A model by the name of its function above, with random weights."""
    return BUILDERS[model](shape, **settings)


def hidden_states(model: PreTrainedModel, input_ids: torch.Tensor) -> torch.Tensor:
    """`(B, T)` to what the head reads, `(B, T, D)`."""
    return model.base_model(input_ids, use_cache=False).last_hidden_state


def count_parameters(model: str, shape: dict, settings: dict) -> int:
    return parameters_of(lambda: build(model, shape, settings))


def matched_shape(model: str, shape: dict, settings: dict, parameters: int) -> dict:
    """`shape` with the feed-forward width, or in Mamba-2 the number of layers, that comes nearest to `parameters`."""
    field = "num_hidden_layers" if model == "mamba2" else "intermediate_size"
    size = nearest_size(lambda size: count_parameters(model, {**shape, field: size}, settings), parameters)
    return {**shape, field: size}


@torch.no_grad()
def state_elements(model: PreTrainedModel, length: int) -> int:
    """Numbers that the model keeps of one sequence of `length` tokens: those of its real cache, all layers."""
    input_ids = torch.zeros(1, length, dtype=torch.long, device=model.device)
    cache = model(input_ids, use_cache=True)[cache_name_of(model)]
    kept = (leaf for layer in cache.layers for leaf in tree_leaves(vars(layer)))
    return sum(leaf.numel() for leaf in kept if isinstance(leaf, torch.Tensor) and leaf.is_floating_point())
