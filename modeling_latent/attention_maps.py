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
"""What a forward with `output_attentions=True` returns: who attends to whom, in each of a layer's attentions.

Each is a tuple with one tensor per layer. With N chunks of C tokens:

    attentions              (B, H, T, M)     retrieval: how every token reads the refined latents
    compression_attentions  (B, N, H, M, T)  what the latents that the tokens of chunk n read have read themselves
    refinement_attentions   (B, N, H, M, M)  how these latents attend to each other
    local_attentions        (B, H, T, 2C)    every token's window: first the chunk before its own, then its own

They sum to one over the last axis. Latents of a sequence's first chunk have read nothing: their compression is zero.
Beside a cache it sums to less than one, as what was read before this forward is not among its tokens; a step of
decoding has neither compression nor refinement, as both belong to a chunk's start. Packed sequences are told apart
in the axis of T: a token's weight is its weight within its own sequence. Padding is read by nothing.

Compression's are quadratic in T: for texts of a few thousand tokens at most.

Bidirectional: N is 1, local attention's window has 3C slots, and where rows are packed, the first axis of refinement
counts sequences. Task heads other than language modelling return `attentions` alone: call their `.model`.
"""

from dataclasses import dataclass

import torch
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast, MaskedLMOutput
from transformers.utils import logging

from .chunk_layout import ChunkLayout
from .configuration_latent import LatentAttentionConfig


logger = logging.get_logger(__name__)

MAPS = ("compression_attentions", "refinement_attentions", "local_attentions")


@dataclass
class LatentAttentionMaps:
    compression_attentions: tuple[torch.Tensor, ...] | None = None
    refinement_attentions: tuple[torch.Tensor, ...] | None = None
    local_attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class LatentAttentionModelOutput(LatentAttentionMaps, BaseModelOutputWithPast):
    """The library's output of a base model, and the maps."""


@dataclass
class LatentAttentionCausalLMOutput(LatentAttentionMaps, CausalLMOutputWithPast):
    """The library's output of a causal language model, and the maps."""


@dataclass
class LatentAttentionMaskedLMOutput(LatentAttentionMaps, MaskedLMOutput):
    """The library's output of a masked language model, and the maps."""


def what_to_record(output_attentions: bool | None, config: LatentAttentionConfig) -> dict:
    """The library records each kind under a flag of its own; here one flag asks for all of them."""
    if output_attentions is None:
        output_attentions = config.output_attentions
    implementation = config._attn_implementation or "sdpa"
    if output_attentions and implementation != "eager":
        logger.warning_once(
            f"`output_attentions` is True, but `attn_implementation` is {implementation!r}, which has no attention "
            'weights to return: `attentions` stays empty. Call `model.set_attn_implementation("eager")` first.'
        )
    return {f"output_{name}": output_attentions for name in ("attentions", *MAPS)}


def recorded(outputs: LatentAttentionModelOutput) -> dict:
    """What a head passes on as it is."""
    return {name: getattr(outputs, name) for name in ("hidden_states", "attentions", *MAPS)}


def queries_to_tokens(weights: torch.Tensor, layout: ChunkLayout) -> torch.Tensor:
    """`(R, N, H, S, X)`, the weights of every slot, to `(B, H, T, X)`."""
    by_slot = weights.transpose(2, 3).reshape(*layout.grid_shape, weights.shape[2], -1)  # (R, N, S, H, X)
    return layout.to_tokens(by_slot).transpose(1, 2)


def keys_to_tokens(weights: torch.Tensor, layout: ChunkLayout) -> torch.Tensor:
    """`(R, X, H, M, N, C)`, the weights on every slot, to `(B, X, H, M, T)`."""
    by_token = layout.to_tokens(weights.movedim((4, 5), (1, 2)))  # (B, T, X, H, M)
    if layout.token_valid is not None:
        valid = layout.token_valid.to(weights.device)
        by_token = by_token.masked_fill(~valid[..., None, None, None], 0)
    return by_token.movedim(1, -1)


def maps_in_token_order(outputs: LatentAttentionModelOutput, layout: ChunkLayout, layers) -> None:
    """What the layers recorded in slots, in place. Fused attention has no weights: then there are no maps at all."""
    refined, read, local = outputs.refinement_attentions, outputs.compression_attentions, outputs.local_attentions
    outputs.refinement_attentions = outputs.compression_attentions = outputs.local_attentions = None
    if not outputs.attentions:
        return
    outputs.attentions = tuple(queries_to_tokens(weights, layout) for weights in outputs.attentions)
    if local:
        outputs.local_attentions = tuple(queries_to_tokens(weights, layout) for weights in local)
    if not layout.is_step:
        outputs.refinement_attentions = tuple(
            weights.view(weights.shape[0], -1, *weights.shape[-3:]) for weights in refined
        )
        outputs.compression_attentions = tuple(
            keys_to_tokens(layer.latent_attention.compression_weights(state, layout), layout)
            for layer, state in zip(layers, read, strict=True)
        )
