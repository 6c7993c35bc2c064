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
"""Latent attention with one thing changed: parts taken away, and ways to make the memory smaller or merge it.

They are for training and for scoring whole texts: a state is not carried on, and nothing is packed.
"""

from collections.abc import Callable
from copy import deepcopy
from functools import partial

import torch
from torch import nn
from torch.nn.functional import pad, scaled_dot_product_attention

from modeling_latent import LatentAttention, LatentAttentionConfig, LatentAttentionForCausalLM
from modeling_latent.attention import MultiHeadAttention, branch_size, make_linear, make_norm
from modeling_latent.configuration_latent import LAYER_KINDS
from modeling_latent.latent_attention import ChunkedLatentAttention
from modeling_latent.layer_state import KeysValues
from modeling_latent.local_attention import rotate
from modeling_latent.modeling_latent import LatentAttentionDecoderLayer
from modeling_latent.token_conv import convolve


class WithoutRefinement:
    """Latent attention without step 2: tokens read the latents as compression left them."""

    def __init__(self, config: LatentAttentionConfig):
        super().__init__(config)
        del self.latent_self, self.refine_norm

    def refine(self, latents: torch.Tensor) -> KeysValues:
        return self.latent_to_input.keys_values(self.readout_norm(latents))


class UnrefinedLatentAttention(WithoutRefinement, LatentAttention):
    """Latent attention without refinement as a layer of any PyTorch model."""


class UnrefinedChunkedLatentAttention(WithoutRefinement, ChunkedLatentAttention):
    """Latent attention without refinement in our model."""


class AttentionBetweenWidths(MultiHeadAttention):
    """States of the width `reader` attend to states of the width `read`."""

    def __init__(self, config: LatentAttentionConfig, reader: int, read: int, output_size: float = 1.0):
        super().__init__(config, output_size)
        self.q_proj = make_linear(reader, self.q_proj.out_features)
        self.k_proj = make_linear(read, self.k_proj.out_features)
        self.v_proj = make_linear(read, self.v_proj.out_features)
        self.o_proj = make_linear(self.o_proj.in_features, reader, size=output_size)


class NarrowLatentAttention(ChunkedLatentAttention):
    """Latents half as wide as the model, as in Perceiver (Jaegle et al. 2021, arXiv:2103.03206)."""

    def __init__(self, config: LatentAttentionConfig):
        super().__init__(config)
        width, narrow = config.hidden_size, config.hidden_size // 2
        self.latents = nn.Parameter(torch.empty(config.num_latents, narrow))  # (M, D / 2)
        self.latent_norm, self.refine_norm = make_norm(config, narrow), make_norm(config, narrow)
        self.readout_norm = make_norm(config, narrow)
        self.input_to_latent = AttentionBetweenWidths(config, narrow, width)
        self.latent_self = AttentionBetweenWidths(config, narrow, narrow, output_size=0.1)
        self.latent_to_input = AttentionBetweenWidths(config, width, narrow, output_size=branch_size(config))


class LatentsForLocalAttention(ChunkedLatentAttention):
    """Latents that local attention reads: retrieval has neither queries nor an output of its own."""

    def __init__(self, config: LatentAttentionConfig):
        super().__init__(config)
        del self.latent_to_input.q_proj, self.latent_to_input.o_proj


def one_key_value_head(config: LatentAttentionConfig) -> ChunkedLatentAttention:
    """Latent attention with one key/value head in each of its three steps."""
    fewer = deepcopy(config)
    fewer.num_key_value_heads = 1
    return ChunkedLatentAttention(fewer)


class LayerWithMemory(LatentAttentionDecoderLayer):
    """A layer whose latent attention is what `make_memory` makes of the configuration."""

    def __init__(self, config: LatentAttentionConfig, layer_idx: int, make_memory: Callable):
        super().__init__(config, layer_idx)
        self.latent_attention = make_memory(config)


class OneSoftmaxLayer(LayerWithMemory):
    """Tokens nearby and latents compete in the softmax of local attention, which has one query for both."""

    def __init__(self, config: LatentAttentionConfig, layer_idx: int):
        super().__init__(config, layer_idx, LatentsForLocalAttention)

    def forward(self, hidden_states, layout, position_embeddings=None, attention_mask=None, **kwargs):
        local = self.local_attention
        tokens = self.local_norm(hidden_states)
        queries, (keys, values) = local.queries(tokens), local.keys_values(tokens)
        turned = KeysValues(rotate(keys, position_embeddings.own), values)
        near = local.causal_windows(turned, layout, position_embeddings, None)  # (R, N, Hkv, S + 2C, d)
        far = self.latents_at_chunks(hidden_states, layout)  # (R, N, Hkv, M, d)
        # One half of a doubled head compares turned queries with turned keys, the other one, not turned, with latents.
        queries = torch.cat([rotate(queries, position_embeddings.own), queries], dim=-1)
        keys = torch.cat([pad(near.keys, (0, local.head_dim)), pad(far.keys, (local.head_dim, 0))], dim=3)
        values = torch.cat([near.values, far.values], dim=3)
        mask = pad(attention_mask, (0, far.keys.shape[3]))  # which is additive
        attended = scaled_dot_product_attention(
            *(states.flatten(0, 1) for states in (queries, keys, values)),
            mask,
            scale=local.scaling,
            enable_gqa=True,
        )
        hidden_states = hidden_states + local.o_proj(attended.transpose(1, 2).flatten(2)).view_as(hidden_states)
        return hidden_states + self.mlp(self.mlp_norm(hidden_states), layout)[0]

    def latents_at_chunks(self, hidden_states: torch.Tensor, layout) -> KeysValues:
        """What tokens `(R, N, C, D)` read: refined latents at the start of every chunk, `(R, N, Hkv, M, d)`."""
        memory = self.latent_attention
        inputs, _ = convolve(memory.token_conv, memory.token_norm(hidden_states), layout, None)
        statistics = memory.compress(memory.input_to_latent.keys_values(inputs), layout, None)
        return memory.refine(memory.compressed(statistics.out))


class ChangedForCausalLM(LatentAttentionForCausalLM):
    """Our model, whose layers with latents are what `make_layer` makes of the configuration and a layer's index."""

    def __init__(self, config: LatentAttentionConfig, make_layer: Callable):
        super().__init__(config)
        for index, kind in enumerate(config.layer_kinds):
            if "latent_attention" in LAYER_KINDS[kind]:
                self.model.layers[index] = make_layer(config, index)
        self.post_init()  # draws the weights of these layers


CHANGES = {
    "no refinement": partial(LayerWithMemory, make_memory=UnrefinedChunkedLatentAttention),
    "latents half as wide": partial(LayerWithMemory, make_memory=NarrowLatentAttention),
    "one key/value head in the memory": partial(LayerWithMemory, make_memory=one_key_value_head),
    "retrieval and local attention in one softmax": OneSoftmaxLayer,
}


def changed_model(change: str, config: LatentAttentionConfig) -> ChangedForCausalLM:
    """The model of `config` with one of `CHANGES`."""
    return ChangedForCausalLM(config, CHANGES[change])
