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
"""Checks of what a forward or `generate()` is given: the mask, packed sequences, and the cache."""

from typing import NamedTuple

import torch
from torch import nn
from transformers.utils import TransformersKwargs, logging
from transformers.utils.import_utils import is_tracing

from .cache_latent import add_layers, state_fields, take_over_empty_layers
from .cache_name import CACHE_NAME
from .chunk_layout import GridLayout, StepLayout, running_max
from .configuration_latent import LatentAttentionConfig, with_nearest


logger = logging.get_logger(__name__)

# What the library and its trainer may send to any model, whether or not that reads it.
SENT_TO_ALL = {"return_dict", "shift_labels", "skip_logits", "debug_io", "debug_io_dir", "prune_layers"}
SENT_TO_ALL |= TransformersKwargs.__annotations__.keys()
ARGUMENTS = SENT_TO_ALL | {
    *("input_ids", "attention_mask", "inputs_embeds", "cache", "past_key_values", "use_cache"),
    *("labels", "logits_to_keep", "start_positions", "end_positions"),
}


def used_layer(layers: list):
    """The first layer with a state, or the first: in a later stage of a pipeline those of earlier ones are empty."""
    return next((layer for layer in layers if getattr(layer, "state", None) is not None), layers[0])


class TokensSeen(NamedTuple):
    """How many tokens each row of a cache has seen, on the host, as long as nobody else changes the cache."""

    length: int
    counts: list[int]
    rearranged: int  # how often rows had been exchanged, as beam search does

    @classmethod
    def of(cls, cache) -> "TokensSeen":
        layer = used_layer(cache.layers)
        return cls(int(layer.get_seq_length()), layer.state.tokens_seen.tolist(), layer.rearranged)

    def after(self, new_tokens: int) -> "TokensSeen":
        return self._replace(length=self.length + new_tokens, counts=[count + new_tokens for count in self.counts])

    def fits(self, cache, tokens: torch.Tensor) -> bool:
        """Whether it still is of this cache: not expanded, nor cropped, which a static one can't be, nor exchanged."""
        layer = used_layer(cache.layers)
        length = layer.get_seq_length()
        same_rows = layer.rearranged == self.rearranged or len(set(self.counts)) == 1
        same_length = isinstance(length, torch.Tensor) or length == self.length
        return len(self.counts) == tokens.shape[0] and same_rows and same_length


def check_tokens(hidden_states: torch.Tensor, hidden_size: int) -> None:
    """That `hidden_states` are `(B, T, D)`, and that there are any."""
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


def check_no_cache_beside(checkpointing: bool, cache) -> None:
    """Reject a cache while training with gradient checkpointing: checkpointed layers keep none."""
    if checkpointing and cache is not None:
        raise ValueError(
            f"`{CACHE_NAME}` is given, but the model is training with gradient checkpointing, whose layers keep no "
            "cache. Call `model.eval()` or `gradient_checkpointing_disable()`, or pass `use_cache=False`."
        )


def check_context_parallel(cache, output_attentions: bool | None) -> None:
    """Refuse what ranks that share sequences can't give: maps over all chunks, and a cache that goes back alone."""
    if output_attentions:
        raise ValueError(
            "`output_attentions` is True, but several ranks share each sequence, and the maps are of all of its "
            "tokens. Leave it out, or run the model in one process."
        )
    if any(getattr(layer, "record_past", False) for layer in getattr(cache, "layers", [])):
        raise ValueError(
            f"`{CACHE_NAME}` records what `crop` needs, but several ranks share each sequence: a rank that goes back "
            "into a prefill would wait for the others. Call `activate_past_recording()` after the prefill."
        )


def check_logits_to_keep(logits_to_keep, token_indices: torch.Tensor | None) -> None:
    """Refuse to count from the end of a row of which each rank has a part."""
    if token_indices is not None and (isinstance(logits_to_keep, torch.Tensor) or logits_to_keep != 0):
        raise ValueError(
            f"`logits_to_keep` is {logits_to_keep}, but several ranks share each sequence, and each returns the "
            "logits of its own tokens: leave it out, and pick by the `token_indices` of the output."
        )


def check_no_shared_prefill(rank_group, cache) -> None:
    """Refuse a `generate()` that would begin with a prefill over several ranks, of which one has the last token."""
    layers = getattr(cache, "layers", [])
    if rank_group is not None and (not layers or getattr(used_layer(layers), "state", None) is None):
        raise ValueError(
            "`generate()` was called without a cache, but several ranks share each sequence, and one of them alone "
            f"has its last token. Prefill first, `{CACHE_NAME} = model(input_ids[:, :-1], use_cache=True)."
            f"{CACHE_NAME}` on all ranks; then any of them continues by `model.generate(input_ids, "
            f"{CACHE_NAME}={CACHE_NAME})`."
        )


def warn_of_other_arguments(arguments: dict) -> None:
    """Name those that no part of the model reads, which the library passes on in silence: one may be misspelt."""
    if torch.compiler.is_compiling():
        return
    for name, value in arguments.items():
        if value is not None and name not in SENT_TO_ALL and not name.startswith("output_"):
            logger.warning_once(f"This model has no argument {with_nearest(name, ARGUMENTS)}: it has no effect.")


def check_past_of_mask(attention_mask, tokens: torch.Tensor, cache) -> None:
    """
    A cache can't take out again what it has read, so the mask of a batch must not hide it now. Waits for the device.

    Not of a single row, which has not ended before another: where no mask is given, the library guesses one from
    padding tokens, and the row may have meant them. Nor of another model's cache, which the forward refuses.
    """
    layers = getattr(cache, "layers", [])
    state = getattr(used_layer(layers), "state", None) if layers else None
    batch, new = tokens.shape[:2]
    if state is None or attention_mask is None or batch == 1 or attention_mask.shape[1] == new:
        return
    if state.tokens_seen.shape[0] != batch:
        return  # the forward's to refuse, too
    if (attention_mask[:, :-new].sum(1) < state.tokens_seen).any():
        raise ValueError(
            f"`attention_mask` hides tokens that `{CACHE_NAME}` has read, as it does of padding behind a row that "
            "ended early: they can't be taken out again. Leave the cache out, or continue such a row alone."
        )


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


def check_document_numbers(mask: torch.Tensor) -> None:
    """Check that a mask of other values than 0 and 1 numbers documents, for which this waits for the device."""
    falls = (mask != 0) & (mask < real_before(mask, mask != 0, none=0))
    if mask.is_floating_point() or ((mask < 0) | falls).any():
        raise ValueError(
            "`attention_mask` has values other than 0 and 1, as an additive mask has, but must be 0 for padding and 1 "
            "for tokens; or integers that number packed documents and rise along each row, such as 1 1 2 2 0. (Behind "
            "such documents `generate()` needs its cache.)"
        )


def check_attention_mask(attention_mask, inputs_embeds, continued: bool) -> torch.Tensor | None:
    """Read the mask of rows of one sequence each: which tokens are real, `(B, T)`, or `None` where all are."""
    valid, documents = read_mask(attention_mask, inputs_embeds, continued)
    if documents is not None:
        raise ValueError(
            "`attention_mask` numbers packed documents, but must be 0 for padding and 1 for tokens: a layer alone "
            "takes one sequence per row."
        )
    return valid


def reaches_second_chunk(layout: GridLayout | StepLayout) -> bool:
    """Whether a token stands behind a complete chunk. Waits for the device where rows are not simply filled."""
    if isinstance(layout, GridLayout) and layout.indices is None:
        return layout.grid_shape[1] > 1
    return bool((layout.chunk_index > 0).any())


def refuse_activated_lora(model: nn.Module) -> None:
    """Its adapters act on the last so many tokens, by PEFT's count, and layers here see slots."""
    for name, adapter in getattr(model, "peft_config", {}).items():
        if getattr(adapter, "alora_invocation_tokens", None):
            raise ValueError(
                f"The adapter `{name}` has `alora_invocation_tokens` {adapter.alora_invocation_tokens}, but must have "
                "none: activated LoRA counts tokens from the end of a row, and this model's layers see chunks. Train "
                "a plain LoRA instead."
            )


def predictable(labels: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """`labels` `(B, T)` without that of each row's first token, which has nothing to be predicted from."""
    if attention_mask is None:
        return labels
    seen = attention_mask[:, -labels.shape[1] :].bool().cumsum(1)  # (B, T)
    return labels.masked_fill(seen <= 1, -100)


def labels_to_divide_by(num_items_in_batch, labels: torch.Tensor, kept: torch.Tensor):
    """
    By what to divide the summed loss. `Trainer` counts all `labels` `(B, T)` but those at a row's first place, which
    with left padding are more than are `kept`. A count of this batch alone is put right. One of several micro-batches
    stays as it is, for all tokens to weigh the same: how many labels the others keep is not known here.
    """
    counted, predicted = ((each[:, 1:] != -100).sum() for each in (labels, kept))
    items = torch.as_tensor(num_items_in_batch, device=labels.device)
    return torch.where(items == counted, predicted.clamp(min=1), items)


def check_labels(labels, batch_shape: tuple[int, int]) -> None:
    """Check that there is the number of a class for each token."""
    if tensor_shape(labels) != tuple(batch_shape) or labels.dtype not in (torch.long, torch.uint8):
        raise ValueError(
            f"`labels` is {described(labels)} but must be torch.long of shape {tuple(batch_shape)}: for each token "
            "that has logits the number of a class, or -100 for none. Other types become so by `labels.long()`."
        )


def check_labels_of_rows(labels, rows: int, config: LatentAttentionConfig) -> None:
    """Check that labels are of the type and size that the library's loss of sequence classification takes."""
    kind, dtype = config.problem_type, labels.dtype if isinstance(labels, torch.Tensor) else None
    is_float = dtype is not None and dtype.is_floating_point
    size, fits = rows * config.num_labels, is_float or kind == "regression" or config.num_labels == 1
    if kind == "single_label_classification" or (kind is None and config.num_labels > 1 and not is_float):
        size, fits = rows, dtype == torch.long
    if dtype is None or not fits or labels.numel() != size:
        raise ValueError(
            f"`labels` is {described(labels)}, but for `num_labels` {config.num_labels} and `problem_type` {kind!r} "
            f"must be torch.long of shape {(rows,)}, the number of a class for each row; or for several labels at "
            f"once, or a regression, floats of shape {(rows, config.num_labels)}."
        )


def real_before(values: torch.Tensor, valid: torch.Tensor | None, none: int) -> torch.Tensor:
    """Of the last real token in front of each `(B, T)`; `none` where there is none."""
    if valid is None:
        return nn.functional.pad(values[:, :-1], (1, 0), value=none)
    order = torch.arange(valid.shape[1], device=valid.device).expand_as(valid)
    last = nn.functional.pad(running_max(torch.where(valid, order, -1))[:, :-1], (1, 0), value=-1)
    return values.expand_as(valid).gather(1, last.clamp(min=0)).masked_fill(last < 0, none)


def refuse(wrong: torch.Tensor, message: str) -> None:
    """`ValueError` if a condition on the device holds, for which it waits. A compiled graph fails without waiting."""
    if is_tracing(wrong):
        torch._assert_async(~wrong, message)
    elif wrong:
        raise ValueError(message)


def next_labels(labels: torch.Tensor, shift_labels: torch.Tensor | None, attention_mask) -> torch.Tensor:
    """
    For each real token the label of the next one, `(B, T)`, -100 for padding, which several ranks that share the rows
    leave out. `shift_labels` are that already. Waits for the device where there is a mask.
    """
    valid = None if attention_mask is None else attention_mask[:, -labels.shape[1] :].bool()
    given = labels if shift_labels is None else shift_labels
    if valid is not None:
        refuse(
            ((given != -100) & ~valid).any(),
            f"`{'labels' if shift_labels is None else 'shift_labels'}` has classes where `attention_mask` is 0, but "
            "must be -100 there: padding is on none of the ranks that share the rows.",
        )
    if shift_labels is not None:
        return shift_labels
    after = None if valid is None else valid.flip(1)
    shifted = real_before(predictable(labels, attention_mask).flip(1), after, none=-100).flip(1)
    return shifted if valid is None else shifted.masked_fill(~valid, -100)


def restarts(position_ids: torch.Tensor, valid: torch.Tensor | None, first: bool) -> torch.Tensor:
    """
    Real tokens `(B, T)` from which positions count anew: those at 0, and as some models count from 1 or 2, those that
    are not above the real token before. `first`: whether a row's first one does without being at 0.
    """
    none = torch.iinfo(torch.int32).max if first else -1  # larger ones, `pad` can't write
    starts = (position_ids == 0) | (position_ids <= real_before(position_ids, valid, none))
    return starts if valid is None else starts & valid


def check_places(rows: int, **positions) -> None:
    """Check that the places of an answer's start and end are integers, one for each row."""
    for name, places in positions.items():
        if tensor_shape(places) not in ((rows,), (rows, 1)) or places.dtype != torch.long:
            raise ValueError(
                f"`{name}` is {described(places)} but must be torch.long of shape {(rows,)}: for each row the place "
                "of a token."
            )


def check_answers(positions: tuple[torch.Tensor, ...], padding: torch.Tensor) -> None:
    """
    That no `positions`, `(B,)` each, are in the `padding` `(B, T)`, where the loss would be infinite. Those beyond the
    row don't count, and negative ones are read as 0, as the library's loss does. Waits for the device.
    """
    length = padding.shape[1]
    beyond = nn.functional.pad(padding, (0, 1))  # (B, T + 1)
    places = torch.stack([position.flatten().clamp(0, length) for position in positions], dim=1)  # (B, 2)
    refuse(
        beyond.gather(1, places).any(),
        "`start_positions` and `end_positions` must be those of real tokens, but some are in the padding, which never "
        "holds an answer. For a question without one take the row's first real token: 0, if you pad on the right.",
    )


def check_packing(position_ids, cu_seq_lens_q, seq_idx, batch_shape: tuple[int, int]) -> None:
    """The shapes of what tells packed sequences apart."""
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


def tensor_shape(value) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, torch.Tensor) else None


def shape_of(value) -> str:
    return f"of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else f"of type {type(value).__name__}"


def described(value) -> str:
    return f"{value.dtype} {shape_of(value)}" if isinstance(value, torch.Tensor) else shape_of(value)


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


def check_no_restart(position_ids, valid, tokens_seen: torch.Tensor) -> None:
    """Positions beside a cache could only mean that a new sequence starts there. Waits for the device."""
    if position_ids is None or position_ids.shape[1] == 1:
        return
    refuse(
        (restarts(position_ids, valid, first=False) & (tokens_seen > 0)[:, None]).any(),
        f"`position_ids` start anew, but `{CACHE_NAME}` holds tokens of an earlier forward, which the new ones "
        "continue. Pass packed sequences in one forward, without `prefill_chunk_size`; or an empty cache. (To "
        "`generate()` give a prompt that begins with what the cache has read, and has at least one token more; with "
        "an assistant or prompt lookup only the tokens that the cache has not read, and a mask that covers all.)",
    )


def packed_starts(position_ids, cu_seq_lens_q, seq_idx, valid, tokens_seen, inputs_embeds) -> torch.Tensor | None:
    """Tokens that start a sequence, `(B, T)`; `None` where every row is a single one, or continues from a cache."""
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


def check_cache(cache, config: LatentAttentionConfig, inputs_embeds) -> torch.Tensor | None:
    """Tokens that the cache has seen, `(B,)`; `None` for an empty cache, or none."""
    if cache is None:
        return None
    if not config.is_causal:
        raise ValueError(
            f"`{CACHE_NAME}` is for causal models: with `is_causal=False` every token sees the future, so nothing "
            "can be kept. Leave it out."
        )
    add_layers(cache, config)
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
            f"{config.state_bytes(1, inputs_embeds.dtype)} bytes per row, and stays on the device: use a cache "
            "without offloading."
        )
    take_over_empty_layers(layers)
    used = used_layer(layers)
    state = used.state
    if state is None:
        return None
    batch = inputs_embeds.shape[0]
    if state.tokens_seen.shape[0] != batch:
        raise ValueError(
            f"`{CACHE_NAME}` is of batch size {state.tokens_seen.shape[0]} but the input of {batch}. Call "
            "`batch_repeat_interleave` or `batch_select_indices` on the cache, or pass an empty one."
        )
    made_for, needed = used.made_for, state_fields(config)
    if made_for != needed:
        theirs = {name: value for name, value in made_for.items() if value != needed[name]}
        ours = {name: needed[name] for name in theirs}
        raise ValueError(
            f"`{CACHE_NAME}` is of a model with {theirs}, but this one has {ours}. Pass "
            "`DynamicCache(config=model.config)`, or leave it out."
        )
    return state.tokens_seen
