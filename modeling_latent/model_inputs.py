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
"""What a forward is given: its arguments, tokens and mask are checked, and its cache is made ready."""

import torch
from transformers.utils import TransformersKwargs, logging
from transformers.utils.import_utils import is_tracing

from .cache_latent import LatentAttentionCacheLayer, add_layers, state_fields, take_over_empty_layers, used_layer
from .cache_name import CACHE_NAME
from .configuration_latent import LatentAttentionConfig, with_nearest
from .packing import check_document_numbers
from .tensor_checks import refuse, shape_of, tensor_shape


logger = logging.get_logger(__name__)

# What the library and its trainer may send to any model, whether or not that reads it.
SENT_TO_ALL = {"return_dict", "shift_labels", "skip_logits", "debug_io", "debug_io_dir", "prune_layers"}
SENT_TO_ALL |= TransformersKwargs.__annotations__.keys()
ARGUMENTS = SENT_TO_ALL | {
    *("input_ids", "attention_mask", "inputs_embeds", "cache", "past_key_values", "use_cache"),
    *("labels", "logits_to_keep", "start_positions", "end_positions"),
}


def warn_of_other_arguments(arguments: dict) -> None:
    """Name those that no part of the model reads, which the library passes on in silence: one may be misspelt."""
    if torch.compiler.is_compiling():
        return
    for name, value in arguments.items():
        if value is not None and name not in SENT_TO_ALL and not name.startswith("output_"):
            logger.warning_once(f"This model has no argument {with_nearest(name, ARGUMENTS)}: it has no effect.")


def check_tokens(hidden_states: torch.Tensor, hidden_size: int) -> None:
    """Check that `hidden_states` are `(B, T, D)`, and that there are any."""
    shape = tensor_shape(hidden_states)
    if shape is None or shape[-1:] != (hidden_size,):
        raise ValueError(
            f"The input is {shape_of(hidden_states)} but must be a tensor of shape (batch, tokens, {hidden_size}), as "
            f"`hidden_size` is {hidden_size}."
        )
    if len(shape) != 3:
        raise ValueError(
            f"The input is of shape {shape[:-1]}, or as embeddings {shape}, but must be (batch, tokens): put a single "
            "sequence into a batch of one by `[None]`."
        )
    if 0 in shape[:2]:
        raise ValueError(
            f"The input is of shape {shape[:2]}, without any token. Beside a cache pass the new tokens, and a mask "
            "that covers the past as well; or the whole sequence."
        )


def valid_of_single_sequences(attention_mask, inputs_embeds) -> torch.Tensor | None:
    """Read the mask of rows of one sequence each: which tokens are real, `(B, T)`, or `None` where all are."""
    valid, documents = read_mask(attention_mask, inputs_embeds, continued=False)
    if documents is not None:
        raise ValueError(
            "`attention_mask` numbers packed documents, but must be 0 for padding and 1 for tokens: a layer alone "
            "takes one sequence per row."
        )
    return valid


def read_mask(attention_mask, inputs_embeds, continued: bool) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """
    Which of the new tokens are real, `(B, T)`, `None` where all are; and the numbers of their documents, `(B, T)`,
    where the mask has numbers beyond 1, as packers write them, else `None`.
    """
    if attention_mask is None:
        return None, None
    batch, length = inputs_embeds.shape[:2]
    shape = tensor_shape(attention_mask) or ()
    if len(shape) != 2 or shape[0] != batch or shape[1] < length or (shape[1] > length and not continued):
        raise ValueError(
            f"`attention_mask` is {shape_of(attention_mask)} but must be 2-D, {(batch, length)}, or with a cache "
            "cover the past, too: 0 for padding, 1 for tokens. What may attend to what follows from the chunks and "
            "can't be changed by a 4-D mask; to keep packed documents apart pass `position_ids` that restart at 0, or "
            "`cu_seq_lens_q`."
        )
    new = attention_mask[:, -length:]
    valid = new.bool()
    looked_at = attention_mask if attention_mask.is_floating_point() else new  # an additive mask may begin with zeros
    plain = ((looked_at == 0) | (looked_at == 1)).all()
    if is_tracing(valid):
        # A traced or compiled graph can't look, and takes the general path.
        if attention_mask.dtype != torch.bool:
            refuse(~plain, "`attention_mask` has values other than 0 and 1, which a compiled model does not take.")
        return valid, None
    plain, all_valid = torch.stack([plain, valid.all()]).tolist()  # waits for the device, once a forward
    if not plain:
        check_document_numbers(new)
    return None if all_valid else valid, None if plain else new.long()


def check_no_cache_beside(checkpointing: bool, cache) -> None:
    """Reject a cache while training with gradient checkpointing: checkpointed layers keep none."""
    if checkpointing and cache is not None:
        raise ValueError(
            f"`{CACHE_NAME}` is given, but the model is training with gradient checkpointing, whose layers keep no "
            "cache. Call `model.eval()` or `gradient_checkpointing_disable()`, or pass `use_cache=False`."
        )


def prepare_cache(cache, config: LatentAttentionConfig, inputs_embeds: torch.Tensor) -> torch.Tensor | None:
    """
    Make a cache ready for a forward, and return how many tokens each of its rows has seen, `(B,)`; `None` for an empty
    cache, or none. One without layers gets this model's; empty layers of another copy of this code are replaced.

    Raises:
        `ValueError`: for a bidirectional model, and for a cache of another model, of another batch or with offloading.
    """
    if cache is None:
        return None
    if not config.is_causal:
        raise ValueError(
            f"`{CACHE_NAME}` is for causal models: with `is_causal=False` every token sees the future, so nothing "
            "can be kept. Leave it out."
        )
    add_layers(cache, config)
    check_layers_of_cache(cache, config, inputs_embeds.dtype)
    take_over_empty_layers(cache.layers)
    used = used_layer(cache)
    if used is None:
        return None
    check_used_layer(used, config, inputs_embeds.shape[0])
    return used.state.tokens_seen


def check_layers_of_cache(cache, config: LatentAttentionConfig, dtype: torch.dtype) -> None:
    """Check that the cache has this model's kind of layers, as many as the model, and does not ask for offloading."""
    layers = getattr(cache, "layers", [])
    # By name: a copy of this code that was loaded from the Hub has classes of its own.
    names = {getattr(layer, "_layer_type", None) or type(layer).__name__ for layer in layers}
    own = {config.model_type, "StaticLatentAttentionCacheLayer"}
    if not names or not names <= own or len(layers) != config.num_hidden_layers:
        raise ValueError(
            f"`{CACHE_NAME}` is a {type(cache).__name__} of {len(layers)} layers of "
            f"{sorted(names)}, not made for this model. Pass `DynamicCache(config=model.config)`, or leave it out. "
            "(Prefix tuning passes one of keys and values, which this model does not read: take prompt tuning.)"
        )
    if cache.offloading:
        raise ValueError(
            f"`{CACHE_NAME}` asks for offloading, but the state is of constant size, "
            f"{config.state_bytes(1, dtype)} bytes per row, and stays on the device: use a cache "
            "without offloading."
        )


def check_used_layer(layer: LatentAttentionCacheLayer, config: LatentAttentionConfig, batch: int) -> None:
    """Check that what a layer of the cache has seen is of `batch` rows, and was read by a model of the same shapes."""
    if layer.state.tokens_seen.shape[0] != batch:
        raise ValueError(
            f"`{CACHE_NAME}` is of batch size {layer.state.tokens_seen.shape[0]} but the input of {batch}. Call "
            "`batch_repeat_interleave` or `batch_select_indices` on the cache, or pass an empty one."
        )
    made_for, needed = layer.made_for, state_fields(config)
    if made_for != needed:
        theirs = {name: value for name, value in made_for.items() if value != needed[name]}
        ours = {name: needed[name] for name in theirs}
        raise ValueError(
            f"`{CACHE_NAME}` is of a model with {theirs}, but this one has {ours}. Pass "
            "`DynamicCache(config=model.config)`, or leave it out."
        )
