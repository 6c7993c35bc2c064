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
"""The causal depthwise convolution in front of memory and MLP: a token together with what preceded it."""

import torch
from torch import nn

from .chunk_layout import ChunkLayout


class TokenConv(nn.Conv1d):
    """
    `u -> u + silu(conv(u))` over the last `kernel_size` real tokens of the same sequence, zeros before its first:
    never across packed documents, never over padding (depthwise, as in Primer, So et al. 2021, arXiv:2109.08668).
    """

    def __init__(self, hidden_size: int, kernel_size: int, init_std: float):
        super().__init__(hidden_size, hidden_size, kernel_size, groups=hidden_size)
        self.init_std = init_std

    def forward(
        self, tokens: torch.Tensor, layout: ChunkLayout, cached: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            tokens: `(R, N, S, D)`, normed.
            layout: where they stand.
            cached: `(R, K - 1, D)`, the tokens before them.

        Returns:
            `(R, N, S, D)`, and the inputs: of a grid all, `(R, K - 1 + N C, D)`, of which `last_inputs` picks; of a
            step those that the next one needs, `(R, K - 1, D)`.
        """
        inputs = self.in_front(tokens, layout, cached)
        if layout.is_step:
            # One weighted sum: the operator for whole sequences takes many times as long for a single token.
            convolved = (inputs * self.weight[:, 0].T).sum(1)[:, None, None] + self.bias
            inputs = inputs[:, 1:]
        elif layout.sequence_ids is None:
            convolved = super().forward(inputs.transpose(1, 2)).transpose(1, 2).unflatten(1, tokens.shape[1:3])
        else:
            windows = self.windows(inputs, layout).flatten(0, 1)  # (R N, D, K - 1 + C)
            convolved = super().forward(windows).transpose(1, 2).unflatten(0, tokens.shape[:2])
        return tokens + nn.functional.silu(convolved), inputs

    def in_front(self, tokens: torch.Tensor, layout: ChunkLayout, cached: torch.Tensor | None) -> torch.Tensor:
        """The tokens after zeros, or after those of the cache, which end where the first new token stands."""
        if layout.is_step:
            return torch.cat([cached, tokens[:, 0]], dim=1)
        span = self.kernel_size[0] - 1
        inputs = torch.cat([tokens.new_zeros(tokens.shape[0], span, tokens.shape[-1]), tokens.flatten(1, 2)], dim=1)
        if cached is None:
            return inputs
        positions = layout.filled[:, None] + torch.arange(span, device=tokens.device)  # (R, K - 1)
        return inputs.scatter(1, positions[..., None].expand_as(cached), cached.to(inputs.dtype))

    def windows(self, inputs: torch.Tensor, layout: ChunkLayout) -> torch.Tensor:
        """Each chunk with the inputs in front of it, `(R, N, D, K - 1 + C)`, zeros for another sequence's."""
        span, size = self.kernel_size[0] - 1, layout.grid_shape[2]
        back = torch.arange(span, 0, -1, device=inputs.device)  # distance to the chunk's first slot
        visible = layout.chunks_before[..., None] * size >= back  # (R, N, K - 1)
        visible = nn.functional.pad(visible, (0, size), value=True)[:, :, None]
        return inputs.unfold(1, span + size, size).masked_fill(~visible, 0)


def make_token_conv(hidden_size: int, kernel_size: int, init_std: float | None = None) -> TokenConv | None:
    """
    `None` for a kernel size of 0, which stands for no convolution. Drawn with a standard deviation of `init_std`, by
    default `1 / sqrt(kernel_size)`, with which all tokens in the kernel are together as large as one.
    """
    return TokenConv(hidden_size, kernel_size, init_std or kernel_size**-0.5) if kernel_size else None


def convolve(
    token_conv: TokenConv | None, tokens: torch.Tensor, layout: ChunkLayout, cached: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Tokens as a memory or an MLP reads them, and what the convolution, if there is one, took in."""
    return (tokens, None) if token_conv is None else token_conv(tokens, layout, cached)


def last_inputs(
    inputs: torch.Tensor | None, layout_size: int, ends: torch.Tensor, seen: torch.Tensor
) -> torch.Tensor | None:
    """
    The state after the token before slot `ends` `(B,)`, the `seen`-th `(B,)` of its sequence: `(B, K - 1, D)` of all
    inputs of a grid of `layout_size` slots, `(B, K - 1 + N C, D)`. Zeros before the sequence's first token.
    """
    if inputs is None:
        return None
    span = inputs.shape[1] - layout_size  # K - 1
    back = torch.arange(span, device=ends.device)
    last = inputs[torch.arange(ends.shape[0], device=ends.device)[:, None], ends[:, None] + back]
    return last * (seen[:, None] >= span - back)[..., None].to(last.dtype)
