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
"""The chunk layout: every real token gets a slot, so that every sequence starts at a chunk boundary.

Left padding, right padding, holes in the mask, a continued prompt whose rows stand at different points of a chunk
and packed documents are all a gather into slots before the first layer and a gather back after the last. Between
the two, hidden states are `(R, N, S, D)`: R rows, N chunks, S slots. Three layouts share this form:

* a *grid* of whole chunks, S = C, for training and prefill;
* one *step* of decoding, N = S = 1: the token goes to the slot that its row has reached;
* the bidirectional grid, where a row is one document, so that each has latents of its own.
"""

from typing import NamedTuple

import torch


class ChunkLayout(NamedTuple):
    """Where tokens stand. `None` stands for the plain case throughout, so that it costs nothing.

    Attributes:
        batch_shape: `(B, T)` of the tokens.
        grid_shape: `(R, N, S)` of the slots.
        slot_tokens: `(R * N * S,)`, index of each slot's token among the `B * T`; `None`: slot i holds token i.
        token_slots: `(B * T,)`, index of each token's slot among the `R * N * S`.
        token_valid: `(B, T)`, whether a token is real, and has a slot of its own; `None`: every one.
        slot_valid: `(R, N, S)`, whether a token stands there; `None` in the plain case without spare slots.
        has_previous: `(R or 1, N)`, whether the chunk before belongs to the same sequence.
        sequence_ids: `(R, N)`, only where a row packs several sequences.
        chunks_before: `(R, N)`, chunks of the same sequence in front of each; only beside `sequence_ids`.
        filled: `(B,)`, slots of the first chunk whose tokens are in the cache already; only in a continued grid.
        ends, seen: `(B, T)`, the slot after token t, and the tokens of its sequence up to it; only beside a cache.
        slot: `(B,)`, the slot of the new token, only in a step.
        new_chunk_rows: `(X,)`, candidates: every row that enters a new chunk is among them; only in a step.
        enters_chunk: `(X,)`, which of the candidates do.
    """

    batch_shape: tuple[int, int]
    grid_shape: tuple[int, int, int]
    has_previous: torch.Tensor
    slot_tokens: torch.Tensor | None = None
    token_slots: torch.Tensor | None = None
    token_valid: torch.Tensor | None = None
    slot_valid: torch.Tensor | None = None
    sequence_ids: torch.Tensor | None = None
    chunks_before: torch.Tensor | None = None
    filled: torch.Tensor | None = None
    ends: torch.Tensor | None = None
    seen: torch.Tensor | None = None
    slot: torch.Tensor | None = None
    new_chunk_rows: torch.Tensor | None = None
    enters_chunk: torch.Tensor | None = None

    @property
    def is_step(self) -> bool:
        return self.slot is not None

    def to_slots(self, tokens: torch.Tensor) -> torch.Tensor:
        """`(B, T, ...) -> (R, N, S, ...)`; slots without a token hold zeros."""
        if self.slot_tokens is not None:
            slots = tokens.flatten(0, 1)[self.slot_tokens].unflatten(0, self.grid_shape)
            return slots.masked_fill(~self.slot_valid.reshape(self.grid_shape + (1,) * (tokens.ndim - 2)), 0)
        rows, chunks, size = self.grid_shape
        spare = chunks * size - tokens.shape[1]
        if spare:
            tokens = torch.cat([tokens, tokens.new_zeros(rows, spare, *tokens.shape[2:])], dim=1)
        return tokens.unflatten(1, (chunks, size))

    def to_tokens(self, slots: torch.Tensor) -> torch.Tensor:
        """
        `(R, N, S, ...) -> (B, T, ...)`. Padding has no slot: it gets what the real token before it gets, from which
        the next one is predicted; in front of the first token of a row, or of its part beside a cache, it gets zeros.
        The slots may be on another device than the first layer, for which the layout was made.
        """
        if self.token_slots is not None:
            tokens = slots.flatten(0, 2)[self.token_slots.to(slots.device)].unflatten(0, self.batch_shape)
            leading = self.token_valid.to(slots.device).cumsum(1) == 0  # (B, T)
            return tokens.masked_fill(leading.reshape(self.batch_shape + (1,) * (tokens.ndim - 2)), 0)
        return slots.flatten(1, 2)[:, : self.batch_shape[1]]


def chunks_of(length: int, chunk_size: int) -> int:
    """That hold `length` tokens, at least 1. Not `-(-length // size)`: ONNX rounds a negative quotient upwards."""
    return (length - 1) // chunk_size + 1


def grid_layout(
    batch_shape: tuple[int, int],
    chunk_size: int,
    device: torch.device,
    valid: torch.Tensor | None = None,
    starts: torch.Tensor | None = None,
    tokens_seen: torch.Tensor | None = None,
    with_cache: bool = False,
    most_sequences: int | None = None,
) -> ChunkLayout:
    """Layout of whole chunks for a causal model.

    Args:
        batch_shape: `(B, T)`.
        chunk_size: tokens per chunk C.
        device: where the indices go.
        valid: `(B, T)` bool, `False` for padding; `None`: every token is real.
        starts: `(B, T)` bool, real tokens that start a packed sequence; `None`: a row is one sequence.
        tokens_seen: `(B,)`, tokens of the sequence that the cache holds; `None`: it is empty. Never beside `starts`.
        with_cache: whether `ends` and `seen` are needed.
        most_sequences: how many packed sequences there are at most, if the caller knows: a compiled graph, which
            can't look how many chunks they fill, then makes room for one chunk more each.
    """
    if valid is None and starts is None and tokens_seen is None:
        return _plain_layout(batch_shape, chunk_size, device, with_cache)
    batch, length = batch_shape
    valid = torch.ones(batch_shape, dtype=torch.bool, device=device) if valid is None else valid
    past = torch.zeros(batch, dtype=torch.long, device=device) if tokens_seen is None else tokens_seen
    filled = torch.where(past > 0, (past - 1) % chunk_size + 1, 0)  # (B,), C for a chunk that is complete
    place = _places(valid, starts) + past[:, None]  # (B, T)
    opens_chunk = valid & (place % chunk_size == 0)
    chunk = (opens_chunk.cumsum(1) - 1 + (filled > 0)[:, None]).clamp(min=0)  # (B, T)
    slot = chunk * chunk_size + place % chunk_size  # (B, T)
    if starts is None:
        chunks = chunks_of(length if tokens_seen is None else length + chunk_size, chunk_size)
    elif torch.compiler.is_compiling() and most_sequences is not None:
        chunks = length // chunk_size + most_sequences
    else:
        # The one case whose number of chunks depends on the data: it waits for the device, once a forward.
        chunks = int(chunk.max()) + 1
    has_previous = _has_previous(chunk.where(opens_chunk, chunks), chunks, place >= chunk_size, past > chunk_size)
    return ChunkLayout(
        batch_shape,
        (batch, chunks, chunk_size),
        has_previous,
        filled=None if tokens_seen is None else filled,
        **_gather_indices(slot, valid, (batch, chunks, chunk_size)),
        **(_sequences(has_previous) if starts is not None else {}),
        **(_progress(slot, place, valid, filled, past) if with_cache else {}),
    )


def bidirectional_layout(
    batch_shape: tuple[int, int],
    chunk_size: int,
    device: torch.device,
    valid: torch.Tensor | None = None,
    starts: torch.Tensor | None = None,
) -> ChunkLayout:
    """Layout of whole chunks for a bidirectional model: one row per sequence. Arguments as in `grid_layout`."""
    if valid is None and starts is None:
        return _plain_layout(batch_shape, chunk_size, device, with_cache=False)
    batch, length = batch_shape
    valid = torch.ones(batch_shape, dtype=torch.bool, device=device) if valid is None else valid
    row = torch.arange(batch, device=device)[:, None].expand(batch_shape)
    place = _places(valid, starts)
    rows, longest = batch, length
    if starts is not None:
        row = ((valid & (place == 0)).flatten().cumsum(0) - 1).clamp(min=0).view(batch_shape)
        rows, longest = int(row.max()) + 1, max(int(place.max()), 0) + 1  # one slot where all is padding
    chunks = chunks_of(longest, chunk_size)
    has_previous = (torch.arange(chunks, device=device) > 0)[None]  # (1, N)
    slot = row * chunks * chunk_size + place.clamp(min=0)  # already counted over all rows
    grid_shape = (rows, chunks, chunk_size)
    return ChunkLayout(
        batch_shape, grid_shape, has_previous, **_gather_indices(slot, valid, grid_shape, per_row=False)
    )


def step_layout(tokens_seen: torch.Tensor, chunk_size: int, new_chunk_rows: torch.Tensor | None = None) -> ChunkLayout:
    """
    Layout of one decoding step, one real token per row.

    Args:
        tokens_seen: `(B,)`, tokens of the sequence that the cache holds.
        chunk_size: tokens per chunk C.
        new_chunk_rows: rows among which are all that enter a new chunk, if the caller knows; without it, looking
            costs one wait for the device, and under `torch.compile` every row is taken for one.
    """
    batch, device = tokens_seen.shape[0], tokens_seen.device
    slot = tokens_seen % chunk_size
    enters_chunk = (slot == 0) & (tokens_seen > 0)
    if new_chunk_rows is None:
        compiling = torch.compiler.is_compiling()
        new_chunk_rows = torch.arange(batch, device=device) if compiling else enters_chunk.nonzero()[:, 0]
    return ChunkLayout(
        (batch, 1),
        (batch, 1, 1),
        (tokens_seen >= chunk_size)[:, None],
        seen=(tokens_seen + 1)[:, None],
        slot=slot,
        new_chunk_rows=new_chunk_rows,
        enters_chunk=enters_chunk[new_chunk_rows],
    )


def _plain_layout(batch_shape, chunk_size: int, device, with_cache: bool) -> ChunkLayout:
    """No padding, no packing, nothing cached: slot i holds token i, and a few spare slots end the last chunk."""
    batch, length = batch_shape
    chunks = chunks_of(length, chunk_size)
    has_previous = (torch.arange(chunks, device=device) > 0)[None]  # (1, N)
    slot_valid = None
    if chunks * chunk_size > length:
        slot_valid = (torch.arange(chunks * chunk_size, device=device) < length).view(1, chunks, chunk_size)
    seen = (torch.arange(length, device=device) + 1).expand(batch_shape) if with_cache else None
    return ChunkLayout(
        batch_shape, (batch, chunks, chunk_size), has_previous, slot_valid=slot_valid, ends=seen, seen=seen
    )


def _places(valid, starts) -> torch.Tensor:
    """Every real token's place in its sequence, `(B, T)`."""
    rank = valid.cumsum(1) - 1  # order among the row's real tokens
    return rank if starts is None else rank - torch.where(starts, rank, 0).cummax(1).values


def _has_previous(opened, chunks: int, continues, first_continues) -> torch.Tensor:
    """
    Which chunks `(B, chunks)` continue the one before: as the tokens `(B, T)` say that open them, and of a row's
    first one, which may be in the cache, as `first_continues` `(B,)` says. Other tokens open one more: it is dropped.
    """
    has_previous = torch.zeros(opened.shape[0], chunks + 1, dtype=torch.bool, device=opened.device)
    has_previous[:, 0] = first_continues
    return has_previous.scatter(1, opened, continues)[:, :-1]


def _gather_indices(slot, valid, grid_shape, per_row: bool = True) -> dict:
    """Both directions of the gather, and which slots are taken. `slot` is `(B, T)`, counted per row or over all."""
    rows, chunks, size = grid_shape
    total = rows * chunks * size
    if per_row:
        slot = slot + torch.arange(rows, device=slot.device)[:, None] * chunks * size
    token_slots = slot.flatten()  # of padding: some slot of its own row, so that it depends on nothing else
    slot = slot.where(valid, total).flatten()  # padding goes to one more slot, which is dropped
    order = torch.arange(slot.shape[0], device=slot.device)
    slot_tokens = order.new_zeros(total + 1).scatter(0, slot, order)[:-1]
    slot_valid = torch.zeros(total + 1, dtype=torch.bool, device=slot.device).scatter(0, slot, valid.flatten())[:-1]
    return {
        "slot_tokens": slot_tokens,
        "token_slots": token_slots,
        "token_valid": valid,
        "slot_valid": slot_valid.view(grid_shape),
    }


def _sequences(has_previous) -> dict:
    """Number the sequences of each row, and each sequence's chunks."""
    order = torch.arange(has_previous.shape[1], device=has_previous.device).expand_as(has_previous)
    first = torch.where(has_previous, 0, order).cummax(1).values
    return {"sequence_ids": (~has_previous).cumsum(1), "chunks_before": order - first}


def _progress(slot, place, valid, filled, past) -> dict:
    """For every token, where the next one would go and how much of the sequence has been seen: `(B, T)` each."""
    order = torch.arange(slot.shape[1], device=slot.device).expand_as(slot)
    last = torch.where(valid, order, -1).cummax(1).values  # the last real token so far, -1 before the first
    ends = torch.where(last < 0, filled[:, None], slot.gather(1, last.clamp(min=0)) + 1)
    seen = torch.where(last < 0, past[:, None], place.gather(1, last.clamp(min=0)) + 1)
    return {"ends": ends, "seen": seen}
