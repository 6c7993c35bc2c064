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
"""Local attention: exact, to a window of chunks around each token."""

import math

import torch
from torch import nn

from .attention import MultiHeadAttention, attention_mask_of, branch_size, take_cached
from .cache_latent import WindowState, update_rows, write_slot
from .chunk_layout import ChunkLayout
from .configuration_latent import LatentAttentionConfig


def rotary_frequencies(config: LatentAttentionConfig, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """
    Angles per slot, `(d / 2,)` (Su et al. 2021). With the `rope_type` "llama3", as in Llama 3.1, those that turn less
    than `low_freq_factor` times in `original_max_position_embeddings` tokens are divided by `factor`, those that turn
    more than `high_freq_factor` times are kept, and between them the share that is kept grows linearly.
    """
    rope = config.rope_parameters
    exponents = torch.arange(0, config.head_dim, 2, device=device, dtype=dtype) / config.head_dim
    frequencies = rope["rope_theta"] ** -exponents
    if rope.get("rope_type") != "llama3":
        return frequencies
    turns = rope["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * (kept + (1 - kept) / rope["factor"])


def rotary_embedding(config: LatentAttentionConfig, length: int, like: torch.Tensor) -> torch.Tensor:
    """Cosines and sines `(2, length, d / 2)` of the rotary position embedding for a window's slots.

    Made anew in each forward, a few thousand numbers: a buffer would have to survive every way of loading.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    frequencies = rotary_frequencies(config, like.device, dtype)
    angles = torch.arange(length, device=like.device, dtype=dtype)[:, None] * frequencies
    return torch.stack([angles.cos(), angles.sin()]).to(like.dtype)


def rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """`states` `(..., d)` turned by the angles of which these are cosines and sines, `(..., d / 2)` each."""
    first, second = states.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def window_positions(config: LatentAttentionConfig, layout: ChunkLayout, like: torch.Tensor) -> tuple:
    """
    Cosines and sines of the slots where tokens stand, in the window's second chunk, `(2, S, d / 2)` or in a step
    `(2, B, 1, 1, 1, d / 2)`; and of a whole chunk, `(2, d / 2)`, by which keys turn when they are seen from the next.
    """
    size = config.chunk_size
    table = rotary_embedding(config, 2 * size, like)
    positions = table[:, layout.slot + size][:, :, None, None, None] if layout.is_step else table[:, size:]
    return positions, table[:, size]


def local_attention_mask(config: LatentAttentionConfig, layout: ChunkLayout, dtype: torch.dtype) -> torch.Tensor:
    """Which slots of its window each slot attends to, `(R N, 1, S, 2C)`, or `(R N, 1, C, 3C)` in both directions."""
    rows, chunks, slots = layout.grid_shape
    order = torch.arange(config.chunk_size, device=layout.has_previous.device)
    if config.is_causal:
        query_slots = layout.slot[:, None] if layout.is_step else order[None]  # (R or 1, S)
        own = order <= query_slots[:, None, :, None]  # (R or 1, 1, S, C)
        before = layout.has_previous[:, :, None, None]  # (R or 1, N, 1, 1)
        halves = (half.expand(*layout.grid_shape, order.shape[0]) for half in (before, own))
        allowed = torch.cat(list(halves), dim=-1)  # (R, N, S, 2C)
    else:
        valid = layout.slot_valid
        valid = order.new_ones(1, chunks, slots, dtype=torch.bool) if valid is None else valid
        nothing = torch.zeros_like(valid[:, :1])
        window = [torch.cat([nothing, valid[:, :-1]], 1), valid, torch.cat([valid[:, 1:], nothing], 1)]
        # A spare slot has at least itself to look at, so that it stays finite.
        itself = order[:, None] + slots == torch.arange(3 * slots, device=order.device)
        allowed = torch.cat(window, dim=-1)[:, :, None] | itself  # (R or 1, N, C, 3C)
    allowed = allowed.expand(rows, *allowed.shape[1:]).flatten(0, 1)[:, None]
    return attention_mask_of(allowed, config, dtype)


def windows_of(
    first: torch.Tensor | None, as_earlier: torch.Tensor, own: torch.Tensor, as_later: torch.Tensor | None
) -> torch.Tensor:
    """
    Each chunk `(R, N, Hkv, C, d)` after the one before it and, where there is an `as_later`, before the next, as they
    look from there; in front of all of them `first` `(R, Hkv, C, d)`, of the cache.
    """
    nothing = torch.zeros_like(own[:, :1])
    first = nothing if first is None else first[:, None]
    window = [torch.cat([first, as_earlier[:, :-1]], dim=1), own]
    if as_later is not None:
        window.append(torch.cat([as_later[:, 1:], nothing], dim=1))
    return torch.cat(window, dim=3)


class LocalAttention(MultiHeadAttention):
    """Self-attention to the chunk before and to the own one; in a bidirectional model also to the one after."""

    def __init__(self, config: LatentAttentionConfig):
        super().__init__(config, output_size=branch_size(config))

    def forward(
        self,
        hidden_states: torch.Tensor,
        layout: ChunkLayout,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor,
        cached: WindowState | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, WindowState]:
        """
        `(R, N, S, D) -> (R, N, S, D)`, the weights, and the state: the windows `(R, N, Hkv, 2C, d)` that were
        attended to.
        """
        positions, chunk_angle = position_embeddings
        queries = rotate(self.queries(hidden_states), *positions)  # (R, N, H, S, d)
        keys, values = self.keys_values(hidden_states)  # (R, N, Hkv, S, d)
        keys = rotate(keys, *positions)
        if layout.is_step:
            states = self.write_step(keys, values, layout, chunk_angle, cached)
            keys, values = (tensor[:, None] for tensor in states)
        else:
            states = keys, values = self.grid_windows(keys, values, layout, chunk_angle, cached)
        output, weights = super().forward(queries, keys, values, attention_mask)
        return output, weights, WindowState(*states)

    def grid_windows(self, keys, values, layout: ChunkLayout, chunk_angle, cached: WindowState | None) -> tuple:
        """Keys and values of each chunk's window, `(R, N, Hkv, 2C or 3C, d)` each. Keys come rotated by their slot."""
        size = self.config.chunk_size
        first_keys = first_values = None
        if cached is not None:
            keys = take_cached(keys, cached.keys[:, :, size:], layout.filled)
            values = take_cached(values, cached.values[:, :, size:], layout.filled)
            first_keys, first_values = cached.keys[:, :, :size], cached.values[:, :, :size]
        cos, sin = chunk_angle
        later_keys, later_values = (None, None) if self.config.is_causal else (rotate(keys, cos, sin), values)
        return (
            windows_of(first_keys, rotate(keys, cos, -sin), keys, later_keys),
            windows_of(first_values, values, values, later_values),
        )

    def write_step(self, keys, values, layout: ChunkLayout, chunk_angle, cached: WindowState) -> list[torch.Tensor]:
        """One token's keys and values into the window, which moves on by a chunk in rows that enter one."""
        size = self.config.chunk_size
        cos, sin = chunk_angle

        def move_on(window: WindowState) -> WindowState:
            before = rotate(window.keys[:, :, size:], cos, -sin), window.values[:, :, size:]
            return WindowState(*(nn.functional.pad(tensor, (0, 0, 0, size)) for tensor in before))

        window = update_rows(cached, layout, move_on)
        slot = layout.slot + size
        return [write_slot(old, slot, new[:, 0]) for old, new in zip(window, (keys, values), strict=True)]
