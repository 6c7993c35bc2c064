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
and packed documents are all a gather into slots before the first layer and a gather back after the last.

There are two layouts. A *grid* of whole chunks is for training and prefill: between the two gathers hidden states are
`(R, N, C, D)`, R rows of N chunks of C slots. (In a bidirectional model a row of the grid is one document, so that
each has latents of its own.) A *step* of decoding adds one token to each sequence, in the slot that it has reached:
its hidden states stay `(B, 1, D)`.
"""

from typing import NamedTuple

import torch


class SlotIndices(NamedTuple):
    """Both directions of the gather between tokens and slots, for rows that are not simply filled from the left."""

    slot_tokens: torch.Tensor  # (R * N * C,), index of each slot's token among the B * T
    token_slots: torch.Tensor  # (B * T,), index of each token's slot among the R * N * C
    token_valid: torch.Tensor  # (B, T), whether a token is real, and has a slot of its own


class Progress(NamedTuple):
    """Where sequences stand after a token: after every one of a grid `(B, T)`, or after a certain one `(B,)`."""

    end: torch.Tensor  # the slot of its row in which the next token would stand
    seen: torch.Tensor  # tokens of the sequence up to this one


class GridLayout(NamedTuple):
    """Where tokens stand in whole chunks. `None` stands for the plain case throughout, so that it costs nothing."""

    batch_shape: tuple[int, int]  # (B, T) of the tokens
    grid_shape: tuple[int, int, int]  # (R, N, C) of the slots
    chunk_index: torch.Tensor  # (R or 1, N), number of each chunk in its sequence, from 0
    # (R or 1, N, C), whether a new token stands there. In other slots a layer's states are finite, and mean nothing:
    # mask what you sum. In a shard this is always None, although slots may be empty, which then hold another token:
    # `shard.token_indices` is negative for them.
    slot_valid: torch.Tensor | None = None
    indices: SlotIndices | None = None  # None: slot i holds token i
    # Both only where a row packs several sequences: the sequence of each chunk, or the first that shares it, and the
    # place of each slot's token in its sequence, from 0. Sequences that share a chunk are told apart by `places`
    # alone, and none of them goes on in the next chunk.
    sequence_ids: torch.Tensor | None = None  # (R, N)
    places: torch.Tensor | None = None  # (R, N, C)
    # (B,), slots of the first chunk whose tokens are in the cache already. They are not valid; a layer takes what it
    # needs of them from the cache (`KeysValues.with_cached`).
    filled: torch.Tensor | None = None
    progress: Progress | None = None  # (B, T), only beside a cache
    shard: tuple | None = None  # a `Shard`, where the chunks are one rank's of several that share the sequences

    def to_slots(self, tokens: torch.Tensor) -> torch.Tensor:
        """`(B, T, ...) -> (R, N, C, ...)`; slots without a token hold zeros."""
        if self.indices is not None:
            slots = tokens.flatten(0, 1)[self.indices.slot_tokens].unflatten(0, self.grid_shape)
            return slots.masked_fill(~self.slot_valid.reshape(self.grid_shape + (1,) * (tokens.ndim - 2)), 0)
        rows, chunks, size = self.grid_shape
        spare = chunks * size - tokens.shape[1]
        if spare:
            tokens = torch.cat([tokens, tokens.new_zeros(rows, spare, *tokens.shape[2:])], dim=1)
        return tokens.unflatten(1, (chunks, size))

    def to_tokens(self, slots: torch.Tensor) -> torch.Tensor:
        """
        `(R, N, C, ...) -> (B, T, ...)`. Padding has no slot: it gets what the real token before it gets, from which
        the next one is predicted; in front of the first token of a row, or of its part beside a cache, it gets zeros.
        The slots may be on another device than the first layer, for which the layout was made.
        """
        if self.indices is None:
            return slots.flatten(1, 2)[:, : self.batch_shape[1]]
        tokens = slots.flatten(0, 2)[self.indices.token_slots.to(slots.device)].unflatten(0, self.batch_shape)
        leading = self.indices.token_valid.to(slots.device).cumsum(1) == 0  # (B, T)
        return tokens.masked_fill(leading.reshape(self.batch_shape + (1,) * (tokens.ndim - 2)), 0)

    def progress_after(self, token: int) -> Progress:
        """Where each row's sequence stands after the `token`-th of the T tokens, `(B,)` each."""
        return Progress(*(tensor[:, token].clone() for tensor in self.progress))  # not views, which would keep all T


class StepLayout(NamedTuple):
    """Where one more token of each sequence goes."""

    tokens_after: torch.Tensor  # (B,), tokens of the sequence, the new one among them
    slot: torch.Tensor  # (B,), the slot of the new token in its chunk
    new_chunk_rows: torch.Tensor  # (X,), candidates: every row that enters a new chunk is among them
    enters_chunk: torch.Tensor  # (X,), which of the candidates do
    chunk_index: torch.Tensor  # (B, 1), number of the new token's chunk in its sequence, from 0

    def to_slots(self, tokens: torch.Tensor) -> torch.Tensor:
        """`(B, 1, D)`, as they are: every token has a slot, and there is one."""
        return tokens

    def to_tokens(self, slots: torch.Tensor) -> torch.Tensor:
        return slots


def chunks_of(length: int, chunk_size: int) -> int:
    """
    How many chunks hold `length` tokens, at least 1. Not written as `-(-length // size)`, because ONNX rounds a
    negative quotient upwards.
    """
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
) -> GridLayout:
    """Layout of whole chunks for a causal model.

    Args:
        batch_shape: `(B, T)`.
        chunk_size: tokens per chunk C.
        device: where the indices go.
        valid: `(B, T)` bool, `False` for padding; `None`: every token is real.
        starts: `(B, T)` bool, real tokens that start a packed sequence; `None`: a row is one sequence.
        tokens_seen: `(B,)`, tokens of the sequence that the cache holds; `None`: it is empty. Never beside `starts`.
        with_cache: whether `progress` is needed.
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
    compiled = torch.compiler.is_compiling() and most_sequences is not None
    if starts is not None and not with_cache and not compiled:
        slot, chunks = _slots_of_documents(place, valid, chunk_size)
    else:
        slot = _slots_in_own_chunks(place, valid, filled, chunk_size)
        if starts is None:
            chunks = chunks_of(length if tokens_seen is None else length + chunk_size, chunk_size)
        else:
            chunks = length // chunk_size + most_sequences if compiled else int(slot.max()) // chunk_size + 1
    chunk, opens_chunk = slot // chunk_size, valid & (place % chunk_size == 0)  # (B, T)
    first_index = (past - 1).clamp(min=0) // chunk_size  # (B,), of a row's first chunk, which may be in the cache
    chunk_index = _chunk_index(chunk.where(opens_chunk, chunks), chunks, place // chunk_size, first_index)
    gather = _gather_indices(slot, valid, (batch, chunks, chunk_size))
    sequence_ids = places = None
    if starts is not None:
        sequence_ids = (chunk_index == 0).cumsum(1)
        places = place.clamp(min=0).flatten()[gather["indices"].slot_tokens].view(batch, chunks, chunk_size)
    return GridLayout(
        batch_shape,
        (batch, chunks, chunk_size),
        chunk_index,
        **gather,
        sequence_ids=sequence_ids,
        places=places,
        filled=None if tokens_seen is None else filled,
        progress=_progress(slot, place, valid, filled, past) if with_cache else None,
    )


def bidirectional_layout(
    batch_shape: tuple[int, int],
    chunk_size: int,
    device: torch.device,
    valid: torch.Tensor | None = None,
    starts: torch.Tensor | None = None,
) -> GridLayout:
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
    slot = row * chunks * chunk_size + place.clamp(min=0)  # already counted over all rows
    grid_shape = (rows, chunks, chunk_size)
    chunk_index = torch.arange(chunks, device=device)[None]  # (1, N)
    return GridLayout(batch_shape, grid_shape, chunk_index, **_gather_indices(slot, valid, grid_shape, per_row=False))


def step_layout(tokens_seen: torch.Tensor, chunk_size: int, new_chunk_rows: torch.Tensor | None = None) -> StepLayout:
    """
    Layout of one decoding step, one real token per row.

    Args:
        tokens_seen: `(B,)`, tokens of the sequence that the cache holds.
        chunk_size: tokens per chunk C.
        new_chunk_rows: rows among which are all that enter a new chunk, if the caller knows; without it, looking
            costs one wait for the device, and under `torch.compile` every row is taken for one.
    """
    slot = tokens_seen % chunk_size
    enters_chunk = (slot == 0) & (tokens_seen > 0)
    if new_chunk_rows is None or torch.compiler.is_exporting():  # an exported graph is for all steps, not this one
        compiling = torch.compiler.is_compiling()
        rows = torch.arange(tokens_seen.shape[0], device=tokens_seen.device)
        new_chunk_rows = rows if compiling else enters_chunk.nonzero()[:, 0]
    chunk_index = (tokens_seen // chunk_size)[:, None]
    return StepLayout(tokens_seen + 1, slot, new_chunk_rows, enters_chunk[new_chunk_rows], chunk_index)


def running_max(values: torch.Tensor) -> torch.Tensor:
    """
    The greatest of each row's values so far, `(B, T)`. It is taken by its index and not by its name, because the
    library's ONNX exporter turns what `cummax` returns into a plain tuple.
    """
    return values.cummax(1)[0]


def _plain_layout(batch_shape, chunk_size: int, device, with_cache: bool) -> GridLayout:
    """No padding, no packing, nothing cached: slot i holds token i, and a few spare slots end the last chunk."""
    batch, length = batch_shape
    chunks = chunks_of(length, chunk_size)
    chunk_index = torch.arange(chunks, device=device)[None]  # (1, N)
    slot_valid = None
    if chunks * chunk_size > length:
        slot_valid = (torch.arange(chunks * chunk_size, device=device) < length).view(1, chunks, chunk_size)
    seen = (torch.arange(length, device=device) + 1).expand(batch_shape)
    progress = Progress(seen, seen) if with_cache else None
    return GridLayout(batch_shape, (batch, chunks, chunk_size), chunk_index, slot_valid, progress=progress)


def last_real(valid: torch.Tensor) -> torch.Tensor:
    """The place in its row of the last real token up to each one, `(B, T)`; -1 in front of the first."""
    order = torch.arange(valid.shape[1], device=valid.device).expand_as(valid)
    return running_max(torch.where(valid, order, -1))


def _places(valid, starts) -> torch.Tensor:
    """Every real token's place in its sequence, `(B, T)`."""
    rank = valid.cumsum(1) - 1  # order among the row's real tokens
    return rank if starts is None else rank - running_max(torch.where(starts, rank, 0))


def _slots_in_own_chunks(place, valid, filled, chunk_size: int) -> torch.Tensor:
    """The slots of tokens in their rows, `(B, T)`, where every sequence starts a chunk, or continues one `filled`."""
    opened = (valid & (place % chunk_size == 0)).cumsum(1)  # (B, T), chunks so far
    chunk = (opened - 1 + (filled > 0)[:, None]).clamp(min=0)
    return chunk * chunk_size + place % chunk_size


def _slots_of_documents(place, valid, chunk_size: int) -> tuple[torch.Tensor, int]:
    """
    The slots of packed documents' tokens in their rows, `(B, T)`, and how many chunks the fullest row has. This waits
    for the device once, for the lengths of the documents: how many chunks there are depends on them.
    """
    document = ((valid & (place == 0)).cumsum(1) - 1).clamp(min=0)  # (B, T)
    lengths = torch.zeros_like(place).scatter_add(1, document, valid.to(place.dtype)).cpu()  # (B, T), 0 of no document
    most = max(int((lengths > 0).sum(1).max()), 1)
    rows = [first_slots(row, chunk_size) for row in lengths[:, :most].tolist()]
    first = torch.tensor([row[:-1] for row in rows], device=place.device)  # (B, documents)
    slot = (first.gather(1, document) + place).clamp(min=0)
    return slot, chunks_of(max(row[-1] for row in rows), chunk_size)


def first_slots(lengths: list[int], chunk_size: int) -> list[int]:
    """
    Where documents of these lengths begin in their row, and as a last number how many slots they fill. A document
    begins right behind the one before it if both are no longer than a chunk and the chunk has room for it, otherwise
    with a chunk of its own: all tokens of a chunk read the same latents, and those of shared chunks have read nothing.
    """
    slots, end = [], 0
    for length in lengths:
        left = -end % chunk_size  # slots of the last chunk
        start = end if length <= left else end + left
        slots.append(start)
        end = start + length
        if length > chunk_size:
            end += -end % chunk_size
    return [*slots, end]


def _chunk_index(opened, chunks: int, index, first_index) -> torch.Tensor:
    """
    The number of each chunk in its sequence, `(B, chunks)`: as the tokens `(B, T)` say that open them, and of a row's
    first one, which may be in the cache, as `first_index` `(B,)` says. Other tokens open one chunk more, which is
    dropped. A chunk that no token opens counts as the first of a sequence of its own.
    """
    chunk_index = index.new_zeros(opened.shape[0], chunks + 1)
    chunk_index[:, 0] = first_index
    return chunk_index.scatter(1, opened, index)[:, :-1]


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
    return {"indices": SlotIndices(slot_tokens, token_slots, valid), "slot_valid": slot_valid.view(grid_shape)}


def _progress(slot, place, valid, filled, past) -> Progress:
    """Where each sequence stands after every token. Padding changes nothing."""
    last = last_real(valid)
    end = torch.where(last < 0, filled[:, None], slot.gather(1, last.clamp(min=0)) + 1)
    seen = torch.where(last < 0, past[:, None], place.gather(1, last.clamp(min=0)) + 1)
    return Progress(end, seen)
