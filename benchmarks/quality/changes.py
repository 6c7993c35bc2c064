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
"""Latent attention with one thing changed: parts taken away, and levers that were tried.

They are for training and for scoring whole texts: a state is not carried on, and nothing is packed.
"""

import copy
import math

import torch
from torch import nn
from torch.nn.functional import logsigmoid, pad, rms_norm, scaled_dot_product_attention

from benchmarks.peers import NoLatentAttention
from modeling_latent import LatentAttention, LatentAttentionConfig, LatentAttentionForCausalLM
from modeling_latent.attention import MultiHeadAttention
from modeling_latent.local_attention import LocalAttention, rotate
from modeling_latent.modeling_latent import LatentAttentionDecoderLayer
from modeling_latent.prefix_statistics import chunk_scores
from modeling_latent.token_conv import convolve, make_token_conv


class UnrefinedLatentAttention(LatentAttention):
    """Without step 2: tokens read the latents as compression left them."""

    def __init__(self, config: LatentAttentionConfig):
        super().__init__(config)
        del self.latent_self, self.refine_norm

    def refine(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.latent_to_input.keys_values(self.readout_norm(latents))


class OwnChunkAttention(LocalAttention):
    """Local attention that does not look into the chunk before."""

    def forward(self, hidden_states, layout, position_embeddings, attention_mask, cached=None):
        own = torch.arange(attention_mask.shape[-1], device=attention_mask.device) >= self.config.chunk_size
        return super().forward(hidden_states, layout, position_embeddings, attention_mask & own, cached)


class ConvolvedAttention(LocalAttention):
    """Local attention that reads convolved tokens."""

    def __init__(self, config: LatentAttentionConfig):
        super().__init__(config)
        self.token_conv = make_token_conv(config.hidden_size, kernel_size=4)

    def forward(self, hidden_states, layout, position_embeddings, attention_mask, cached=None):
        hidden_states, _ = convolve(self.token_conv, hidden_states, layout, None)
        return super().forward(hidden_states, layout, position_embeddings, attention_mask, cached)


class GatedRetrieval(LatentAttention):
    """Each token opens or closes each channel of what it reads. Half open at the start."""

    def __init__(self, config: LatentAttentionConfig):
        super().__init__(config)
        self.gate = nn.Linear(config.hidden_size, config.hidden_size)
        nn.init.normal_(self.gate.weight, std=0.02)
        nn.init.zeros_(self.gate.bias)

    def retrieve(self, tokens: torch.Tensor, memory) -> torch.Tensor:
        return super().retrieve(tokens, memory) * self.gate(tokens).sigmoid()


class RecentLatentAttention(LatentAttention):
    """
    Compression prefers recent tokens: what is `τ` tokens ago weighs `1/e` of what it would, with `τ` from 16 to 4096,
    another for every head and latent. All that a softmax sees of such a decay is a bias of the key.
    """

    def __init__(self, config: LatentAttentionConfig):
        super().__init__(config)
        count = config.num_attention_heads * config.num_latents
        self.register_buffer("time_scales", torch.logspace(math.log10(16), math.log10(4096), count))  # (H M)

    def log_forget(self, inputs: torch.Tensor) -> torch.Tensor:
        """`(R, N, C, H M)`, of what is known before a token."""
        return (-1 / self.time_scales).expand(*inputs.shape[:-1], -1)

    def compress(self, inputs, conv_inputs, layout, cached):
        shape = self.config.num_attention_heads, self.config.num_latents
        decay = self.log_forget(inputs).flatten(1, 2).cumsum(1).view(*inputs.shape[:3], *shape)  # (R, N, C, H, M)
        self.bias = -decay[:, :-1].flatten(0, 1).movedim(1, -1)  # (X, H, M, C)
        return super().compress(inputs, conv_inputs, layout, cached)

    def statistics(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        queries = self.latent_queries()  # (H, M, d)
        scores = chunk_scores(queries, keys, self.input_to_latent.scaling) + self.bias
        lse = scores.logsumexp(-1)
        return lse, (scores - lse[..., None]).exp() @ values


class ForgettingLatentAttention(RecentLatentAttention):
    """The same, and each token decides how much each latent forgets (Lin et al. 2025, arXiv:2503.02130)."""

    def __init__(self, config: LatentAttentionConfig):
        super().__init__(config)
        self.forget = nn.Linear(config.hidden_size, len(self.time_scales))
        nn.init.normal_(self.forget.weight, std=0.02)
        self.forget.bias.data.copy_((self.time_scales - 1).log())  # so that it starts at exp(-1 / τ), nearly

    def log_forget(self, inputs: torch.Tensor) -> torch.Tensor:
        return logsigmoid(self.forget(inputs))


class NormedAttention(MultiHeadAttention):
    """Queries and keys of length √d, and a learned factor on each head's scores."""

    def __init__(self, config: LatentAttentionConfig):
        super().__init__(config)
        self.temperature = nn.Parameter(torch.ones(config.num_attention_heads, 1, 1))

    def queries(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return rms_norm(super().queries(hidden_states), (self.head_dim,)) * self.temperature

    def keys_values(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = super().keys_values(hidden_states)
        return rms_norm(keys, (self.head_dim,)), values


class NormedCompression(LatentAttention):
    """Step 1 with normed queries and keys."""

    def __init__(self, config: LatentAttentionConfig):
        super().__init__(config)
        self.input_to_latent = drawn(NormedAttention(config))


class FinerCompression(LatentAttention):
    """Step 1 with twice as many heads of half the size, so that each latent has twice as many slots."""

    def __init__(self, config: LatentAttentionConfig):
        super().__init__(config)
        self.config = copy.deepcopy(config)
        self.config.head_dim //= 2
        self.config.num_attention_heads *= 2
        self.config.num_key_value_heads *= 2
        self.input_to_latent = drawn(MultiHeadAttention(self.config))


class HandedOnLatentAttention(LatentAttention):
    """Step 2 starts from the sum of what this layer read and what the layer before had refined."""

    before = ()  # the layer before, in a tuple: it is no part of this one

    def refine(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        latents = sum((layer.refined for layer in self.before), latents)
        normed = self.refine_norm(latents)
        attended, _ = self.latent_self(self.latent_self.queries(normed), *self.latent_self.keys_values(normed))
        self.refined = latents + attended
        return self.latent_to_input.keys_values(self.readout_norm(self.refined))


class OneSoftmaxLayer(LatentAttentionDecoderLayer):
    """Tokens nearby and latents compete in the softmax of local attention, which has one query for both."""

    def forward(self, hidden_states, layout, position_embeddings=None, attention_mask=None, **kwargs):
        local, memory = self.local_attention, self.latent_attention
        tokens = self.local_norm(hidden_states)
        (cos, sin), chunk_angle = position_embeddings
        queries, (keys, values) = local.queries(tokens), local.keys_values(tokens)
        turned = rotate(keys, cos, sin)
        near, values = local.grid_windows(turned, values, layout, chunk_angle, None)  # (R, N, H, 2C, d)
        inputs, conv_inputs = convolve(memory.token_conv, memory.token_norm(hidden_states), layout, None)
        read = memory.compress(inputs, conv_inputs, layout, None)
        # One half of a doubled head compares turned queries with turned keys, the other one, not turned, with latents.
        queries = torch.cat([rotate(queries, cos, sin), queries], dim=-1)
        far = read.readout_keys
        keys = torch.cat(
            [nn.functional.pad(near, (0, local.head_dim)), nn.functional.pad(far, (local.head_dim, 0))], 3
        )
        allowed = pad(attention_mask, (0, far.shape[3]), value=True)
        values = torch.cat([values, read.readout_values], dim=3)
        attended = scaled_dot_product_attention(
            queries.flatten(0, 1), keys.flatten(0, 1), values.flatten(0, 1), allowed, scale=local.scaling
        )
        attended = local.o_proj(attended.transpose(1, 2).flatten(2)).view_as(hidden_states)
        hidden_states = hidden_states + attended
        return hidden_states + self.mlp(self.mlp_norm(hidden_states), layout)[0]


def drawn(module: nn.Module) -> nn.Module:
    """With its weights as `init_weights` would draw them."""
    for part in module.modules():
        if hasattr(part, "init_std"):
            nn.init.normal_(part.weight, std=part.init_std)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    return module


def replace_memory(memory_class: type[LatentAttention]):
    """A change of every layer's latent attention to another class."""

    def change(model: LatentAttentionForCausalLM) -> None:
        for layer in model.model.layers:
            layer.latent_attention = memory_class(model.config)

    return change


def keep_every_second_memory(model: LatentAttentionForCausalLM) -> None:
    for layer in model.model.layers[::2]:
        layer.latent_attention = NoLatentAttention()


def look_into_own_chunk_only(model: LatentAttentionForCausalLM) -> None:
    for layer in model.model.layers:
        layer.local_attention.__class__ = OwnChunkAttention


def convolve_local_attention(model: LatentAttentionForCausalLM) -> None:
    for layer in model.model.layers:
        layer.local_attention = drawn(ConvolvedAttention(model.config))


def hand_latents_on(model: LatentAttentionForCausalLM) -> None:
    replace_memory(HandedOnLatentAttention)(model)
    memories = [layer.latent_attention for layer in model.model.layers]
    for memory, before in zip(memories[1:], memories, strict=False):
        memory.before = (before,)


def share_one_softmax(model: LatentAttentionForCausalLM) -> None:
    for layer in model.model.layers:
        layer.__class__ = OneSoftmaxLayer
        del layer.latent_attention.latent_to_input.q_proj, layer.latent_attention.latent_to_input.o_proj


CHANGES = {
    "no refinement": replace_memory(UnrefinedLatentAttention),
    "latents in every second layer": keep_every_second_memory,
    "local attention in the own chunk only": look_into_own_chunk_only,
    "convolution before local attention, too": convolve_local_attention,
    "gate on retrieval": replace_memory(GatedRetrieval),
    "compression prefers recent tokens": replace_memory(RecentLatentAttention),
    "forget gate in compression": replace_memory(ForgettingLatentAttention),
    "normed queries and keys in compression": replace_memory(NormedCompression),
    "twice the heads in compression": replace_memory(FinerCompression),
    "refined latents handed on": hand_latents_on,
    "retrieval and local attention in one softmax": share_one_softmax,
}
