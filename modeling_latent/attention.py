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
"""What every attention of a block shares: projections, norms, masks, and the call into transformers' interface."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.attention.flex_attention import create_block_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_latent import LatentAttentionConfig
from .layer_state import KeysValues


def make_norm(config: LatentAttentionConfig, size: int | None = None) -> nn.Module:
    """A norm over the last `size` numbers, `hidden_size` if it is not given."""
    norm_class = nn.RMSNorm if config.norm_type == "rms_norm" else nn.LayerNorm
    return norm_class(size or config.hidden_size, eps=config.norm_eps)


def make_linear(in_features: int, out_features: int, bias: bool = False, size: float = 1.0) -> nn.Linear:
    """A linear layer that `init_weights` draws such that what it makes of inputs of variance 1 is of that `size`."""
    linear = nn.Linear(in_features, out_features, bias=bias)
    linear.init_std = size * in_features**-0.5
    return linear


def apply_linear(linear: nn.Module, states: torch.Tensor) -> torch.Tensor:
    """
    `linear` of `(X, ..., L, D)`. It is given three dimensions, as in the library's models: quantized layers (LLM.int8)
    and adapters (OFT, GraLoRA) ask for that. The first one stays, as adapters may differ by row.
    """
    if states.ndim <= 3:
        return linear(states)
    return linear(states.flatten(1, -2)).unflatten(1, states.shape[1:-1])


def branch_size(config: LatentAttentionConfig) -> float:
    """
    Of what a branch, such as an attention or an MLP, adds to the token stream. There are up to three in a layer, and
    all of them together start about as large as the embeddings: larger ones drown the token that they are added to
    (Takase et al. 2023, arXiv:2312.16903).
    """
    return config.initializer_range / (3 * config.num_hidden_layers) ** 0.5


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention written out, which also returns its weights `(X, H, L, S)`. The mask is additive."""
    key = key.repeat_interleave(module.num_key_value_groups, dim=1)
    value = value.repeat_interleave(module.num_key_value_groups, dim=1)
    scores = query @ key.transpose(2, 3) * scaling  # (X, H, L, S)
    if attention_mask is not None:
        scores = scores + attention_mask
    # At least float32, as in the library's other models; a float64 model stays float64.
    weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights  # (X, L, H, d)


def attention_mask_of(allowed: torch.Tensor, config: LatentAttentionConfig, dtype: torch.dtype):
    """
    `allowed` `(X, 1, L, S)` as the attention implementation wants it. SDPA would take it as it is, too, and in every
    layer make the same additive mask of it, which in training each of them would keep.
    """
    if config._attn_implementation == "flex_attention":
        batch, _, queries, keys = allowed.shape
        return create_block_mask(
            lambda x, head, query, key: allowed[x, 0, query, key], batch, None, queries, keys, device=allowed.device
        )
    return torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)


class MultiHeadAttention(nn.Module):
    """The projections of one attention and the call into transformers' attention interface."""

    is_causal = False  # what may be seen is said by a mask, or by which keys there are

    def __init__(self, config: LatentAttentionConfig, output_size: float = 1.0):
        super().__init__()
        self.config = config
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = config.head_dim**-0.5
        q_size, kv_size = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        self.q_proj = make_linear(config.hidden_size, q_size, config.attention_bias)
        self.k_proj = make_linear(config.hidden_size, kv_size, config.attention_bias)
        self.v_proj = make_linear(config.hidden_size, kv_size, config.attention_bias)
        self.o_proj = make_linear(q_size, config.hidden_size, size=output_size)

    def heads(self, states: torch.Tensor) -> torch.Tensor:
        """`(..., L, H d) -> (..., H, L, d)`"""
        return states.unflatten(-1, (-1, self.head_dim)).transpose(-3, -2)

    def queries(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.heads(apply_linear(self.q_proj, hidden_states))

    def keys_values(self, hidden_states: torch.Tensor) -> KeysValues:
        return KeysValues(*(self.heads(apply_linear(linear, hidden_states)) for linear in (self.k_proj, self.v_proj)))

    def forward(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Args:
            queries: `(..., H, L, d)`.
            keys, values: `(..., Hkv, S, d)`.
            attention_mask: as the attention implementation wants it, `(X, 1, L, S)` for `X` leading elements.

        Returns:
            `(..., L, D)`, and the weights `(..., H, L, S)` where the implementation gives them.
        """
        leading = queries.shape[:-3]
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation or "sdpa", eager_attention_forward
        )
        output, weights = attention_interface(
            self,
            queries.flatten(0, -4),
            # Of another dtype where a cache was filled under autocast and is read without, or the other way round.
            keys.flatten(0, -4).to(queries.dtype),
            values.flatten(0, -4).to(queries.dtype),
            attention_mask,
            dropout=self.config.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            is_causal=False,
        )
        output = apply_linear(self.o_proj, output.flatten(-2).unflatten(0, leading))
        return output, None if weights is None else weights.unflatten(0, leading)
