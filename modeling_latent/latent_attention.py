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

from .attention import MultiHeadAttention, apply_linear, attention_mask_of, branch_size, make_norm, take_cached
from .cache_latent import MemoryState, update_rows, write_slot
from .chunk_layout import ChunkLayout, bidirectional_layout, grid_layout
from .configuration_latent import LatentAttentionConfig
from .model_inputs import check_attention_mask, check_tokens
from .prefix_statistics import chunk_scores, chunk_statistics, empty_statistics, exclusive_prefix, merge
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
    if isinstance(module, LatentAttention):
        init.normal_(module.latents, std=1.0)
    elif isinstance(module, (nn.Linear, nn.Conv1d)):
        init.normal_(module.weight, std=getattr(module, "init_std", config.initializer_range))
        if module.bias is not None:
            init.zeros_(module.bias)


class LatentAttention(nn.Module):
    """
    The memory of one layer: compression of the tokens into latents, refinement, retrieval, with residual
    connections and norms of its own. Usable in any PyTorch model: `(B, T, D) -> (B, T, D)`.

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
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        layout: ChunkLayout | None = None,
        cached: MemoryState | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, MemoryState | None]:
        """
        Args:
            hidden_states: `(B, T, D)`; with `layout`, in slots, `(R, N, S, D)`.
            attention_mask: `(B, T)`, 0 for padding. Alone only: a layout says where padding is.
            layout: where tokens stand, when a model that has worked it out once calls its layers.
            cached: the state that the tokens continue.

        Raises:
            `ValueError`: for hidden states that are not `(B, T, D)` or have no token, and a mask that is not `(B, T)`.

        Returns:
            `(B, T, D)`; with `layout`, `(R, N, S, D)` and the memory's state, for each chunk of a grid.
        """
        if layout is None:
            check_tokens(hidden_states)
            valid = check_attention_mask(attention_mask, hidden_states, continued=False)
            make_layout = grid_layout if self.config.is_causal else bidirectional_layout
            layout = make_layout(hidden_states.shape[:2], self.config.chunk_size, hidden_states.device, valid)
            return layout.to_tokens(self(layout.to_slots(hidden_states), layout=layout)[0])
        if layout.is_step:
            cached = update_rows(cached, layout, self.take_in_chunk)
        tokens = self.token_norm(hidden_states)  # (R, N, S, D)
        conv_inputs = None if cached is None else cached.conv_inputs
        inputs, conv_inputs = convolve(self.token_conv, tokens, layout, conv_inputs)
        if layout.is_step:
            state = self.write_step(inputs, conv_inputs, layout, cached)
            memory = MemoryState(*(tensor[:, None] for tensor in state[:6]), None)
        elif self.config.is_causal:
            state = memory = self.compress(inputs, conv_inputs, layout, cached)
        else:
            state, memory = None, self.compress_bidirectional(inputs, layout)
        return hidden_states + self.retrieve(tokens, memory), state

    def compress(self, inputs, conv_inputs, layout: ChunkLayout, cached: MemoryState | None) -> MemoryState:
        """Step 1, causal: for each chunk, what the latents know of the chunks before it; and step 2 on that."""
        keys, values = self.input_to_latent.keys_values(inputs)  # (R, N, Hkv, C, d)
        if cached is None:
            # Of this process, where several share the heads.
            num_heads = self.input_to_latent.num_key_value_groups * keys.shape[2]
            first = empty_statistics(
                (keys.shape[0], num_heads, self.config.num_latents), self.config.head_dim, keys.dtype, keys.device
            )
        else:
            keys = take_cached(keys, cached.keys, layout.filled)
            values = take_cached(values, cached.values, layout.filled)
            first = cached.lse, cached.out
        lse, out = first[0][:, None], first[1][:, None]  # (R, N, H, M) and (R, N, H, M, d)
        if keys.shape[1] > 1:
            statistics = self.statistics(keys[:, :-1].flatten(0, 1), values[:, :-1].flatten(0, 1))
            statistics = (tensor.unflatten(0, (keys.shape[0], -1)) for tensor in statistics)
            lse, out = exclusive_prefix(*statistics, *first, layout.sequence_ids)
        elif self.training:
            # Nothing to read. Gradients are zeros, not missing: processes that train together exchange the same ones.
            out = out + 0 * self.statistics(keys[:, 0], values[:, 0])[1][:, None]
        return MemoryState(keys, values, lse, out, *self.refine(self.compressed(out)), conv_inputs)

    def latent_queries(self) -> torch.Tensor:
        """
        Step 1's queries `(H, M, d)`, the same for all rows. The projection gets them as a batch of one: PEFT, which
        can give every row an adapter of its own, would take latents in the first place for rows.
        """
        return self.input_to_latent.queries(self.latent_norm(self.latents)[None])[0]

    def statistics(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the latents read in complete chunks `(X, Hkv, C, d)`: `(X, H, M)` and `(X, H, M, d)`."""
        queries = self.latent_queries()  # (H, M, d)
        dropout = self.config.attention_dropout if self.training else 0.0
        keys, values = keys.to(queries.dtype), values.to(queries.dtype)  # of another in a cache, see attention.py
        return chunk_statistics(queries, keys, values, self.input_to_latent.scaling, dropout)

    def compression_weights(self, read: MemoryState | torch.Tensor, layout: ChunkLayout) -> torch.Tensor:
        """
        How the latents read every slot, at the start of every chunk: `(R, N, H, M, N, C)`; from a bidirectional
        model's one reading `(R, H, M, N C)`, the same with 1 in place of the first N. Quadratic in N: for looking
        at a model, not for running it.
        """
        if not self.config.is_causal:
            return read.unflatten(-1, layout.grid_shape[1:])[:, None]
        rows, chunks = layout.grid_shape[:2]
        queries = self.latent_queries()  # (H, M, d)
        scores = chunk_scores(queries, read.keys.flatten(0, 1), self.input_to_latent.scaling).unflatten(0, (rows, -1))
        order = torch.arange(chunks, device=scores.device)
        visible = (order < order[:, None]).expand(rows, -1, -1)  # (R, n, j): chunk n sees chunk j
        if layout.sequence_ids is not None:
            ids = layout.sequence_ids.to(scores.device)
            visible = visible & (ids[:, :, None] == ids[:, None, :])
        scores = scores.movedim(1, 3)[:, None] - read.lse[..., None, None]  # (R, N, H, M, N, C)
        return scores.masked_fill(~visible[:, :, None, None, :, None], -torch.inf).exp().to(read.keys.dtype)

    def compressed(self, out: torch.Tensor) -> torch.Tensor:
        """z1 `(..., M, D)` from what was read, `(..., H, M, d)`. Latents that read nothing stay as they are."""
        read = out.transpose(-3, -2).flatten(-2).to(self.latents.dtype)  # (..., M, H d)
        return self.latents + apply_linear(self.input_to_latent.o_proj, read)

    def compress_bidirectional(self, inputs: torch.Tensor, layout: ChunkLayout) -> MemoryState:
        """Step 1, bidirectional: one set of latents per row, which has read all of its tokens; and step 2 on that."""
        rows = inputs.shape[0]
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
        readout_keys, readout_values = self.refine(self.latents + read * reads)
        return MemoryState(keys, values, None, None, readout_keys[:, None], readout_values[:, None], None)

    def refine(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Step 2, and the keys and values `(..., Hkv, M, d)` of step 3, from z1 `(..., M, D)`.

        They are a read copy: nothing refined flows back into the statistics, which stay exact.
        """
        normed = self.refine_norm(latents)  # (..., M, D)
        attended, _ = self.latent_self(self.latent_self.queries(normed), *self.latent_self.keys_values(normed))
        return self.latent_to_input.keys_values(self.readout_norm(latents + attended))

    def retrieve(self, tokens: torch.Tensor, memory: MemoryState) -> torch.Tensor:
        """Step 3: every token `(R, N, S, D)` attends to its chunk's refined latents."""
        queries = self.latent_to_input.queries(tokens)  # (R, N, H, S, d)
        keys, values = memory.readout_keys, memory.readout_values
        if keys.shape[1] != queries.shape[1]:  # bidirectional: one set of latents for all chunks
            queries = queries.transpose(1, 2).flatten(2, 3)[:, None]  # (R, 1, H, N S, d)
        output, _ = self.latent_to_input(queries, keys, values)
        return output.reshape(tokens.shape)

    def take_in_chunk(self, state: MemoryState) -> MemoryState:
        """Decoding goes on to a new chunk: compress the complete one, and refine. Once every C tokens."""
        lse, out = merge(state.lse, state.out, *self.statistics(state.keys, state.values))
        readout_keys, readout_values = self.refine(self.compressed(out))
        return MemoryState(
            torch.zeros_like(state.keys),
            torch.zeros_like(state.values),
            lse,
            out,
            readout_keys,
            readout_values,
            state.conv_inputs,
        )

    def write_step(self, inputs, conv_inputs, layout: ChunkLayout, cached: MemoryState) -> MemoryState:
        """One token's keys and values into the chunk in progress, which the latents don't see yet."""
        keys, values = self.input_to_latent.keys_values(inputs[:, 0])  # (B, Hkv, 1, d)
        return cached._replace(
            keys=write_slot(cached.keys, layout.slot, keys),
            values=write_slot(cached.values, layout.slot, values),
            conv_inputs=conv_inputs,
        )
