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
"""The state of one layer, of constant size, and the cache layers that hold it."""

from typing import NamedTuple

import torch
from transformers.cache_utils import STATIC_LAYER_TYPE_MAPPING, CacheLayerMixin, DynamicCache

from .chunk_layout import ChunkLayout
from .configuration_latent import LatentAttentionConfig
from .token_conv import last_inputs


# Tokens before a `crop` that the next one can undo: assistants with a tokenizer of their own go back further than they
# went forward, by the few tokens that their tokenizer cuts otherwise.
CROP_AGAIN = 64


class WindowState(NamedTuple):
    """Local attention's window: the chunk before the one in progress, then the one in progress, rotated by slot."""

    keys: torch.Tensor  # (B, Hkv, 2C, d)
    values: torch.Tensor  # (B, Hkv, 2C, d)


class MemoryState(NamedTuple):
    """What the latents know, and what they will take in when the chunk in progress is complete."""

    keys: torch.Tensor  # (B, Hkv, C, d), of compression, the chunk in progress
    values: torch.Tensor  # (B, Hkv, C, d)
    lse: torch.Tensor  # (B, H, M), of all chunks before
    out: torch.Tensor  # (B, H, M, d)
    readout_keys: torch.Tensor  # (B, Hkv, M, d), of retrieval, derived from lse and out by the three steps
    readout_values: torch.Tensor  # (B, Hkv, M, d)
    conv_inputs: torch.Tensor | None  # (B, K - 1, D), the last normed tokens


class LatentState(NamedTuple):
    """The state of one layer.

    A forward over a grid of chunks makes one with a dimension of chunks after the batch, of which `state_at` picks
    the one that the last token is in. There inputs of convolutions are `(B, K - 1 + N C, D)`, all of them.
    """

    window: WindowState | None
    memory: MemoryState
    mlp_conv_inputs: torch.Tensor | None  # (B, K - 1, D), the last normed tokens
    tokens_seen: torch.Tensor  # (B,), of the sequence in progress


def state_fields(config: LatentAttentionConfig) -> dict:
    """What of a configuration decides the shapes of a state."""
    names = ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "num_latents", "chunk_size")
    names = (*names, "conv_kernel_size", "mlp_conv_kernel_size", "local_attention")
    return {name: getattr(config, name) for name in names}


def map_state(change, state, *others):
    """
    `change` of every tensor and those at its place in `others`. Parts that a configuration does not have stay `None`.
    Not by `tree_map`, to which the states of two copies of this code, as two checkpoints bring them, are not alike.
    """
    if state is None:
        return None
    if isinstance(state, torch.Tensor):
        return change(state, *others)
    return type(state)(*(map_state(change, *parts) for parts in zip(state, *others, strict=True)))


def write_slot(buffer: torch.Tensor, slot: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """`buffer` `(B, H, S, d)` with `value` `(B, H, 1, d)` at each row's `slot` `(B,)`, in a new tensor."""
    return buffer.scatter(2, slot[:, None, None, None].expand_as(value), value.to(buffer.dtype))


def update_rows(state, layout: ChunkLayout, update):
    """`state` after `update` in the rows that enter a new chunk; `update` sees only those."""
    if layout.new_chunk_rows.shape[0] == 0:
        return state
    rows, enters = layout.new_chunk_rows, layout.enters_chunk
    old = map_state(lambda tensor: tensor[rows], state)

    def write(whole, before, after):
        chosen = torch.where(enters.view(-1, *(1,) * (after.ndim - 1)), after, before)
        return whole.index_copy(0, rows, chosen.to(whole.dtype))

    return map_state(write, state, old, update(old))


def state_at(states: LatentState, ends: torch.Tensor, seen: torch.Tensor, chunk_size: int) -> LatentState:
    """
    The state after the token before slot `ends` `(B,)`, the `seen`-th `(B,)` of its sequence.

    What no later token may read is zeroed, so that equal histories give equal states, however they were reached.
    """
    chunk = ((ends - 1) // chunk_size).clamp(min=0)
    filled = ends - chunk * chunk_size
    batch = torch.arange(ends.shape[0], device=ends.device)
    in_progress = torch.arange(chunk_size, device=ends.device) < filled[:, None]  # (B, C)

    def pick(tensor, keep=None):
        tensor = tensor[batch, chunk]
        return tensor if keep is None else tensor * keep[:, None, :, None].to(tensor.dtype)

    window, memory = states.window, states.memory
    slots = memory.keys.shape[1] * chunk_size  # N C
    if window is not None:
        before = (seen > chunk_size)[:, None].expand_as(in_progress)
        kept = torch.cat([before, in_progress], 1)  # (B, 2C)
        window = WindowState(pick(window.keys, kept), pick(window.values, kept))
    memory = MemoryState(
        pick(memory.keys, in_progress),
        pick(memory.values, in_progress),
        *(pick(tensor) for tensor in memory[2:6]),
        last_inputs(memory.conv_inputs, slots, ends, seen),
    )
    return LatentState(window, memory, last_inputs(states.mlp_conv_inputs, slots, ends, seen), seen)


class LatentAttentionCacheLayer(CacheLayerMixin):
    """
    One layer of a `DynamicCache`: a state of constant size.

    Updates make new tensors and leave the old ones alone, so that to remember an earlier state is to keep a
    reference. While recording (`activate_past_recording`), every forward leaves the state before it and, if it
    had several tokens, its chunks; `crop` goes back to any token since then.
    """

    _layer_type = "latent_attention"
    is_sliding = False
    is_croppable = True
    supports_early_init = False

    def __init__(self, **kwargs):
        super().__init__()
        self.state: LatentState | None = None
        self.length = 0
        self.rearranged = 0  # how often rows were exchanged, expanded or selected
        self.history: list[tuple] = []  # (tokens, state before, chunks, layout) of each forward
        self.record_past = False

    @property
    def record_past(self) -> bool:
        """Whether forwards are remembered. The library stops that by setting it, and what was recorded then goes."""
        return self._record_past

    @record_past.setter
    def record_past(self, record: bool) -> None:
        self._record_past = record
        if not record:
            self.history = []

    def lazy_initialization(self, state: LatentState) -> None:
        self.is_initialized = True
        self.batch_size = state.tokens_seen.shape[0]
        self.dtype, self.device = state.memory.keys.dtype, state.memory.keys.device

    def update(self, states: LatentState, layout: ChunkLayout, config: LatentAttentionConfig) -> None:
        """Take over what a forward leaves: the state itself after a step, one per chunk after a grid."""
        if not self.is_initialized:
            self.lazy_initialization(states)
            self.made_for = state_fields(config)
        tokens = layout.batch_shape[1]
        if self.record_past:
            self.history.append((tokens, self.state, None if layout.is_step else states, layout))
        if not layout.is_step:
            states = state_at(states, layout.ends[:, -1], layout.seen[:, -1], config.chunk_size)
        self.store(states, tokens)

    def store(self, state: LatentState, tokens: int) -> None:
        self.state = state
        self.length += tokens

    def activate_past_recording(self) -> None:
        """From now on remember what `crop` needs. Memory grows until it is called, or `record_past` set to False."""
        self.record_past = True

    def crop(self, tokens_to_remove: int) -> None:
        """
        Forget the last `-tokens_to_remove` tokens exactly, as if they had never been seen.

        Raises:
            `ValueError`: for a positive number; `RuntimeError`: for more tokens than were recorded.
        """
        if tokens_to_remove > 0:
            raise ValueError(
                f"`crop` takes a number of tokens to remove, as a negative integer, not {tokens_to_remove}."
            )
        left = -tokens_to_remove
        if left > sum(tokens for tokens, *_ in self.history):
            raise RuntimeError(
                f"`crop({tokens_to_remove})` goes back further than what was recorded. Call "
                "`activate_past_recording()` on the cache before the forward passes that may have to be undone. After "
                f"a `crop` {CROP_AGAIN} tokens before it can still be undone, after rows were exchanged, expanded or "
                "selected none of what came before."
            )
        while left > 0:
            tokens, before, states, layout = self.history.pop()
            kept = max(tokens - left, 0)
            self.state, self.length, left = before, self.length - (tokens - kept), left - (tokens - kept)
            if kept:
                chunk_size = states.memory.keys.shape[3]
                self.state = state_at(states, layout.ends[:, kept - 1], layout.seen[:, kept - 1], chunk_size)
                self.history.append((kept, before, states, layout))
        while sum(tokens for tokens, *_ in self.history[1:]) >= CROP_AGAIN:
            self.history.pop(0)
        self.is_initialized = self.state is not None

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return -1

    def reset(self) -> None:
        """Forget everything. Zeroed statistics would be a token's, not none's, so the state itself goes."""
        self.state, self.length, self.history, self.is_initialized = None, 0, [], False

    def _apply(self, change) -> None:
        if self.state is not None:
            self.state = map_state(change, self.state)
            self.history = []
            self.rearranged += 1
            self.batch_size = self.state.tokens_seen.shape[0]

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        self._apply(lambda tensor: tensor.index_select(0, beam_idx.to(tensor.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._apply(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self._apply(lambda tensor: tensor[indices.to(tensor.device)])


class StaticLatentAttentionCacheLayer(LatentAttentionCacheLayer):
    """One layer of a `StaticCache`: the same state at fixed addresses, which compiled graphs write in place."""

    # Registration by `_layer_type` would take it for a dynamic layer, as it is no `StaticLayer` of keys and values.
    _layer_type = None
    is_compileable = True
    is_croppable = False

    def __init__(self, max_cache_len: int, **kwargs):
        super().__init__()
        self.max_cache_len = max_cache_len  # asked for by the cache's users; nothing here grows towards it
        self.length = torch.tensor(0, dtype=torch.long)

    def store(self, state: LatentState, tokens: int) -> None:
        if self.state is None:
            self.state = map_state(torch.clone, state)
            self.length = self.length.to(self.device)
            if not torch.compiler.is_compiling():
                map_state(torch._dynamo.mark_static_address, self.state)
                torch._dynamo.mark_static_address(self.length)
        else:
            map_state(torch.Tensor.copy_, self.state, state)
        self.length.add_(tokens)

    def activate_past_recording(self) -> None:
        raise ValueError("A static cache is written in place and can't go back: use a `DynamicCache` to `crop`.")

    def crop(self, tokens_to_remove: int) -> None:
        self.activate_past_recording()

    def reset(self) -> None:
        super().reset()
        self.length = torch.tensor(0, dtype=torch.long)


def add_layers(cache, config: LatentAttentionConfig) -> None:
    """To a `DynamicCache()`, which was made without a configuration and would come to have layers as they are used."""
    if isinstance(cache, DynamicCache) and not cache.layers:
        cache.layers.extend(LatentAttentionCacheLayer() for _ in range(config.num_hidden_layers))


def take_over_empty_layers(layers: list) -> None:
    """
    The library keeps one class of layers for each type, that of the copy of this code that was loaded last, as with a
    second checkpoint. A model fills layers of its own copy only.
    """
    for index, layer in enumerate(layers):
        if layer.state is None and not isinstance(layer, LatentAttentionCacheLayer):
            is_static = type(layer).__name__ == StaticLatentAttentionCacheLayer.__name__
            own = StaticLatentAttentionCacheLayer(layer.max_cache_len) if is_static else LatentAttentionCacheLayer()
            own.record_past = layer.record_past
            layers[index] = own


STATIC_LAYER_TYPE_MAPPING[LatentAttentionCacheLayer._layer_type] = StaticLatentAttentionCacheLayer
