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
"""Latent attention: a memory of fixed size, in three steps."""

from functools import partial

import torch
from torch import nn
from transformers import initialization as init

from .attention import MultiHeadAttention, apply_linear, attention_mask_of, branch_size, make_norm
from .chunk_layout import GridLayout, StepLayout, bidirectional_layout, grid_layout
from .configuration_latent import LatentAttentionConfig, check_config
from .layer_state import KeysValues, MemoryGrid, MemoryState, map_tensors, update_rows
from .model_inputs import check_tokens, valid_of_single_sequences
from .prefix_statistics import (
    LEAST_TOTAL,
    Statistics,
    chunk_scores,
    chunk_statistics,
    empty_statistics,
    exclusive_prefix,
    merge,
    repeated_at_random,
)
from .token_conv import convolve, make_token_conv


def init_weights(config: LatentAttentionConfig, module: nn.Module) -> None:
    """
    How every parameter starts:

    latents                                          normal, std 1: a norm after tiny vectors blows up gradients
    embeddings, lm_head, heads of tasks              normal, std initializer_range
    local o_proj, latent_to_input.o_proj, down_proj  normal, std initializer_range / sqrt(3 layers fan_in), not zero
    latent_self.o_proj                               normal, std 0.1 / sqrt(fan_in): latents stay distinct
    other linear layers                              normal, std 1 / sqrt(fan_in): variance is kept
    token_conv of the memory                         normal, std 1: each token before weighs as much as the token
    token_conv of the MLP                            normal, std 1 / sqrt(kernel): all its tokens weigh as much as one
    scales of norms                                  one
    biases                                           zero
    """
    if isinstance(module, ChunkedLatentAttention):
        init.normal_(module.latents, std=1.0)
    elif isinstance(module, (nn.Linear, nn.Conv1d)):
        init.normal_(module.weight, std=getattr(module, "init_std", config.initializer_range))
        if module.bias is not None:
            init.zeros_(module.bias)


class ChunkedLatentAttention(nn.Module):
    """
    The memory of one layer: compression of the tokens into latents, refinement, retrieval, with norms of its own. It
    returns `y - h`, which the layer adds, and works on a chunk layout, which a model makes once for all its layers.

    ```
    u  = token_norm(h)                                         h: (B, T, D)
    w  = u + silu(token_conv(u))                               what the memory reads
    z1 = latents + input_to_latent(latent_norm(latents), w)    1. compression
    z2 = z1 + latent_self(refine_norm(z1))                     2. refinement
    y  = h  + latent_to_input(u, readout_norm(z2))             3. retrieval
    ```
    """

    def __init__(self, config: LatentAttentionConfig):
        super().__init__()
        check_config(config)
        self.config = config
        self.latents = nn.Parameter(torch.empty(config.num_latents, config.hidden_size))  # (M, D)
        self.token_norm, self.latent_norm = make_norm(config), make_norm(config)
        self.refine_norm, self.readout_norm = make_norm(config), make_norm(config)
        self.token_conv = make_token_conv(config.hidden_size, config.conv_kernel_size, init_std=1.0)
        self.input_to_latent = MultiHeadAttention(config)
        # What latents read of each other is at first much the same for all, and would blur what tokens told them.
        self.latent_self = MultiHeadAttention(config, output_size=0.1)
        self.latent_to_input = MultiHeadAttention(config, output_size=branch_size(config))
        self.apply(partial(init_weights, config))

    def forward(
        self, hidden_states: torch.Tensor, layout: GridLayout | StepLayout, cached: MemoryState | None = None
    ) -> tuple[torch.Tensor, MemoryGrid | MemoryState | None]:
        """
        Args:
            hidden_states: `(R, N, C, D)`, or in a step `(B, 1, D)`.
            layout: where the tokens stand.
            cached: the state that the tokens continue.

        Returns:
            What is to be added to `hidden_states`, of their shape; and what the latents know at the start of every
            chunk of a grid, or the state after a step. A bidirectional model, which continues nothing, has none.
        """
        tokens = self.token_norm(hidden_states)
        if isinstance(layout, StepLayout):
            return self.read_step(tokens, layout, cached)
        if self.config.is_causal:
            return self.read_causal(tokens, layout, cached)
        return self.read_both_ways(tokens, layout), None

    def read_causal(
        self, tokens: torch.Tensor, layout: GridLayout, cached: MemoryState | None
    ) -> tuple[torch.Tensor, MemoryGrid]:
        """Let tokens `(R, N, C, D)` read from latents that have seen exactly the chunks before theirs."""
        conv_inputs = None if cached is None else cached.conv_inputs
        inputs, conv_inputs = convolve(self.token_conv, tokens, layout, conv_inputs)
        chunks = self.input_to_latent.keys_values(inputs)  # (R, N, Hkv, C, d)
        if cached is not None:
            chunks = chunks.with_cached(cached.chunk, layout.filled)
        if layout.shard is None:
            statistics = self.compress(chunks, layout, None if cached is None else cached.statistics)
        else:
            statistics = self.compress_shard(chunks, layout)
        readout = self.refine(self.compressed(statistics.out))
        return self.retrieve(tokens, readout), MemoryGrid(chunks, statistics, readout, conv_inputs)

    def compress(self, chunks: KeysValues, layout: GridLayout, first: Statistics | None) -> Statistics:
        """
        Step 1, causal: what the latents know at the start of each chunk, `(R, N, H, M)` and `(R, N, H, M, d)`, after
        what they knew `first`.
        """
        first = self.nothing_read(chunks) if first is None else first
        if chunks.keys.shape[1] > 1:
            complete = self.grid_statistics(map_tensors(lambda tensor: tensor[:, :-1], chunks))
            return exclusive_prefix(complete, first, layout.sequence_ids)
        known = map_tensors(lambda tensor: tensor[:, None], first)
        if self.training:
            # Nothing to read. Gradients are zeros, not missing: processes that train together exchange the same ones.
            read = self.statistics(*map_tensors(lambda tensor: tensor[:, 0], chunks)).out[:, None]
            known = known._replace(out=known.out + 0 * read)
        return known

    def compress_shard(self, chunks: KeysValues, layout: GridLayout) -> Statistics:
        """Step 1, causal, where earlier chunks are on other ranks, and later ones have to know of all of these."""
        ids = layout.sequence_ids
        if ids is not None:
            ids = torch.cat([ids, ids[:, -1:]], dim=1)  # what is known behind the last chunk is for its own sequence
        known = exclusive_prefix(self.grid_statistics(chunks), self.nothing_read(chunks), ids)  # (R, N + 1, H, M)
        total = map_tensors(lambda tensor: tensor[:, -1], known)
        known = map_tensors(lambda tensor: tensor[:, :-1], known)
        return layout.shard.after_earlier_ranks(known, total)

    def nothing_read(self, chunks: KeysValues) -> Statistics:
        """What the latents know at the start of a sequence, `(R, H, M)` and `(R, H, M, d)`."""
        # Heads of this process, where several share them.
        num_heads = self.input_to_latent.num_key_value_groups * chunks.keys.shape[2]
        shape = (chunks.keys.shape[0], num_heads, self.config.num_latents)
        return empty_statistics(shape, self.config.head_dim, chunks.keys.dtype, chunks.keys.device)

    def grid_statistics(self, chunks: KeysValues) -> Statistics:
        """
        What the latents read in each of the complete chunks `(R, N, Hkv, C, d)`, in training repeated at random:
        `(R, N, H, M)` and `(R, N, H, M, d)`.
        """
        statistics = self.statistics(*map_tensors(lambda tensor: tensor.flatten(0, 1), chunks))
        statistics = map_tensors(lambda tensor: tensor.unflatten(0, chunks.keys.shape[:2]), statistics)
        if self.training and self.config.max_chunk_repeats > 1:
            return repeated_at_random(statistics, self.config.max_chunk_repeats)
        return statistics

    def latent_queries(self) -> torch.Tensor:
        """
        Step 1's queries `(H, M, d)`, the same for all rows. The projection gets them as a batch of one: PEFT, which
        can give every row an adapter of its own, would take latents in the first place for rows.
        """
        return self.input_to_latent.queries(self.latent_norm(self.latents)[None])[0]

    def statistics(self, keys: torch.Tensor, values: torch.Tensor) -> Statistics:
        """What the latents read in complete chunks `(X, Hkv, C, d)`: `(X, H, M)` and `(X, H, M, d)`."""
        queries = self.latent_queries()  # (H, M, d)
        dropout = self.config.attention_dropout if self.training else 0.0
        keys, values = keys.to(queries.dtype), values.to(queries.dtype)  # of another in a cache, see attention.py
        return chunk_statistics(queries, keys, values, self.input_to_latent.scaling, dropout)

    def compression_weights(self, grid: MemoryGrid, layout: GridLayout) -> torch.Tensor:
        """
        How the latents of a causal model read every slot, at the start of every chunk: `(R, N, H, M, N, C)`. Quadratic
        in N: for looking at a model, not for running it.
        """
        rows, chunks = layout.grid_shape[:2]
        queries = self.latent_queries()  # (H, M, d)
        keys = grid.chunks.keys.flatten(0, 1)
        scores = chunk_scores(queries, keys, self.input_to_latent.scaling).unflatten(0, (rows, -1))
        order = torch.arange(chunks, device=scores.device)
        visible = (order < order[:, None]).expand(rows, -1, -1)  # (R, n, j): chunk n sees chunk j
        if layout.sequence_ids is not None:
            ids = layout.sequence_ids.to(scores.device)
            visible = visible & (ids[:, :, None] == ids[:, None, :])
        peak, total, _ = (tensor[..., None, None] for tensor in grid.statistics)  # (R, N, H, M, 1, 1)
        scores = (scores.movedim(1, 3)[:, None] - peak).masked_fill(~visible[:, :, None, None, :, None], -torch.inf)
        return (scores.exp() / total.clamp(min=LEAST_TOTAL)).to(keys.dtype)  # (R, N, H, M, N, C)

    def compressed(self, out: torch.Tensor) -> torch.Tensor:
        """z1 `(..., M, D)` from what was read, `(..., H, M, d)`. Latents that read nothing stay as they are."""
        read = out.transpose(-3, -2).flatten(-2).to(self.latents.dtype)  # (..., M, H d)
        return self.latents + apply_linear(self.input_to_latent.o_proj, read)

    def refine(self, latents: torch.Tensor) -> KeysValues:
        """Step 2, and the keys and values `(..., Hkv, M, d)` of step 3, from z1 `(..., M, D)`.

        They are a read copy: nothing refined flows back into the statistics, which stay exact.
        """
        normed = self.refine_norm(latents)  # (..., M, D)
        attended, _ = self.latent_self(self.latent_self.queries(normed), *self.latent_self.keys_values(normed))
        return self.latent_to_input.keys_values(self.readout_norm(latents + attended))

    def retrieve(self, tokens: torch.Tensor, readout: KeysValues) -> torch.Tensor:
        """Step 3: tokens `(..., L, D)` attend to refined latents `(..., Hkv, M, d)`."""
        output, _ = self.latent_to_input(self.latent_to_input.queries(tokens), *readout)
        return output

    def read_step(
        self, tokens: torch.Tensor, layout: StepLayout, cached: MemoryState
    ) -> tuple[torch.Tensor, MemoryState]:
        """Let one token `(B, 1, D)` of each row read the latents, which see it once its chunk is complete."""
        cached = update_rows(cached, layout, self.take_in_chunk)
        inputs, conv_inputs = convolve(self.token_conv, tokens, layout, cached.conv_inputs)
        new = self.input_to_latent.keys_values(inputs)  # (B, Hkv, 1, d)
        state = cached._replace(chunk=cached.chunk.write(layout.slot, new), conv_inputs=conv_inputs)
        return self.retrieve(tokens, state.readout), state

    def take_in_chunk(self, state: MemoryState) -> MemoryState:
        """Compress the complete chunk and refine, as decoding enters a new one: once every C tokens."""
        statistics = merge(state.statistics, self.statistics(*state.chunk))
        empty = map_tensors(torch.zeros_like, state.chunk)
        return MemoryState(empty, statistics, self.refine(self.compressed(statistics.out)), state.conv_inputs)

    def read_both_ways(self, tokens: torch.Tensor, layout: GridLayout) -> torch.Tensor:
        """Let tokens `(R, N, C, D)` of a bidirectional model read from latents that have seen all of their row."""
        rows = tokens.shape[0]
        inputs, _ = convolve(self.token_conv, tokens, layout, None)
        keys, values = self.input_to_latent.keys_values(inputs.flatten(1, 2))  # (R, Hkv, N C, d)
        queries = self.latent_queries().expand(rows, -1, -1, -1)  # (R, H, M, d)
        mask, reads = None, 1
        if layout.slot_valid is not None:
            valid = layout.slot_valid.flatten(1).expand(rows, -1)
            any_valid = valid.any(1, keepdim=True)
            # A row of padding alone reads anything, finite, and then takes none of it.
            allowed = (valid | ~any_valid)[:, None, None].expand(-1, -1, queries.shape[2], -1)  # (R, 1, M, N C)
            mask = attention_mask_of(allowed, self.config, keys.dtype)
            reads = any_valid[..., None].to(keys.dtype)
        read, _ = self.input_to_latent(queries, keys, values, mask)
        readout = self.refine(self.latents + read * reads)
        return self.retrieve(tokens.flatten(1, 2), readout).view_as(tokens)


class LatentAttention(ChunkedLatentAttention):
    """
    Latent attention as a layer of any PyTorch model, without a cache: `(B, T, D) -> (B, T, D)`, with the residual
    connection. Its parameters and its mathematics are those of [`ChunkedLatentAttention`].
    """

    def forward(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """
        Args:
            hidden_states: `(B, T, D)`.
            attention_mask: `(B, T)`, 0 for padding.

        Raises:
            `ValueError`: for hidden states that are not `(B, T, D)` or have no token, and a mask that is not `(B, T)`.
        """
        check_tokens(hidden_states, self.config.hidden_size)
        valid = valid_of_single_sequences(attention_mask, hidden_states)
        make_layout = grid_layout if self.config.is_causal else bidirectional_layout
        layout = make_layout(hidden_states.shape[:2], self.config.chunk_size, hidden_states.device, valid)
        slots = layout.to_slots(hidden_states)
        read, _ = super().forward(slots, layout)
        return layout.to_tokens(slots + read)
