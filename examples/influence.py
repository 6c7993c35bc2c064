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
"""What tokens get from tokens, worked out from one layer's attention maps.

A token reads the latents (retrieval), which have read each other (refinement) and, before that, the tokens
(compression). The product of the three maps says how much of each earlier token reaches a later one that way, as in
attention rollout (Abnar & Zuidema 2020, arXiv:2005.00928). Heads are averaged in every step, as its output projection
mixes them. Weights are not values: the product says where a token looks, not what it finds there.

Symbols: H heads, T tokens, M latents, C tokens per chunk, N chunks, S sinks.
"""

import torch


def influence_through_latents(
    retrieval: torch.Tensor, refinement: torch.Tensor, compression: torch.Tensor, chunk_size: int
) -> torch.Tensor:
    """
    How much of each token reaches each other one through the latents of a layer.

    Args:
        retrieval: `(H, T, M)`, weights of tokens over latents.
        refinement: `(N, H, M, M)`, weights of latents over latents, as the tokens of each chunk find them. A
            bidirectional model has one set of latents for all tokens, so N = 1.
        compression: `(N, H, M, T)`, weights of latents over tokens, zero where nothing has been read.
        chunk_size: tokens per chunk C.

    Returns:
        `(T, T)`: row t sums to one, or to zero where the latents that token t reads have read nothing.
    """
    num_latents = compression.shape[2]
    identity = torch.eye(num_latents, dtype=refinement.dtype, device=refinement.device)
    refined = (identity + refinement.mean(1)) / 2  # (N, M, M), one half is the residual connection
    known = refined @ compression.mean(1)  # (N, M, T)
    chunks = retrieval.mean(0).split(chunk_size)  # each (C, M)
    return torch.cat(
        [tokens @ latents for tokens, latents in zip(chunks, known.expand(len(chunks), -1, -1), strict=True)]
    )


def spread_window(local: torch.Tensor, chunk_size: int, num_sinks: int) -> torch.Tensor:
    """
    The map of local attention over all tokens instead of over each token's window.

    Args:
        local: `(H, T, S + 2C)`, or `(H, T, 3C)` of a bidirectional model. Sinks come first, and are the first tokens
            of the text; then the window starts, at the chunk before its token's.
        chunk_size: tokens per chunk C.
        num_sinks: sinks S.

    Returns:
        `(T, T)`, averaged over heads.
    """
    sinks, weights = local.mean(0).split([num_sinks, local.shape[-1] - num_sinks], dim=1)  # (T, S), (T, 2C)
    length, window = weights.shape
    order = torch.arange(length, device=weights.device)
    # One chunk of room in front, where the first window starts, and windows beyond the last token behind.
    slots = order[:, None] // chunk_size * chunk_size + torch.arange(window, device=weights.device)  # (T, 2C)
    spread = weights.new_zeros(length, length + window).scatter(1, slots, weights)
    spread[:, chunk_size : chunk_size + num_sinks] += sinks
    return spread[:, chunk_size : chunk_size + length]


def mass_by_distance(weights: torch.Tensor, first: int) -> torch.Tensor:
    """
    How far away a token looks, on average.

    Args:
        weights: `(T, T)`, of tokens over tokens.
        first: tokens before this one are left out of the average, because they have little to look back at.

    Returns:
        `(T,)`: the mean weight at each distance in tokens. It sums to one where the rows do.
    """
    order = torch.arange(weights.shape[0], device=weights.device)
    distance = (order[first:, None] - order).abs()  # (T - first, T)
    mass = weights.new_zeros(weights.shape[0]).index_add(0, distance.flatten(), weights[first:].flatten())
    return mass / distance.shape[0]
