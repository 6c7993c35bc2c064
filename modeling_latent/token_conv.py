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

from .chunk_layout import GridLayout, Progress, StepLayout


class TokenConv(nn.Conv1d):
    """
    `u -> u + silu(conv(u))` over the last `kernel_size` real tokens of the same sequence, zeros before its first:
    never across packed documents, never over padding (depthwise, as in Primer, So et al. 2021, arXiv:2109.08668).
    """

    def __init__(self, hidden_size: int, kernel_size: int, init_std: float):
        super().__init__(hidden_size, hidden_size, kernel_size, groups=hidden_size)
        self.init_std = init_std

    def forward(
        self, tokens: torch.Tensor, layout: GridLayout | StepLayout, cached: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            tokens: `(R, N, C, D)`, or in a step `(B, 1, D)`, normed.
            layout: where they stand.
            cached: `(R, K - 1, D)`, the tokens before them.

        Returns:
            As `tokens`, and the inputs: of a grid all, `(R, K - 1 + N C, D)`, of which `last_inputs` picks; of a
            step those that the next one needs, `(B, K - 1, D)`.
        """
        convolve_them = self.convolve_step if isinstance(layout, StepLayout) else self.convolve_grid
        convolved, inputs = convolve_them(tokens, layout, cached)
        return tokens + nn.functional.silu(convolved), inputs

    def convolve_step(self, tokens, layout: StepLayout, cached: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Multiply the last K inputs by the K weights of each channel. The operator for whole sequences takes many times
        as long for a single token.
        """
        inputs = torch.cat([cached, tokens], dim=1)  # (B, K, D)
        weight = self.weight.transpose(1, 2)  # (D, K, 1)
        convolved = torch.baddbmm(self.bias[:, None, None], inputs.permute(2, 0, 1), weight)  # (D, B, 1)
        return convolved.permute(1, 2, 0), inputs[:, 1:].clone()  # a view would keep the input that is left behind

    def convolve_grid(
        self, tokens, layout: GridLayout, cached: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = self.in_front(tokens, layout, cached)
        if layout.sequence_ids is None:
            convolved = super().forward(inputs.transpose(1, 2)).transpose(1, 2)  # (R, N C, D)
        else:
            convolved = self.convolve_documents(inputs, layout.places.flatten(1))  # (R, N C, D)
        return convolved.reshape(tokens.shape), inputs

    def convolve_documents(self, inputs: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """
        Convolve packed documents, of `inputs` `(R, K - 1 + N C, D)`. A token reads no further back than to the start
        of its document, where it has the place `places` `(R, N C)`. The operator for whole sequences knows no
        documents, so there is a product here for each distance back.
        """
        own, *earlier = self.weight[:, 0].flip(1).unbind(1)  # (D,) each: of the token itself, of the one before, ...
        first = len(earlier)  # where the tokens begin among the inputs
        convolved = torch.addcmul(self.bias, inputs[:, first:], own)  # (R, N C, D)
        for back, weight in enumerate(earlier, start=1):
            read = inputs[:, first - back : inputs.shape[1] - back].masked_fill((places < back)[..., None], 0)
            convolved = torch.addcmul(convolved, read, weight)
        return convolved

    def in_front(self, tokens: torch.Tensor, layout: GridLayout, cached: torch.Tensor | None) -> torch.Tensor:
        """
        The tokens after zeros, after those of the rank to the left, or after those of the cache, which end where the
        first new token stands.
        """
        span = self.kernel_size[0] - 1
        tokens = tokens.flatten(1, 2)  # (R, N C, D)
        if layout.shard is None:
            before = tokens.new_zeros(tokens.shape[0], span, tokens.shape[-1])
        else:
            before = layout.shard.from_left(tokens[:, tokens.shape[1] - span :])
        inputs = torch.cat([before, tokens], dim=1)
        if cached is None:
            return inputs
        positions = layout.filled[:, None] + torch.arange(span, device=tokens.device)  # (R, K - 1)
        return inputs.scatter(1, positions[..., None].expand_as(cached), cached.to(inputs.dtype))


def make_token_conv(hidden_size: int, kernel_size: int, init_std: float | None = None) -> TokenConv | None:
    """
    `None` for a kernel size of 0, which stands for no convolution. Drawn with a standard deviation of `init_std`, by
    default `1 / sqrt(kernel_size)`, with which all tokens in the kernel are together as large as one.
    """
    return TokenConv(hidden_size, kernel_size, init_std or kernel_size**-0.5) if kernel_size else None


def convolve(
    token_conv: TokenConv | None,
    tokens: torch.Tensor,
    layout: GridLayout | StepLayout,
    cached: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Tokens as a memory or an MLP reads them, and what the convolution, if there is one, took in."""
    return (tokens, None) if token_conv is None else token_conv(tokens, layout, cached)


def last_inputs(inputs: torch.Tensor | None, layout_size: int, progress: Progress) -> torch.Tensor | None:
    """
    What a convolution has to remember after a token, `(B, K - 1, D)`, of all inputs of a grid of `layout_size` slots,
    `(B, K - 1 + N C, D)`. Zeros before the sequence's first token.
    """
    if inputs is None:
        return None
    span = inputs.shape[1] - layout_size  # K - 1
    back = torch.arange(span, device=inputs.device)
    rows = torch.arange(inputs.shape[0], device=inputs.device)[:, None]
    last = inputs[rows, progress.end[:, None] + back]
    return last * (progress.seen[:, None] >= span - back)[..., None].to(last.dtype)
