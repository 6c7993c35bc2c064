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
"""`generate()`: the library's, with hooks for a cache of constant size, and steps that do not wait for the device."""

from typing import NamedTuple

import torch
from transformers.generation import GenerationMixin

from .cache_latent import add_layers, used_layer
from .cache_name import CACHE_NAME, cache_of, one_cache


class TokenCounts(NamedTuple):
    """How many tokens a cache has seen, counted on the host: right as long as nobody else changes the cache."""

    length: int  # of the cache, with padding
    per_row: list[int]  # real tokens
    rearranged: int  # how often rows had been exchanged, as beam search does

    @classmethod
    def of(cls, cache) -> "TokenCounts":
        """Ask the cache, which waits for the device."""
        layer = used_layer(cache)
        return cls(int(layer.get_seq_length()), layer.state.tokens_seen.tolist(), layer.rearranged)

    def after(self, new_tokens: int) -> "TokenCounts":
        """Count on by as many real tokens in each row."""
        return self._replace(length=self.length + new_tokens, per_row=[count + new_tokens for count in self.per_row])

    def fits(self, cache, tokens: torch.Tensor) -> bool:
        """Whether it still is of this cache: not expanded, nor cropped, which a static one can't be, nor exchanged."""
        layer = used_layer(cache)
        if layer is None:
            return False
        length = layer.get_seq_length()
        same_rows = layer.rearranged == self.rearranged or len(set(self.per_row)) == 1
        same_length = isinstance(length, torch.Tensor) or length == self.length
        return len(self.per_row) == tokens.shape[0] and same_rows and same_length

    def rows_that_enter_a_chunk(self, chunk_size: int) -> list[int]:
        """The rows whose next token is the first of a chunk, other than the first chunk."""
        return [row for row, seen in enumerate(self.per_row) if seen > 0 and seen % chunk_size == 0]


def check_no_shared_prefill(rank_group, cache) -> None:
    """Refuse a `generate()` that would begin with a prefill over several ranks, of which one has the last token."""
    if rank_group is not None and used_layer(cache) is None:
        raise ValueError(
            "`generate()` was called without a cache, but several ranks share each sequence, and one of them alone "
            f"has its last token. Prefill first, `{CACHE_NAME} = model(input_ids[:, :-1], use_cache=True)."
            f"{CACHE_NAME}` on all ranks; then any of them continues by `model.generate(input_ids, "
            f"{CACHE_NAME}={CACHE_NAME})`."
        )


def check_past_of_mask(attention_mask, tokens: torch.Tensor, cache) -> None:
    """
    Check that the mask of a batch does not hide what the cache has read, which can't be taken out again. Waits for the
    device.

    A single row is not looked at, as no other goes on when it has ended: where no mask is given, the library guesses
    one from padding tokens, and the row may have meant them. A cache of another model or of another batch size is left
    for the forward to refuse.
    """
    used = used_layer(cache)
    batch, new = tokens.shape[:2]
    if used is None or attention_mask is None or batch == 1 or attention_mask.shape[1] == new:
        return
    seen = used.state.tokens_seen  # (B,)
    if seen.shape[0] == batch and (attention_mask[:, :-new].sum(1) < seen).any():
        raise ValueError(
            f"`attention_mask` hides tokens that `{CACHE_NAME}` has read, as it does of padding behind a row that "
            "ended early: they can't be taken out again. Leave the cache out, or continue such a row alone."
        )


class LatentAttentionGenerationMixin(GenerationMixin):
    """What `generate()` asks of a model besides its forward."""

    @staticmethod
    def create_masks_for_generate(config, inputs_embeds, attention_mask=None, **kwargs):
        """`generate()` would turn the mask of a compileable cache into a 4-D one; the layout needs it as it is."""
        return attention_mask

    def prepare_inputs_for_generation(
        self,
        input_ids,
        cache=None,
        inputs_embeds=None,
        is_first_iteration=False,
        token_counts=None,
        past_key_values=None,
        **kwargs,
    ):
        """
        The library's, and one thing more: in a step of decoding every token is real, and which rows enter a new
        chunk follows from how many tokens they had after the prefill. So the step neither reads the mask nor asks
        the device.
        """
        if not self.config.is_causal:
            raise ValueError(
                "`generate()` needs a causal model, but this one has `is_causal=False`: every token sees the future. "
                "Train with `is_causal=True` to generate."
            )
        cache = one_cache(cache, past_key_values)
        check_no_shared_prefill(self.model.rank_group, cache)
        inputs = super().prepare_inputs_for_generation(
            input_ids,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            **{CACHE_NAME: cache},
            **kwargs,
        )
        tokens = inputs["input_ids"] if inputs.get("input_ids") is not None else inputs["inputs_embeds"]
        if is_first_iteration:
            check_past_of_mask(inputs.get("attention_mask"), tokens, cache)
        if token_counts is not None and tokens.shape[1] == 1 and token_counts.fits(cache, tokens):
            inputs["attention_mask"] = None
            rows = token_counts.rows_that_enter_a_chunk(self.config.chunk_size)
            inputs["new_chunk_rows"] = torch.tensor(rows, dtype=torch.long).to(tokens.device, non_blocking=True)
        return inputs

    def _assisted_decoding(self, *args, **kwargs):
        """The library's, which has the cache record every forward, and would leave it doing so."""
        add_layers(kwargs.get(CACHE_NAME), self.config)  # now, as the library asks them to record
        layers = getattr(kwargs.get(CACHE_NAME), "layers", [])
        recording = [getattr(layer, "record_past", False) for layer in layers]
        try:
            return super()._assisted_decoding(*args, **kwargs)
        finally:
            for layer, was_recording in zip(layers, recording, strict=True):
                layer.record_past = was_recording

    def _update_model_kwargs_for_generation(self, outputs, model_kwargs, num_new_tokens: int = 1, **kwargs):
        model_kwargs = super()._update_model_kwargs_for_generation(
            outputs, model_kwargs, num_new_tokens=num_new_tokens, **kwargs
        )
        counts = model_kwargs.get("token_counts")
        if counts is not None:
            model_kwargs["token_counts"] = counts.after(num_new_tokens)
        elif cache_of(outputs) is not None:
            # Once after the prefill: the only time that the host has to ask.
            model_kwargs["token_counts"] = TokenCounts.of(cache_of(outputs))
        return model_kwargs

    def _prefill(self, input_ids, generation_config, model_kwargs, *args, **kwargs):
        mask = model_kwargs.get("attention_mask")
        if generation_config.prefill_chunk_size is not None and mask is not None and not mask[:, -1].all():
            raise ValueError(
                f"`prefill_chunk_size` is {generation_config.prefill_chunk_size}, but `attention_mask` has padding at "
                "the end: the last piece of such a row may have no token from which the next one follows. Pad on the "
                "left, or leave `prefill_chunk_size` out."
            )
        return super()._prefill(input_ids, generation_config, model_kwargs, *args, **kwargs)

    def init_continuous_batching(self, *args, **kwargs):
        raise ValueError(
            "Continuous batching pages the keys and values of every token, and this model keeps a state of constant "
            "size instead: call `generate()` with a padded batch."
        )
