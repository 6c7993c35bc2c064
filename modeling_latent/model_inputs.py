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
"""Checks of what a forward is given: the mask, packed sequences, and the cache."""

import torch
from torch import nn

from .cache_latent import state_fields
from .configuration_latent import LatentAttentionConfig


def check_attention_mask(attention_mask, inputs_embeds, continued: bool) -> torch.Tensor | None:
    """Which of the new tokens are real, `(B, T)`; `None` where all are."""
    if attention_mask is None:
        return None
    batch, length = inputs_embeds.shape[:2]
    shape = tuple(getattr(attention_mask, "shape", ()))
    if len(shape) != 2 or shape[0] != batch or shape[1] < length or (shape[1] > length and not continued):
        raise ValueError(
            f"`attention_mask` is of shape {shape} but must be 2-D, {(batch, length)}, or with a cache cover the "
            "past, too: 0 for padding, 1 for tokens. What may attend to what follows from the chunks and can't be "
            "changed by a 4-D mask; to keep packed documents apart pass `position_ids` that restart at 0, or "
            "`cu_seq_lens_q`."
        )
    valid = attention_mask[:, -length:].bool()
    # Looking waits for the device, once a forward. A compiled graph can't look and takes the general path.
    return None if not torch.compiler.is_compiling() and valid.all() else valid


def predictable(labels: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """`labels` `(B, T)` without that of each row's first token, which has nothing to be predicted from."""
    if attention_mask is None:
        return labels
    seen = attention_mask[:, -labels.shape[1] :].bool().cumsum(1)  # (B, T)
    return labels.masked_fill(seen <= 1, -100)


def packed_starts(position_ids, cu_seq_lens_q, seq_idx, valid, tokens_seen, inputs_embeds) -> torch.Tensor | None:
    """Tokens that start a sequence, `(B, T)`; `None` where every row is a single one, or continues from a cache."""
    batch, length = inputs_embeds.shape[:2]
    if tokens_seen is not None:
        if cu_seq_lens_q is not None or seq_idx is not None:
            raise ValueError(
                "`cu_seq_lens_q` and `seq_idx` tell packed sequences apart, but `past_key_values` holds tokens of an "
                "earlier forward, which the new ones continue. Leave them out, or pass an empty cache."
            )
        return None
    if cu_seq_lens_q is not None:
        if batch != 1:
            raise ValueError(
                f"`cu_seq_lens_q` is for one row of packed sequences, but `input_ids` has {batch} rows: put them one "
                "after another into one row, or pass `position_ids` that restart at 0."
            )
        starts = torch.zeros(1, length + 1, dtype=torch.bool, device=inputs_embeds.device)
        return starts.index_fill(1, cu_seq_lens_q.to(starts.device, torch.long), True)[:, :-1]
    if seq_idx is not None:
        return seq_idx != nn.functional.pad(seq_idx[:, :-1], (1, 0), value=-1)
    if position_ids is None or length == 1:
        return None
    starts = (position_ids == 0).expand(batch, length)
    starts = starts if valid is None else starts & valid
    packed = (starts.sum(1) > 1).any()
    if torch.compiler.is_compiling():
        # A compiled graph can't look, and must not silently let packed documents see each other.
        torch._assert_async(
            ~packed, "`position_ids` restart: a compiled model takes packed sequences by `cu_seq_lens_q` instead."
        )
        return None
    return starts if packed else None


def check_cache(past_key_values, config: LatentAttentionConfig, inputs_embeds) -> torch.Tensor | None:
    """Tokens that the cache has seen, `(B,)`; `None` for an empty cache, or none."""
    if past_key_values is None:
        return None
    if not config.is_causal:
        raise ValueError(
            "`past_key_values` is for causal models: with `is_causal=False` every token sees the future, so nothing "
            "can be kept. Leave it out."
        )
    # By name: a copy of this code that was loaded from the Hub has classes of its own.
    names = {getattr(layer, "_layer_type", None) or type(layer).__name__ for layer in past_key_values.layers}
    own = {config.model_type, "StaticLatentAttentionCacheLayer"}
    if not names or not names <= own or len(past_key_values.layers) != config.num_hidden_layers:
        raise ValueError(
            f"`past_key_values` is a {type(past_key_values).__name__} of {len(past_key_values.layers)} layers of "
            f"{sorted(names)}, made for another model. Pass `DynamicCache(config=model.config)`, or leave it out."
        )
    if past_key_values.offloading:
        raise ValueError(
            "`past_key_values` asks for offloading, but the state is of constant size, "
            f"{config.state_bytes(1, inputs_embeds.dtype)} bytes per row, and stays on the device: use a cache "
            "without offloading."
        )
    state = past_key_values.layers[0].state
    if state is None:
        return None
    batch = inputs_embeds.shape[0]
    if state.tokens_seen.shape[0] != batch:
        raise ValueError(
            f"`past_key_values` is of batch size {state.tokens_seen.shape[0]} but the input of {batch}. Call "
            "`batch_repeat_interleave` or `batch_select_indices` on the cache, or pass an empty one."
        )
    made_for, needed = past_key_values.layers[0].made_for, state_fields(config)
    if made_for != needed:
        theirs = {name: value for name, value in made_for.items() if value != needed[name]}
        ours = {name: needed[name] for name in theirs}
        raise ValueError(
            f"`past_key_values` is of a model with {theirs}, but this one has {ours}. Pass "
            "`DynamicCache(config=model.config)`, or leave it out."
        )
    return state.tokens_seen
