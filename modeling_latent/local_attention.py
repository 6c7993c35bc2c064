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
"""Local attention: an exact window of two chunks, the first tokens of the sequence, and rotary positions within."""

import math
from typing import NamedTuple

import torch
from torch import nn

from .attention import MultiHeadAttention, attention_mask_of, branch_size, make_norm
from .chunk_layout import GridLayout, StepLayout
from .configuration_latent import LatentAttentionConfig
from .layer_state import KeysValues, map_tensors, update_rows


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
    """
    Cosines and sines `(2, length, d)` of the rotary position embedding for a window's slots. Each angle stands there
    twice, as it turns a number in either half of a head; the sines of the first half are negative, as `rotate` needs.

    Made anew in each forward, a few thousand numbers: a buffer would have to survive every way of loading.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    frequencies = rotary_frequencies(config, like.device, dtype)
    angles = torch.arange(length, device=like.device, dtype=dtype)[:, None] * frequencies
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)]).to(like.dtype)


class WindowRotation(NamedTuple):
    """
    Cosines and sines, `(2, ..., d)` each, by which queries and keys turn.

    The slots of a window are counted from its first sink: S sinks, C slots of the chunk before, C of the own chunk. So
    a key turns back by a chunk when it is seen from the next chunk, and by S slots more when it becomes a sink.
    """

    own: torch.Tensor  # of the slots where tokens stand: (2, C, d), in a step (2, B, 1, 1, d)
    chunk: torch.Tensor  # (2, d), by C slots
    to_sink: torch.Tensor  # (2, d), by S slots
    step_slot: torch.Tensor | None  # (B,), in a step the new token's slot among all S + 2C of its window


def window_rotation(
    config: LatentAttentionConfig, layout: GridLayout | StepLayout, like: torch.Tensor
) -> WindowRotation:
    size, sinks = config.chunk_size, config.num_sink_tokens
    table = rotary_embedding(config, sinks + 2 * size, like)  # (2, S + 2C, d)
    own, step_slot = table[:, sinks + size :], None
    if isinstance(layout, StepLayout):
        step_slot = layout.slot + (sinks + size)
        own = table[:, step_slot][:, :, None, None]
    return WindowRotation(own, table[:, size], table[:, sinks], step_slot)


def rotate(states: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    """
    Turn `states` `(..., d)` by the angles of which these are cosines and sines, `(2, ..., d)`. A pair of numbers that
    turn together, `(first, second)`, becomes `(first cos - second sin, second cos + first sin)`. The one is in the
    first half of the head, the other at the same place in the second, so half a roll puts each beside its partner.
    """
    cos, sin = rotation
    return torch.addcmul(states * cos, states.roll(states.shape[-1] // 2, -1), sin)


def rotate_back(states: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    cos, sin = rotation
    return rotate(states, (cos, -sin))


def local_attention_mask(config: LatentAttentionConfig, layout: GridLayout | StepLayout, dtype: torch.dtype):
    """
    Which slots of its window each query attends to, as the attention implementation wants it: `(R N, 1, C, S + 2C)`,
    in both directions `(R N, 1, C, 3C)`, in a step `(B, 1, 1, S + 2C)`.
    """
    if not config.is_causal:
        allowed = visible_both_ways(layout)
    elif isinstance(layout, StepLayout):
        allowed = visible_in_window(config, layout.chunk_index, layout.slot[:, None, None])
    else:
        order = torch.arange(config.chunk_size, device=layout.chunk_index.device)
        allowed = visible_in_window(config, layout.chunk_index, order[None, None], layout.places)
        allowed = allowed.expand(layout.grid_shape[0], *allowed.shape[1:])
    return attention_mask_of(allowed.flatten(0, 1)[:, None], config, dtype)


def visible_in_window(
    config: LatentAttentionConfig,
    chunk_index: torch.Tensor,
    query_slots: torch.Tensor,
    places: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    `(X, N, Q, S + 2C)`, for queries in the slots `(X or 1, 1, Q)` of chunks with these numbers `(X, N)`: the chunk
    before if there is one, the own chunk up to the query, and from the third chunk on the sinks, which until then are
    in the window. In a chunk that packed documents share, a query looks back no further than its own document goes,
    which is as many slots as its place `(X, N, Q)` there.
    """
    order = torch.arange(config.chunk_size, device=chunk_index.device)
    shape = (*chunk_index.shape, query_slots.shape[-1])
    sinks = (chunk_index >= 2)[..., None, None].expand(*shape, config.num_sink_tokens)
    before = (chunk_index >= 1)[..., None, None].expand(*shape, config.chunk_size)
    back = query_slots[..., None] - order  # (X or 1, 1, Q, C)
    own = back >= 0 if places is None else (back >= 0) & (back <= places[..., None])
    own = own.expand(*shape, config.chunk_size)
    return torch.cat([sinks, before, own], dim=-1)


def visible_both_ways(layout: GridLayout) -> torch.Tensor:
    """`(R, N, C, 3C)`, of a bidirectional model: every token in the chunks before, here and after."""
    rows, chunks, size = layout.grid_shape
    order = torch.arange(size, device=layout.chunk_index.device)
    valid = layout.slot_valid
    valid = order.new_ones(1, chunks, size, dtype=torch.bool) if valid is None else valid
    nothing = torch.zeros_like(valid[:, :1])
    window = [torch.cat([nothing, valid[:, :-1]], 1), valid, torch.cat([valid[:, 1:], nothing], 1)]
    # A spare slot has at least itself to look at, so that it stays finite.
    itself = order[:, None] + size == torch.arange(3 * size, device=order.device)
    allowed = torch.cat(window, dim=-1)[:, :, None] | itself  # (R or 1, N, C, 3C)
    return allowed.expand(rows, *allowed.shape[1:])


class LocalAttention(MultiHeadAttention):
    """
    Self-attention to the own chunk, to the chunk before and to the first tokens of the sequence; in a bidirectional
    model to the own chunk and to those before and after.
    """

    def __init__(self, config: LatentAttentionConfig):
        super().__init__(config, output_size=branch_size(config))
        self.q_norm, self.k_norm = (
            make_norm(config, config.head_dim) if config.qk_norm else nn.Identity() for _ in range(2)
        )

    def forward(
        self,
        hidden_states: torch.Tensor,
        layout: GridLayout | StepLayout,
        position_embeddings: WindowRotation,
        attention_mask: torch.Tensor,
        cached: KeysValues | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, KeysValues]:
        """
        Args:
            hidden_states: `(R, N, C, D)`, or in a step `(B, 1, D)`, normed.
            layout: where the tokens stand.
            position_embeddings, attention_mask: of this layout, the same for all layers.
            cached: the window `(B, Hkv, S + 2C, d)` that the tokens continue.

        Returns:
            As `hidden_states`; the weights; and the windows that were attended to, `(R, N, Hkv, S + 2C, d)`, or after
            a step the window, `(B, Hkv, S + 2C, d)`.
        """
        queries = self.q_norm(self.queries(hidden_states))  # (R, N, H, C, d) or (B, H, 1, d)
        queries = rotate(queries, position_embeddings.own)
        new = self.keys_values(hidden_states)  # (R, N, Hkv, C, d) or (B, Hkv, 1, d)
        new = new._replace(keys=rotate(self.k_norm(new.keys), position_embeddings.own))
        if isinstance(layout, StepLayout):
            window = self.write_step(new, layout, position_embeddings, cached)
        elif self.config.is_causal:
            window = self.causal_windows(new, layout, position_embeddings, cached)
        else:
            window = self.windows_both_ways(new, position_embeddings)
        output, weights = super().forward(queries, *window, attention_mask)
        return output, weights, window

    def write_step(
        self, new: KeysValues, layout: StepLayout, rotation: WindowRotation, cached: KeysValues
    ) -> KeysValues:
        """One token's keys and values into the window, which moves on by a chunk in rows that enter one."""
        size, sinks = self.config.chunk_size, self.config.num_sink_tokens

        def move_on(window: KeysValues) -> KeysValues:
            left = layout.chunk_index[layout.new_chunk_rows] - 1  # number of the chunk that is left behind
            kept = self.sinks_of(window, left, rotation)
            before = seen_from_next(window.slots(sinks + size, sinks + 2 * size), rotation)
            return join([kept, before, map_tensors(torch.zeros_like, before)])

        return update_rows(cached, layout, move_on).write(rotation.step_slot, new)

    def causal_windows(
        self, own: KeysValues, layout: GridLayout, rotation: WindowRotation, cached: KeysValues | None
    ) -> KeysValues:
        """Keys and values of each chunk's window, from those of the own chunks, whose keys come rotated by slot."""
        size, sinks = self.config.chunk_size, self.config.num_sink_tokens
        first = map_tensors(lambda tensor: torch.zeros_like(tensor[:, 0]), own)
        if cached is not None:
            own = own.with_cached(cached.slots(sinks + size, sinks + 2 * size), layout.filled)
            first = cached.slots(sinks, sinks + size)
        moved = seen_from_next(own, rotation)
        if layout.shard is not None:
            first = KeysValues(*layout.shard.from_left(torch.stack([tensor[:, -1] for tensor in moved])))
        before = shifted(first, moved)
        if not sinks:
            return join([before, own])
        return join([self.grid_sinks(own, layout, rotation, cached), before, own])

    def grid_sinks(
        self, own: KeysValues, layout: GridLayout, rotation: WindowRotation, cached: KeysValues | None
    ) -> KeysValues:
        """For each chunk the first tokens of its sequence, as sinks, `(R, N, Hkv, S, d)`; not masked yet."""
        rows, chunks, _ = layout.grid_shape
        sinks = self.as_sinks(seen_from_next(own.slots(0, self.config.num_sink_tokens), rotation), rotation)
        if layout.sequence_ids is not None or layout.shard is not None:
            row = torch.arange(rows, device=layout.chunk_index.device)[:, None]
            first_chunk = torch.arange(chunks, device=row.device) - layout.chunk_index  # (R or 1, N), of each sequence
            own = map_tensors(lambda tensor: tensor[row, first_chunk.clamp(min=0)], sinks)  # (R, N, Hkv, S, d)
            return own if layout.shard is None else self.sinks_before_shard(own, first_chunk < 0, layout)
        sinks = map_tensors(lambda tensor: tensor[:, 0], sinks)
        if cached is not None:
            index = layout.chunk_index[:, :1]  # (R, 1)
            in_cache = (index > 0)[:, :, None, None]
            kept = self.sinks_of(cached, index, rotation)
            sinks = map_tensors(lambda new, old: torch.where(in_cache, old, new), sinks, kept)
        return map_tensors(lambda tensor: tensor[:, None].expand(-1, chunks, -1, -1, -1), sinks)

    def sinks_before_shard(self, own: KeysValues, elsewhere: torch.Tensor, layout: GridLayout) -> KeysValues:
        """
        Put into the place of `own` sinks `(R, N, Hkv, S, d)` those of sequences that began on another rank
        `elsewhere` `(R or 1, N)`. A rank sends the sinks of its last sequence, for only that one goes on behind it.
        """
        first = KeysValues(*layout.shard.from_first_rank(torch.stack([tensor[:, -1] for tensor in own])))
        elsewhere = elsewhere[..., None, None, None]
        return map_tensors(lambda here, there: torch.where(elsewhere, there[:, None], here), own, first)

    def sinks_of(self, window: KeysValues, chunk_index: torch.Tensor, rotation: WindowRotation) -> KeysValues:
        """
        The sinks as the next chunk sees them, after a window whose own chunk has this number `(B, 1)`: from chunk 2 on
        those that it has; in chunk 1 the first tokens of the chunk before, which the window is about to lose.
        """
        sinks = self.config.num_sink_tokens
        fresh = self.as_sinks(window.slots(sinks, 2 * sinks), rotation)
        has_sinks = (chunk_index >= 2)[:, :, None, None]
        return map_tensors(lambda old, new: torch.where(has_sinks, old, new), window.slots(0, sinks), fresh)

    def as_sinks(self, before: KeysValues, rotation: WindowRotation) -> KeysValues:
        """Turn the keys of the first tokens from their slots in the chunk before back to the slots of sinks."""
        return before._replace(keys=rotate_back(before.keys, rotation.to_sink))

    def windows_both_ways(self, own: KeysValues, rotation: WindowRotation) -> KeysValues:
        """Make the windows of a bidirectional model, `(R, N, Hkv, 3C, d)`: the chunk before, the own, the next."""
        nothing = map_tensors(lambda tensor: torch.zeros_like(tensor[:, 0]), own)
        later = own._replace(keys=rotate(own.keys, rotation.chunk))
        after = map_tensors(lambda chunks, end: torch.cat([chunks[:, 1:], end[:, None]], dim=1), later, nothing)
        return join([shifted(nothing, seen_from_next(own, rotation)), own, after])


def seen_from_next(own: KeysValues, rotation: WindowRotation) -> KeysValues:
    """Keys and values of a chunk as the next chunk sees them: one chunk further back."""
    return own._replace(keys=rotate_back(own.keys, rotation.chunk))


def shifted(first: KeysValues, chunks: KeysValues) -> KeysValues:
    """Move chunks `(R, N, Hkv, C, d)` on by one: `first` `(R, Hkv, C, d)`, then all `chunks` but the last."""
    return map_tensors(lambda start, rest: torch.cat([start[:, None], rest[:, :-1]], dim=1), first, chunks)


def join(parts: list[KeysValues]) -> KeysValues:
    """Put the parts one after another along the slots."""
    return map_tensors(lambda *tensors: torch.cat(tensors, dim=-2), *parts)
