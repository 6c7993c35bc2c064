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
"""Packed sequences, several in one row: which tokens start one, whatever a user tells them apart by."""

import torch
from torch import nn

from .cache_name import CACHE_NAME
from .chunk_layout import last_real
from .tensor_checks import described, refuse, shape_of, tensor_shape


def packed_starts(position_ids, cu_seq_lens_q, seq_idx, valid, tokens_seen, inputs_embeds) -> torch.Tensor | None:
    """Which tokens start a sequence, `(B, T)`; `None` where every row is a single one, or continues from a cache."""
    batch, length = inputs_embeds.shape[:2]
    check_packing(position_ids, cu_seq_lens_q, seq_idx, (batch, length))
    if tokens_seen is not None:
        if cu_seq_lens_q is not None or seq_idx is not None:
            raise ValueError(
                f"`cu_seq_lens_q`, `seq_idx` and an `attention_mask` with numbers beyond 1 tell packed sequences "
                f"apart, but `{CACHE_NAME}` holds tokens of an earlier forward, which the new ones continue. Leave "
                "them out, or pass an empty cache."
            )
        check_no_restart(position_ids, valid, tokens_seen)
        return None
    if cu_seq_lens_q is not None:
        seq_idx = sequence_numbers(cu_seq_lens_q, batch, length, inputs_embeds.device)
    if seq_idx is not None:
        starts = seq_idx != real_before(seq_idx, valid, none=-1)
        return starts if valid is None else starts & valid
    if position_ids is None or length == 1:
        return None
    starts = restarts(position_ids, valid, first=True).expand(batch, length)
    packed = (starts.sum(1) > 1).any()
    if torch.compiler.is_compiling():
        # A compiled graph can't look, and must not silently let packed documents see each other.
        refuse(
            packed,
            "`position_ids` restart: a compiled model takes packed sequences by `cu_seq_lens_q` instead, as "
            "`DataCollatorWithFlattening(return_flash_attn_kwargs=True)` sends them.",
        )
        return None
    return starts if packed else None


def check_packing(position_ids, cu_seq_lens_q, seq_idx, batch_shape: tuple[int, int]) -> None:
    """Check the shapes of what tells packed sequences apart."""
    shapes = batch_shape, (1, batch_shape[1])
    for name, numbers in {"position_ids": position_ids, "seq_idx": seq_idx}.items():
        if numbers is not None and tensor_shape(numbers) not in shapes:
            raise ValueError(
                f"`{name}` is {shape_of(numbers)} but must be a tensor of shape {shapes[0]} as the tokens are, or of "
                f"shape {shapes[1]} for all rows."
            )
    if cu_seq_lens_q is None:
        return
    if len(tensor_shape(cu_seq_lens_q) or ()) != 1 or cu_seq_lens_q.is_floating_point():
        raise ValueError(
            f"`cu_seq_lens_q` is {described(cu_seq_lens_q)} but must be integers of shape (sequences + 1,): where "
            "each sequence starts, and where the last one ends."
        )


def check_document_numbers(mask: torch.Tensor) -> None:
    """Check that a mask of other values than 0 and 1 numbers documents, for which this waits for the device."""
    falls = (mask != 0) & (mask < real_before(mask, mask != 0, none=0))
    if mask.is_floating_point() or ((mask < 0) | falls).any():
        raise ValueError(
            "`attention_mask` has values other than 0 and 1, as an additive mask has, but must be 0 for padding and 1 "
            "for tokens; or integers that number packed documents and rise along each row, such as 1 1 2 2 0. (Behind "
            "such documents `generate()` needs its cache.)"
        )


def sequence_numbers(cu_seq_lens_q: torch.Tensor, batch: int, length: int, device: torch.device) -> torch.Tensor:
    """
    `seq_idx` `(1, T)` from where sequences start, and where the last ends. What lies before and behind them, as
    padding may, is a sequence, too. Waits for the device.
    """
    if batch != 1:
        raise ValueError(
            f"`cu_seq_lens_q` is for one row of packed sequences, but `input_ids` has {batch} rows: put them one "
            "after another into one row, or pass `position_ids` that restart at 0."
        )
    cu_seq_lens_q = cu_seq_lens_q.to(device, torch.long)
    refuse(
        (cu_seq_lens_q < 0).any() | (cu_seq_lens_q > length).any() | (cu_seq_lens_q.diff() < 0).any(),
        f"`cu_seq_lens_q` must be rising places in the row of {length} tokens: where each sequence starts, and where "
        "the last one ends.",
    )
    starts = torch.zeros(1, length + 1, dtype=torch.long, device=device)
    return starts.index_fill(1, cu_seq_lens_q, 1)[:, :-1].cumsum(1)


def restarts(position_ids: torch.Tensor, valid: torch.Tensor | None, first: bool) -> torch.Tensor:
    """
    Real tokens `(B, T)` from which positions count anew: those at 0, and as some models count from 1 or 2, those that
    are not above the real token before. `first`: whether a row's first one does without being at 0.
    """
    none = torch.iinfo(torch.int32).max if first else -1  # larger ones, `pad` can't write
    starts = (position_ids == 0) | (position_ids <= real_before(position_ids, valid, none))
    return starts if valid is None else starts & valid


def check_no_restart(position_ids, valid, tokens_seen: torch.Tensor) -> None:
    """Check that no positions start anew beside a cache, whose sequences go on. Waits for the device."""
    if position_ids is None or position_ids.shape[1] == 1:
        return
    refuse(
        (restarts(position_ids, valid, first=False) & (tokens_seen > 0)[:, None]).any(),
        f"`position_ids` start anew, but `{CACHE_NAME}` holds tokens of an earlier forward, which the new ones "
        "continue. Pass packed sequences in one forward, without `prefill_chunk_size`; or an empty cache. (To "
        "`generate()` give a prompt that begins with what the cache has read, and has at least one token more; with "
        "an assistant or prompt lookup only the tokens that the cache has not read, and a mask that covers all.)",
    )


def real_before(values: torch.Tensor, valid: torch.Tensor | None, none: int) -> torch.Tensor:
    """The value of the last real token in front of each one, `(B, T)`; `none` where there is none."""
    if valid is None:
        return nn.functional.pad(values[:, :-1], (1, 0), value=none)
    last = nn.functional.pad(last_real(valid)[:, :-1], (1, 0), value=-1)
    return values.expand_as(valid).gather(1, last.clamp(min=0)).masked_fill(last < 0, none)
