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
"""
Long rows without gradients, in pieces.

A forward over a whole row holds what every layer computes for all of its tokens. Where nothing is kept for a backward,
the same numbers come from one piece of the row after another, each continuing the state that the last one left. Then
the layers need the memory of a piece, whatever the length of the row.
"""

import torch
from transformers.utils.import_utils import is_tracing

from .chunk_layout import last_real
from .configuration_latent import LatentAttentionConfig


# How many tokens of all rows go through at once. On a CPU this keeps most tensors below 32 MiB: to larger ones the C
# library gives fresh pages each time, which cost time. On a GPU, where nothing has been measured, pieces are larger,
# as it needs much work at once to be busy.
PIECE, PIECE_ON_GPU = 4096, 32768


def most_tokens(tokens: torch.Tensor) -> int:
    return PIECE if tokens.device.type == "cpu" else PIECE_ON_GPU


def piece_length(tokens: torch.Tensor, chunk_size: int) -> int:
    """How many tokens of each row `(B, T, ...)` make a piece: whole chunks, so that a piece begins with one."""
    return max(most_tokens(tokens) // tokens.shape[0] // chunk_size, 1) * chunk_size


def goes_in_pieces(tokens: torch.Tensor, config: LatentAttentionConfig, arguments: dict) -> bool:
    """Whether rows of one sequence each, `(B, T, ...)`, are long, and nothing of layers before the last is wanted."""
    recorded = ("output_attentions", "output_hidden_states")
    records = any(arguments.get(name) or getattr(config, name, False) for name in recorded)
    needs_whole_row = torch.is_grad_enabled() or not config.is_causal or records
    return not needs_whole_row and tokens.shape[1] > most_tokens(tokens) and not is_tracing(tokens)


def of_last_real_token(hidden_states: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
    """
    Give padding `(B, T)` what the real token before it has, of `(B, T, D)`, and zeros in front of the first, as a
    forward over whole rows does: the real token may be in an earlier piece.
    """
    if valid is None:
        return hidden_states
    last = last_real(valid)[..., None]  # (B, T, 1)
    gathered = hidden_states.gather(1, last.clamp(min=0).expand_as(hidden_states))
    return gathered.masked_fill(last < 0, 0)
