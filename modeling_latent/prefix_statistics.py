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
"""Statistics of softmax attention with a fixed set of queries, which merge like a sum.

For one query and a span of tokens keep the greatest score, the sum of the exponentials of all scores relative to it,
and the mean of the values under their softmax. Two spans a and b merge exactly (the online softmax of Milakov &
Gimelshein 2018, as in FlashAttention, Dao et al. 2022):

    peak  = max(peak_a, peak_b)
    total = exp(peak_a - peak) total_a + exp(peak_b - peak) total_b
    out   = out_a + (out_b - out_a) exp(peak_b - peak) total_b / total

`peak` and `total` are kept apart because their logarithm in one number, the logsumexp, stands still in float32 once a
text is long: what a chunk adds to it is less than half of its last digit, and the shares of the spans no longer sum to
one. Here they do, whatever the text's length.

The queries of compression come from the latents alone, so every token shares them, and what the latents know at
the start of each chunk is a prefix-merge over chunks. Everything here is float32 (float64 for float64 models).
"""

from typing import NamedTuple

import torch

from .named_parts import made_like_a_tuple


@made_like_a_tuple
class Statistics(NamedTuple):
    """What each head and latent has read in a span of tokens."""

    peak: (
        torch.Tensor
    )  # (..., H, M), the greatest score; a reference that the others are relative to, without gradient
    total: torch.Tensor  # (..., H, M), the sum of exp(score - peak), at least 1; 0 of no token
    out: torch.Tensor  # (..., H, M, d), mean of the values, weighted by the softmax of the scores


# peak of a span without tokens. It stands for -inf, and is finite so that the difference of two of them is 0 rather
# than NaN. Its total and out are 0, so merging it with anything is the identity, forward and backward.
EMPTY = -1e30
# A total is 0, of no token, or at least 1. It is divided by no less than this, which changes only what is empty.
# A bound of 1 would stop the gradient of a single token in PyTorch 2.14, where `clamp` has none at its bound.
LEAST_TOTAL = 0.5
# Chunks merged at once. The weights of one block are a (BLOCK + 1) x (BLOCK + 1) matrix per head and latent; blocks
# follow one another, so memory stays linear in the number of chunks.
BLOCK = 32


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def empty_statistics(shape: tuple[int, ...], head_dim: int, dtype: torch.dtype, device) -> Statistics:
    """Statistics of no token at all, `(*shape)` and `(*shape, head_dim)`."""
    dtype = statistics_dtype(dtype)
    return Statistics(
        torch.full(shape, EMPTY, dtype=dtype, device=device),
        torch.zeros(shape, dtype=dtype, device=device),
        torch.zeros((*shape, head_dim), dtype=dtype, device=device),
    )


def chunk_scores(queries: torch.Tensor, keys: torch.Tensor, scaling: float) -> torch.Tensor:
    """Scores `(X, H, M, C)` of latents' queries `(H, M, d)` and keys `(X, Hkv, C, d)` of chunks."""
    num_heads, num_latents, head_dim = queries.shape
    grouped = queries.reshape(keys.shape[1], -1, head_dim) * scaling  # (Hkv, H / Hkv * M, d)
    if keys.dtype == torch.float16:  # whose greatest number, 65,504, a product of queries and keys may exceed
        with torch.autocast(keys.device.type, enabled=False):  # which would make float16 of them again
            scores = torch.einsum("xkcd,kqd->xkqc", keys.float(), grouped.float())
    else:
        scores = torch.einsum("xkcd,kqd->xkqc", keys, grouped).to(statistics_dtype(keys.dtype))
    return scores.reshape(keys.shape[0], num_heads, num_latents, keys.shape[2])


def chunk_statistics(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float, dropout: float
) -> Statistics:
    """
    Statistics of every chunk under the latents' queries, `(X, H, M)` and `(X, H, M, d)`.

    Args:
        queries: `(H, M, d)`, one set for all chunks.
        keys, values: `(X, Hkv, C, d)`, chunks without padding.
        scaling: factor on the scores.
        dropout: probability with which a weight is dropped.
    """
    scores = chunk_scores(queries, keys, scaling)
    peak = scores.detach().amax(-1)  # (X, H, M)
    exponentials = (scores - peak[..., None]).exp()  # (X, H, M, C)
    total = exponentials.sum(-1)  # (X, H, M)
    probabilities = (exponentials / total[..., None]).to(values.dtype)
    if dropout:
        probabilities = torch.nn.functional.dropout(probabilities, dropout)
    grouped = probabilities.unflatten(1, (keys.shape[1], -1)).flatten(2, 3)  # (X, Hkv, H / Hkv * M, C)
    return Statistics(peak, total, (grouped @ values).to(total.dtype).reshape(*total.shape, values.shape[-1]))


def merge(a: Statistics, b: Statistics) -> Statistics:
    """The statistics of two spans together."""
    peak = torch.maximum(a.peak, b.peak)
    total_b = (b.peak - peak).exp() * b.total
    total = (a.peak - peak).exp() * a.total + total_b
    share = total_b / total.clamp(min=LEAST_TOTAL)  # 0 where both are empty
    return Statistics(peak, total, a.out + share[..., None] * (b.out - a.out))


def repeated_at_random(chunks: Statistics, most: float) -> Statistics:
    """
    `chunks`, `(R, N, H, M)` and `(R, N, H, M, d)`, as if the text had each of them from once to `most` times, drawn
    log-uniformly.

    To say the same thing r times multiplies `total` by r and leaves the rest as it is. So a chunk that matters has to
    outweigh others that weigh up to `most` times as much as they do here, as they do together in a far longer text.
    """
    draws = torch.rand(chunks.total.shape[:2], dtype=chunks.total.dtype, device=chunks.total.device)  # (R, N)
    return chunks._replace(total=chunks.total * most ** draws[..., None, None])


def exclusive_prefix(chunks: Statistics, first: Statistics, sequence_ids: torch.Tensor | None = None) -> Statistics:
    """
    What the latents know at the start of each chunk: the merge of all chunks before it.

    Args:
        chunks: `(R, N - 1, H, M)` and `(R, N - 1, H, M, d)`, every chunk but the last.
        first: `(R, H, M)` and `(R, H, M, d)`, what is known at the start of the first chunk.
        sequence_ids: `(R, N)`, chunks with different ids do not see each other; `None` where a row is one sequence.

    Returns:
        `(R, N, H, M)` and `(R, N, H, M, d)`.
    """
    known = [Statistics(*(tensor[:, None] for tensor in first))]
    count = chunks.total.shape[1]
    for block in range((count + BLOCK - 1) // BLOCK):  # counted so, one compiled graph serves many lengths
        start, stop = block * BLOCK, min((block + 1) * BLOCK, count)
        # Item 0 is what is known so far, item j the chunk start + j - 1; prefix i is for the chunk start + i.
        items = Statistics(
            *(
                torch.cat([so_far[:, -1:], tensor[:, start:stop]], dim=1)
                for so_far, tensor in zip(known[-1], chunks, strict=True)
            )
        )
        visible = torch.ones(stop - start + 1, stop - start + 1, dtype=torch.bool, device=chunks.out.device).tril()
        if sequence_ids is not None:
            prefix_ids = sequence_ids[:, start : stop + 1]
            item_ids = torch.cat([prefix_ids[:, :1], prefix_ids[:, :-1]], dim=1)
            visible = (visible & (prefix_ids[:, :, None] == item_ids[:, None, :]))[:, None, None]  # (R, 1, 1, i, j)
        known.append(Statistics(*(tensor[:, 1:] for tensor in merge_visible(items, visible))))
    return Statistics(*(torch.cat(parts, dim=1) for parts in zip(*known, strict=True)))


def merge_visible(items: Statistics, visible: torch.Tensor) -> Statistics:
    """Merge, for every prefix i, the items j that it sees: `(R, J, H, M)`, `(R, J, H, M, d)`, `(..., i, j)`."""
    peaks = items.peak.movedim(1, -1)[..., None, :].where(visible, EMPTY)  # (R, H, M, i, j)
    peak = peaks.amax(-1)  # (R, H, M, i)
    # Masked again: beside nothing but empty spans an unseen one would weigh exp(EMPTY - EMPTY) = 1.
    weights = (peaks - peak[..., None]).exp() * visible * items.total.movedim(1, -1)[..., None, :]
    total = weights.sum(-1)  # (R, H, M, i)
    with torch.autocast(items.out.device.type, enabled=False):  # which would make a product of float32 one of bfloat16
        # Shares that sum to one, so that nothing grows or fades from block to block.
        out = (weights / total.clamp(min=LEAST_TOTAL)[..., None]) @ items.out.movedim(1, -2)  # (R, H, M, i, d)
    return Statistics(*(tensor.movedim(3, 1) for tensor in (peak, total, out)))
