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

Each is a tuple with one tensor per layer. With N chunks of C tokens, S sinks and M latents:

    attentions              (B, H, T, M)     retrieval: how every token reads the refined latents
    compression_attentions  (B, N, H, M, T)  what the latents that the tokens of chunk n read have read themselves
    refinement_attentions   (B, N, H, M, M)  how these latents attend to each other
    local_attentions        (B, H, T, S + 2C)  every token's window: sinks, the chunk before its own, its own

A layer that has no latents has M = 0 here, and one without local attention a window of no slots: its maps are there,
and have no elements. So `attentions[i]` is of layer i, whatever the pattern.

Weights sum to one over the last axis. Latents of a sequence's first chunk have read nothing: their compression is 0.
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

from .chunk_layout import GridLayout, StepLayout
from .configuration_latent import LAYER_KINDS, LatentAttentionConfig


logger = logging.get_logger(__name__)

MAPS = ("compression_attentions", "refinement_attentions", "local_attentions")


@dataclass
class LatentAttentionMaps:
    compression_attentions: tuple[torch.Tensor, ...] | None = None
    refinement_attentions: tuple[torch.Tensor, ...] | None = None
    local_attentions: tuple[torch.Tensor, ...] | None = None
    # (B, n C), only where several ranks share a sequence: which token of its row stands in each of the rank's own
    # slots, -1 for none. `last_hidden_state`, `hidden_states` and `logits` are of these slots.
    token_indices: torch.LongTensor | None = None


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
    return {name: getattr(outputs, name) for name in ("hidden_states", "attentions", *MAPS, "token_indices")}


def queries_to_tokens(weights: torch.Tensor, layout: GridLayout | StepLayout) -> torch.Tensor:
    """
    The weights of every query, `(R, N, H, C, X)`, of a bidirectional model's retrieval `(R, H, N C, X)`, and of a step
    `(B, H, 1, X)`, to `(B, H, T, X)`.
    """
    if isinstance(layout, StepLayout):
        return weights
    by_slot = weights.transpose(-3, -2).reshape(*layout.grid_shape, weights.shape[-3], -1)  # (R, N, C, H, X)
    return layout.to_tokens(by_slot).transpose(1, 2)


def keys_to_tokens(weights: torch.Tensor, layout: GridLayout) -> torch.Tensor:
    """`(R, X, H, M, N, C)`, the weights on every slot, to `(B, X, H, M, T)`."""
    by_token = layout.to_tokens(weights.movedim((4, 5), (1, 2)))  # (B, T, X, H, M)
    if layout.indices is not None:
        valid = layout.indices.token_valid.to(weights.device)
        by_token = by_token.masked_fill(~valid[..., None, None, None], 0)
    return by_token.movedim(1, -1)


def compression_to_tokens(read, layer, layout: GridLayout) -> torch.Tensor:
    """
    `(B, N, H, M, T)` from what a `layer` recorded: its grid, or of a bidirectional model, for which N is 1, the
    weights of its one reading, `(R, H, M, N C)`.
    """
    if isinstance(read, torch.Tensor):
        return keys_to_tokens(read.unflatten(-1, layout.grid_shape[1:])[:, None], layout)
    return keys_to_tokens(layer.latent_attention.compression_weights(read, layout), layout)


def refinement_by_chunk(weights: torch.Tensor, _) -> torch.Tensor:
    """Give a bidirectional model's weights `(R, H, M, M)` a dimension of one chunk: `(B, N, H, M, M)` for all."""
    return weights.view(weights.shape[0], -1, *weights.shape[-3:])


def maps_in_token_order(
    outputs: LatentAttentionModelOutput, layout: GridLayout | StepLayout, layers, tokens: torch.Tensor
) -> dict:
    """
    The maps by their names, from what the layers recorded, for `tokens` `(B, T, D)`. Fused attention has no weights,
    so there are no maps.
    """
    if not outputs.attentions and not outputs.local_attentions:
        return {"attentions": outputs.attentions}
    num_heads = layers[0].config.num_attention_heads

    def by_layer(recorded: tuple, attention: str, make_map, *shape_of_none: int) -> tuple[torch.Tensor, ...]:
        found, none = iter(recorded), tokens.new_zeros(*shape_of_none)
        return tuple(
            make_map(next(found), layer) if attention in LAYER_KINDS[layer.kind] else none for layer in layers
        )

    def of_tokens(weights, _):
        return queries_to_tokens(weights, layout)

    batch, length = tokens.shape[:2]
    maps = {
        "attentions": by_layer(outputs.attentions, "latent_attention", of_tokens, batch, num_heads, length, 0),
        "local_attentions": by_layer(
            outputs.local_attentions, "local_attention", of_tokens, batch, num_heads, length, 0
        ),
    }
    if isinstance(layout, StepLayout):
        return maps
    rows, chunks = layout.grid_shape[0], layout.grid_shape[1] if layers[0].config.is_causal else 1
    maps["refinement_attentions"] = by_layer(
        outputs.refinement_attentions, "latent_attention", refinement_by_chunk, rows, chunks, num_heads, 0, 0
    )
    maps["compression_attentions"] = by_layer(
        outputs.compression_attentions,
        "latent_attention",
        lambda read, layer: compression_to_tokens(read, layer, layout),
        *(batch, chunks, num_heads, 0, length),
    )
    return maps
