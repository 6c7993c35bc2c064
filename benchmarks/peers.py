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
"""
The models that are compared, ours and its peers, each made by one function.

Such a function takes a *shape*, which is what the library's configurations have in common: `vocab_size`,
`hidden_size`, `intermediate_size`, `num_hidden_layers` and `num_attention_heads`, and where they are not the library's
defaults `num_key_value_heads`, `head_dim` and `tie_word_embeddings`. Everything else that it takes is a setting of
that model. It returns a configuration, with the defaults of its class where nothing else is said; `make_model` makes
the model.
"""

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.utils._pytree import tree_leaves
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    Mamba2Config,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)

from modeling_latent import LatentAttentionConfig
from modeling_latent.cache_name import CACHE_NAME


# Random tokens must not end a text.
NO_SPECIAL_TOKENS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}


def full_attention(shape: dict) -> LlamaConfig:
    """Llama, in which every token attends to all before it."""
    return LlamaConfig(**shape, **NO_SPECIAL_TOKENS)


def windowed_attention(shape: dict, sliding_window: int) -> MistralConfig:
    """Mistral is Llama with a window: a token sees itself and the `sliding_window - 1` tokens before it."""
    return MistralConfig(**shape, **NO_SPECIAL_TOKENS, sliding_window=sliding_window)


def latents_and_window(shape: dict, **settings) -> LatentAttentionConfig:
    """Our model, by default with a window in every layer and latents in every second one, from the first."""
    return LatentAttentionConfig(**{**shape, **settings})


def latents_in_every_layer(shape: dict, **settings) -> LatentAttentionConfig:
    """Latents and a window in every layer, the default of version 0.1.0."""
    return latents_and_window(shape, layer_pattern=["both"], **settings)


def latents_from_the_second_layer(shape: dict, **settings) -> LatentAttentionConfig:
    """A window in every layer and latents in every second one, but from the second."""
    return latents_and_window(shape, layer_pattern=["local", "both"], **settings)


def latents(shape: dict, **settings) -> LatentAttentionConfig:
    """Latents in every layer, and no window."""
    return latents_and_window(shape, layer_pattern=["latent"], **settings)


def window(shape: dict, chunk_size: int) -> LatentAttentionConfig:
    """A window in every layer, and no latents."""
    return latents_and_window(shape, layer_pattern=["local"], chunk_size=chunk_size)


def whole_window(shape: dict, chunk_size: int) -> LatentAttentionConfig:
    """A window with chunks as long as a text in training: full attention with our convolution, norms and start."""
    return window(shape, chunk_size)


def mamba2(shape: dict, state_size: int, head_dim: int | None = None, chunk_size: int = 32) -> Mamba2Config:
    """
    Mamba-2 has no feed-forward layers, so `intermediate_size` has no effect, and its number of layers makes its size.
    It has four heads where `head_dim` is not given.
    """
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "tie_word_embeddings")
    head_dim = head_dim or shape["hidden_size"] // 2
    return Mamba2Config(
        **{name: shape[name] for name in names if name in shape},
        **NO_SPECIAL_TOKENS,
        num_heads=2 * shape["hidden_size"] // head_dim,
        head_dim=head_dim,
        n_groups=1,
        state_size=state_size,
        chunk_size=chunk_size,
    )


def gated_delta_net(shape: dict, key_dim: int) -> Qwen3NextConfig:
    """The linear layers of Qwen3-Next, each before a dense feed-forward layer instead of experts."""
    layers, heads = shape["num_hidden_layers"], shape["num_attention_heads"]
    return Qwen3NextConfig(
        **shape,
        **NO_SPECIAL_TOKENS,
        layer_types=["linear_attention"] * layers,
        mlp_only_layers=list(range(layers)),
        linear_num_key_heads=heads,
        linear_num_value_heads=heads,
        linear_key_head_dim=key_dim,
        linear_value_head_dim=shape.get("head_dim", shape["hidden_size"] // heads),
    )


def gated_slot_attention(shape: dict, num_slots: int) -> PreTrainedConfig:
    """From flash-linear-attention, whose kernels need a GPU; with short convolutions, as our model has them."""
    from fla.models import GSAConfig

    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "tie_word_embeddings")
    given = {name: shape[name] for name in names if name in shape}
    return GSAConfig(**given, num_heads=shape["num_attention_heads"], num_slots=num_slots, use_short_conv=True)


CONFIGS = {
    configure.__name__: configure
    for configure in (
        full_attention,
        windowed_attention,
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


def config_of(model: str, shape: dict, settings: dict) -> PreTrainedConfig:
    """The configuration of a model by the name of its function above."""
    return CONFIGS[model](shape, **settings)


class GatedDeltaNet(Qwen3NextForCausalLM):
    """
    Qwen3-Next that has linear layers alone. The library's class asks its cache for the position of a token, which only
    layers of full attention know; and its layers start without a memory, see `keep_what_came_before`.
    """

    def __init__(self, config: Qwen3NextConfig):
        super().__init__(config)
        for layer in self.model.layers:
            keep_what_came_before(layer.linear_attn)

    def forward(self, input_ids: torch.LongTensor, **kwargs):
        no_mask, no_position = {"linear_attention": None}, torch.zeros_like(input_ids)
        return super().forward(input_ids, attention_mask=no_mask, position_ids=no_position, **kwargs)


@torch.no_grad()
def keep_what_came_before(layer: nn.Module, least: float = 0.001, most: float = 0.1) -> None:
    """
    Draw time steps log-uniformly between `least` and `most`, as the authors of gated delta net do
    (`fla/layers/gated_deltanet.py`). Qwen3-Next's library class starts with steps of 1.3, at which a state has
    forgotten everything within a token or two: it has only ever to load weights that were trained.
    """
    steps = torch.empty_like(layer.dt_bias).uniform_(math.log(least), math.log(most)).exp()
    layer.dt_bias.copy_(steps + torch.log(-torch.expm1(-steps)))  # the inverse of softplus


def make_model(config: PreTrainedConfig) -> PreTrainedModel:
    """A model with random weights. Where it has attention, PyTorch's SDPA computes it."""
    return GatedDeltaNet(config) if isinstance(config, Qwen3NextConfig) else AutoModelForCausalLM.from_config(config)


def parameters_of(make: Callable[[], PreTrainedModel]) -> int:
    """How many parameters the model has that `make` makes, tied embeddings counted once. Allocates nothing."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in make().parameters())


def sized_by(model: str) -> str:
    """The field of a shape that makes up for what a model has more or fewer of than another one."""
    return "num_hidden_layers" if model == "mamba2" else "intermediate_size"


def matched_shape(count: Callable[[dict], int], shape: dict, field: str, parameters: int, step: int = 1) -> dict:
    """
    `shape` with the multiple of `step`, at least one, as its `field`, at which `count(shape)` is nearest to
    `parameters`. The count has to be linear in the field.
    """
    one, two = (count({**shape, field: multiple * step}) for multiple in (1, 2))
    return {**shape, field: step * max(1, 1 + round((parameters - one) / (two - one)))}


def cache_name_of(model: PreTrainedModel) -> str:
    """What a model calls its cache: since transformers 5.24 they all call it the same, before Mamba-2 does not."""
    of_its_own = CACHE_NAME == "past_key_values" and model.config.model_type == "mamba2"
    return "cache_params" if of_its_own else CACHE_NAME


def cache_tensors(cache) -> list[torch.Tensor]:
    """All tensors that the layers of a cache hold."""
    leaves = (leaf for layer in cache.layers for leaf in tree_leaves(vars(layer)))
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
