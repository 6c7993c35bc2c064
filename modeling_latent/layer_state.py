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
"""What a layer remembers, as types: the state beside a cache, and the grid of a forward over whole chunks.

A *state* is what one layer keeps of each sequence, of constant size. A *grid* is what a forward over whole chunks
computed for each of them, which holds the state after every one of its tokens: `state_after` picks one.

Updates of a state make new tensors and leave the old ones alone, so that to remember an earlier state is to keep a
reference. Every tensor of a state owns its storage: a view would keep all of a prompt in memory, and on disk.
"""

from typing import NamedTuple

import torch

from .chunk_layout import GridLayout, Progress, StepLayout
from .named_parts import made_like_a_tuple
from .prefix_statistics import Statistics
from .token_conv import last_inputs


def map_tensors(change, parts, *others):
    """
    Call `change` with every tensor of `parts` and the tensors at its place in `others`, and return the results in the
    same form. Parts that a layer does not have stay `None`. `tree_map` would not do: to it the states of two copies of
    this code, as two checkpoints bring them, are not alike.
    """
    if parts is None:
        return None
    if isinstance(parts, torch.Tensor):
        return change(parts, *others)
    return type(parts)(*(map_tensors(change, *part) for part in zip(parts, *others, strict=True)))


@made_like_a_tuple
class KeysValues(NamedTuple):
    """Keys and values of one attention, `(..., Hkv, S, d)` each, S tokens, slots or latents."""

    keys: torch.Tensor
    values: torch.Tensor

    def slots(self, start: int, stop: int) -> "KeysValues":
        return map_tensors(lambda tensor: tensor[..., start:stop, :], self)

    def write(self, slot: torch.Tensor, new: "KeysValues") -> "KeysValues":
        """Put `new` `(B, Hkv, 1, d)` into each row's `slot` `(B,)` of a copy, `(B, Hkv, S, d)`."""
        index = slot[:, None, None, None]
        return map_tensors(lambda old, one: old.scatter(2, index.expand_as(one), one.to(old.dtype)), self, new)

    def with_cached(self, cached: "KeysValues", filled: torch.Tensor) -> "KeysValues":
        """Take the first chunk's `filled` `(R,)` slots of `(R, N, Hkv, C, d)` from `cached` `(R, Hkv, C, d)`."""
        here = (torch.arange(self.keys.shape[3], device=filled.device) < filled[:, None])[:, None, :, None]
        first = map_tensors(lambda new, old: torch.where(here, old, new[:, 0]), self, cached)
        return map_tensors(lambda new, one: torch.cat([one[:, None], new[:, 1:]], dim=1), self, first)

    def pick(self, chunk: torch.Tensor, kept: torch.Tensor) -> "KeysValues":
        """Pick each row's `chunk` `(R,)` of a grid `(R, N, Hkv, S, d)`, and zero the slots not `kept` `(R, S)`."""
        return map_tensors(lambda grid: pick_chunk(grid, chunk) * kept[:, None, :, None].to(grid.dtype), self)


@made_like_a_tuple
class MemoryState(NamedTuple):
    """What the latents know, and what they will take in when the chunk in progress is complete."""

    chunk: KeysValues  # (B, Hkv, C, d), of compression, the chunk in progress
    statistics: Statistics  # (B, H, M) and (B, H, M, d), of all chunks before
    readout: KeysValues  # (B, Hkv, M, d), of retrieval, derived from the statistics by the three steps
    conv_inputs: torch.Tensor | None  # (B, K - 1, D), the last normed tokens


@made_like_a_tuple
class LayerState(NamedTuple):
    """
    The state of one layer: only what its kind needs. A cache that was saved with other fields can't be read any more.
    """

    # (B, Hkv, S + 2C, d), of local attention, rotated by slot: the sinks, the last complete chunk, the one in progress
    window: KeysValues | None
    memory: MemoryState | None
    mlp_conv_inputs: torch.Tensor | None  # (B, K - 1, D), the last normed tokens
    tokens_seen: torch.Tensor  # (B,), of the sequence in progress


class MemoryGrid(NamedTuple):
    """
    What latent attention computed for every chunk.

    Like every part of a grid it gives the state at any `progress`. There the last token of a row stands in slot
    `progress.end - 1`; with `progress.seen` of 0 the row has no token, and its state is zeros. A row may have no new
    token, so a grid also holds what the cache had. What is returned is a copy.
    """

    chunks: KeysValues  # (R, N, Hkv, C, d), of compression
    statistics: Statistics  # (R, N, H, M) and (R, N, H, M, d), of all chunks before each
    readout: KeysValues  # (R, N, Hkv, M, d)
    conv_inputs: torch.Tensor | None  # (R, K - 1 + N C, D), all of them

    def state_at(self, progress: Progress) -> MemoryState:
        """The state of sequences that stand there, among the slots of this grid."""
        chunk_size = self.chunks.keys.shape[3]
        chunk, in_progress = chunk_of(progress, chunk_size)
        return MemoryState(
            self.chunks.pick(chunk, in_progress),
            map_tensors(lambda grid: pick_chunk(grid, chunk), self.statistics),
            map_tensors(lambda grid: pick_chunk(grid, chunk), self.readout),
            last_inputs(self.conv_inputs, self.chunks.keys.shape[1] * chunk_size, progress),
        )


class LayerGrid(NamedTuple):
    """What one layer computed for every chunk, from which `state_after` makes the state after any of its tokens."""

    windows: KeysValues | None  # (R, N, Hkv, S + 2C, d), what the tokens of each chunk attended to
    memory: MemoryGrid | None
    mlp_conv_inputs: torch.Tensor | None  # (R, K - 1 + N C, D), all of them
    layout: GridLayout

    def state_after(self, token: int) -> LayerState:
        """
        The state after the `token`-th token of each row. What no later token may read is zeroed, so that equal
        histories give equal states, however they were reached.
        """
        progress = self.layout.progress_after(token)
        shard = self.layout.shard
        return self.state_at(progress) if shard is None else shard.from_owner(progress, self.state_at)

    def state_at(self, progress: Progress) -> LayerState:
        """The state of sequences that stand there, among the slots of this grid."""
        _, chunks, chunk_size = self.layout.grid_shape
        return LayerState(
            None if self.windows is None else window_after(self.windows, progress, chunk_size),
            None if self.memory is None else self.memory.state_at(progress),
            last_inputs(self.mlp_conv_inputs, chunks * chunk_size, progress),
            progress.seen,
        )


def window_after(windows: KeysValues, progress: Progress, chunk_size: int) -> KeysValues:
    """The window `(B, Hkv, S + 2C, d)` in which the next token, or the one that opens the next chunk, is written."""
    chunk, in_progress = chunk_of(progress, chunk_size)
    num_sinks = windows.keys.shape[3] - 2 * chunk_size
    sinks = (progress.seen > 2 * chunk_size)[:, None].expand(-1, num_sinks)
    before = (progress.seen > chunk_size)[:, None].expand(-1, chunk_size)
    return windows.pick(chunk, torch.cat([sinks, before, in_progress], dim=1))


def chunk_of(progress: Progress, chunk_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The chunk `(B,)` that holds the last token, and which of its slots `(B, C)` are taken."""
    chunk = ((progress.end - 1) // chunk_size).clamp(min=0)
    order = torch.arange(chunk_size, device=chunk.device)
    return chunk, order < (progress.end - chunk * chunk_size)[:, None]


def pick_chunk(grid: torch.Tensor, chunk: torch.Tensor) -> torch.Tensor:
    """Copy for each row the entry of that number `(R,)`, as of a chunk, out of a grid: `(R, N, ...) -> (R, ...)`."""
    return grid[torch.arange(chunk.shape[0], device=chunk.device), chunk]


def update_rows(state, layout: StepLayout, update):
    """Apply `update` to the rows of `state` that enter a new chunk. It gets those rows alone."""
    if layout.new_chunk_rows.shape[0] == 0:
        return state
    rows, enters = layout.new_chunk_rows, layout.enters_chunk
    old = map_tensors(lambda tensor: tensor[rows], state)

    def write(whole, before, after):
        chosen = torch.where(enters.view(-1, *(1,) * (after.ndim - 1)), after, before)
        return whole.index_copy(0, rows, chosen.to(whole.dtype))

    return map_tensors(write, state, old, update(old))
