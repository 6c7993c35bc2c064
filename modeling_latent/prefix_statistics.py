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

For one query and a span of tokens keep `lse = logsumexp_s(q . k_s)` and `out = sum_s softmax(q . k)_s v_s`. Two
spans merge exactly (the online softmax of Milakov & Gimelshein 2018, as in FlashAttention, Dao et al. 2022):

    lse = logaddexp(lse_a, lse_b)        out = exp(lse_a - lse) out_a + exp(lse_b - lse) out_b

The queries of compression come from the latents alone, so every token shares them, and what the latents know at
the start of each chunk is a prefix-merge over chunks. Everything here is float32 (float64 for float64 models).
"""

import torch


# lse of a span without tokens. It stands for -inf, and is finite so that the difference of two of them is 0 rather
# than NaN: exp(EMPTY - lse) is exactly 0 beside any real span, and an empty span's `out` is 0, so merging one with
# anything is the identity, forward and backward.
EMPTY = -1e30
# Chunks merged at once. The weights of one block are a (BLOCK + 1) x (BLOCK + 1) matrix per head and latent; blocks
# follow one another, so memory stays linear in the number of chunks.
BLOCK = 32


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def empty_statistics(shape: tuple[int, ...], head_dim: int, dtype: torch.dtype, device) -> tuple:
    """Statistics of no token at all: `(*shape)` and `(*shape, head_dim)`."""
    dtype = statistics_dtype(dtype)
    return (
        torch.full(shape, EMPTY, dtype=dtype, device=device),
        torch.zeros((*shape, head_dim), dtype=dtype, device=device),
    )


def chunk_scores(queries: torch.Tensor, keys: torch.Tensor, scaling: float) -> torch.Tensor:
    """Scores `(X, H, M, C)` of latents' queries `(H, M, d)` and keys `(X, Hkv, C, d)` of chunks."""
    num_heads, num_latents, head_dim = queries.shape
    grouped = queries.reshape(keys.shape[1], -1, head_dim) * scaling  # (Hkv, H / Hkv * M, d)
    scores = torch.einsum("xkcd,kqd->xkqc", keys, grouped).to(statistics_dtype(keys.dtype))
    return scores.reshape(keys.shape[0], num_heads, num_latents, keys.shape[2])


def chunk_statistics(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float, dropout: float):
    """
    Statistics of every chunk under the latents' queries.

    Args:
        queries: `(H, M, d)`, one set for all chunks.
        keys, values: `(X, Hkv, C, d)`, chunks without padding.
        scaling: factor on the scores.
        dropout: probability with which a weight is dropped.

    Returns:
        `lse` `(X, H, M)` and `out` `(X, H, M, d)`.
    """
    scores = chunk_scores(queries, keys, scaling)
    lse = scores.logsumexp(-1)  # (X, H, M)
    probabilities = (scores - lse[..., None]).exp().to(values.dtype)
    if dropout:
        probabilities = torch.nn.functional.dropout(probabilities, dropout)
    grouped = probabilities.unflatten(1, (keys.shape[1], -1)).flatten(2, 3)  # (X, Hkv, H / Hkv * M, C)
    return lse, (grouped @ values).to(lse.dtype).reshape(*lse.shape, values.shape[-1])


def merge(lse_a: torch.Tensor, out_a: torch.Tensor, lse_b: torch.Tensor, out_b: torch.Tensor):
    """The statistics of two spans together."""
    lse = torch.logaddexp(lse_a, lse_b)
    return lse, (lse_a - lse).exp()[..., None] * out_a + (lse_b - lse).exp()[..., None] * out_b


def exclusive_prefix(lse, out, first_lse, first_out, sequence_ids=None):
    """
    What the latents know at the start of each chunk: the merge of all chunks before it.

    Args:
        lse, out: `(R, N - 1, H, M)` and `(R, N - 1, H, M, d)`, every chunk but the last.
        first_lse, first_out: `(R, H, M)` and `(R, H, M, d)`, what is known at the start of the first chunk.
        sequence_ids: `(R, N)`, chunks with different ids do not see each other; `None` where a row is one sequence.

    Returns:
        `(R, N, H, M)` and `(R, N, H, M, d)`.
    """
    lses, outs = [first_lse[:, None]], [first_out[:, None]]
    for block in range((lse.shape[1] + BLOCK - 1) // BLOCK):  # counted so, one compiled graph serves many lengths
        start, stop = block * BLOCK, min((block + 1) * BLOCK, lse.shape[1])
        # Item 0 is what is known so far, item j the chunk start + j - 1; prefix i is for the chunk start + i.
        items = torch.cat([lses[-1][:, -1:], lse[:, start:stop]], dim=1)
        contents = torch.cat([outs[-1][:, -1:], out[:, start:stop]], dim=1)
        visible = torch.ones(items.shape[1], items.shape[1], dtype=torch.bool, device=lse.device).tril()
        if sequence_ids is not None:
            prefix_ids = sequence_ids[:, start : stop + 1]
            item_ids = torch.cat([prefix_ids[:, :1], prefix_ids[:, :-1]], dim=1)
            visible = (visible & (prefix_ids[:, :, None] == item_ids[:, None, :]))[:, None, None]  # (R, 1, 1, i, j)
        block_lse, block_out = _merge_visible(items, contents, visible)
        lses.append(block_lse[:, 1:])
        outs.append(block_out[:, 1:])
    return torch.cat(lses, dim=1), torch.cat(outs, dim=1)


def _merge_visible(lse, out, visible):
    """Merge, for every prefix i, the items j that it sees: `(R, J, H, M)`, `(R, J, H, M, d)`, `(..., i, j)`."""
    logits = lse.movedim(1, -1)[..., None, :].where(visible, EMPTY)  # (R, H, M, i, j)
    prefix_lse = logits.logsumexp(-1)  # (R, H, M, i)
    # Masked again: beside nothing but empty spans an unseen one would weigh exp(EMPTY - EMPTY) = 1.
    weights = (logits - prefix_lse[..., None]).exp() * visible
    with torch.autocast(out.device.type, enabled=False):  # which would make a product of float32 one of bfloat16
        prefix_out = weights @ out.movedim(1, -2)  # (R, H, M, i, d)
    return prefix_lse.movedim(-1, 1), prefix_out.movedim(-2, 1)
