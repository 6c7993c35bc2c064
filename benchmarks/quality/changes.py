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

import copy

import torch
from torch import nn
from torch.nn.functional import pad, scaled_dot_product_attention

from modeling_latent import LatentAttention, LatentAttentionConfig, LatentAttentionForCausalLM
from modeling_latent.attention import MultiHeadAttention, branch_size, make_linear
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
    """The layer alone."""


class UnrefinedChunkedLatentAttention(WithoutRefinement, ChunkedLatentAttention):
    """The same in a model."""


class NarrowLatentAttention(ChunkedLatentAttention):
    """Latents half as wide as the model, as in Perceiver (Jaegle et al. 2021, arXiv:2103.03206)."""

    def __init__(self, config: LatentAttentionConfig):
        super().__init__(config)
        size = config.hidden_size // 2
        self.latents = nn.Parameter(torch.randn(config.num_latents, size))  # (M, D / 2)
        for name in ("latent_norm", "refine_norm", "readout_norm"):
            setattr(self, name, nn.LayerNorm(size, eps=config.norm_eps))
        compress, refine, retrieve = self.input_to_latent, self.latent_self, self.latent_to_input
        from_latents = [(compress, "q_proj"), (retrieve, "k_proj"), (retrieve, "v_proj")]
        from_latents += [(refine, "q_proj"), (refine, "k_proj"), (refine, "v_proj")]
        for attention, name in from_latents:
            setattr(attention, name, drawn(make_linear(size, getattr(attention, name).out_features)))
        heads = compress.o_proj.in_features
        compress.o_proj, refine.o_proj = drawn(make_linear(heads, size)), drawn(make_linear(heads, size, size=0.1))


class FewerHeadsLatentAttention(ChunkedLatentAttention):
    """One key/value head in each of the three steps."""

    def __init__(self, config: LatentAttentionConfig):
        super().__init__(config)
        fewer = copy.deepcopy(config)
        fewer.num_key_value_heads = 1
        self.input_to_latent = drawn(MultiHeadAttention(fewer))
        self.latent_self = drawn(MultiHeadAttention(fewer, output_size=0.1))
        self.latent_to_input = drawn(MultiHeadAttention(fewer, output_size=branch_size(config)))


class OneSoftmaxLayer(LatentAttentionDecoderLayer):
    """Tokens nearby and latents compete in the softmax of local attention, which has one query for both."""

    def forward(self, hidden_states, layout, position_embeddings=None, attention_mask=None, **kwargs):
        local, memory = self.local_attention, self.latent_attention
        tokens = self.local_norm(hidden_states)
        queries, (keys, values) = local.queries(tokens), local.keys_values(tokens)
        turned = KeysValues(rotate(keys, position_embeddings.own), values)
        near = local.causal_windows(turned, layout, position_embeddings, None)  # (R, N, Hkv, S + 2C, d)
        inputs, _ = convolve(memory.token_conv, memory.token_norm(hidden_states), layout, None)
        statistics = memory.compress(memory.input_to_latent.keys_values(inputs), layout, None)
        far = memory.refine(memory.compressed(statistics.out))  # (R, N, Hkv, M, d)
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


def drawn(module: nn.Module) -> nn.Module:
    """With its weights as `init_weights` would draw them."""
    for part in module.modules():
        if hasattr(part, "init_std"):
            nn.init.normal_(part.weight, std=part.init_std)
    return module


def layers_with_latents(model: LatentAttentionForCausalLM) -> list[LatentAttentionDecoderLayer]:
    return [layer for layer in model.model.layers if layer.kind != "local"]


def replace_memory(memory_class: type[ChunkedLatentAttention]):
    """A change of latent attention to another class, in every layer that has it."""

    def change(model: LatentAttentionForCausalLM) -> None:
        for layer in layers_with_latents(model):
            layer.latent_attention = memory_class(model.config)

    return change


def share_one_softmax(model: LatentAttentionForCausalLM) -> None:
    for layer in layers_with_latents(model):
        layer.__class__ = OneSoftmaxLayer
        del layer.latent_attention.latent_to_input.q_proj, layer.latent_attention.latent_to_input.o_proj


CHANGES = {
    "no refinement": replace_memory(UnrefinedChunkedLatentAttention),
    "latents half as wide": replace_memory(NarrowLatentAttention),
    "one key/value head in the memory": replace_memory(FewerHeadsLatentAttention),
    "retrieval and local attention in one softmax": share_one_softmax,
}
