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
"""The cache layers that hold the state of one layer each."""

from typing import NamedTuple

import torch
from transformers.cache_utils import STATIC_LAYER_TYPE_MAPPING, CacheLayerMixin, DynamicCache
from transformers.utils import logging
from transformers.utils.import_utils import is_torch_greater_or_equal

from .chunk_layout import GridLayout, StepLayout
from .configuration_latent import LatentAttentionConfig
from .layer_state import KeysValues, LayerGrid, LayerState, MemoryGrid, MemoryState, map_tensors


logger = logging.get_logger(__name__)

# Tokens before a `crop` that the next one can undo: assistants with a tokenizer of their own go back further than they
# went forward, by the few tokens that their tokenizer cuts otherwise.
CROP_AGAIN = 64


class PastForward(NamedTuple):
    """What `crop` needs to undo a forward, in whole or in part."""

    tokens: int  # how many of its tokens have not been undone
    before: LayerState | None  # the state before it
    grid: LayerGrid | None  # of all its tokens; None for a step, which has only one


def state_fields(config: LatentAttentionConfig) -> dict:
    """What of a configuration decides the shapes of a state."""
    names = ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "num_latents", "chunk_size")
    names = (*names, "conv_kernel_size", "mlp_conv_kernel_size", "num_sink_tokens", "layer_kinds")
    return {name: getattr(config, name) for name in names}


def first_tensor(state: LayerState) -> torch.Tensor:
    """
    Keys of the window or of the memory: one of them is in every layer. The cache takes its dtype and its device from
    them, so they are of the dtype that the model computes in.
    """
    return state.window.keys if state.window is not None else state.memory.chunk.keys


class LatentAttentionCacheLayer(CacheLayerMixin):
    """
    One layer of a `DynamicCache`: a state of constant size.

    While recording (`activate_past_recording`), every forward leaves the state before it and, if it had several
    tokens, its grid; `crop` goes back to any token since then.
    """

    _layer_type = "latent_attention"
    is_sliding = False
    is_croppable = True
    supports_early_init = False

    def __init__(self, **kwargs):
        super().__init__()
        self.state: LayerState | None = None
        self.made_for: dict | None = None  # `state_fields` of the model whose state it holds
        self.length = torch.tensor(0, device="cpu")  # not a number, which an exported graph would hold for constant
        self.rearranged = 0  # how often rows were exchanged, expanded or selected
        self.history: list[PastForward] = []
        self.record_past = False

    @property
    def record_past(self) -> bool:
        """Whether forwards are remembered. The library stops that by setting it, and what was recorded then goes."""
        return self._record_past

    @record_past.setter
    def record_past(self, record: bool) -> None:
        self._record_past = record
        if not record:
            self.history = []

    def lazy_initialization(self, state: LayerState) -> None:
        self.is_initialized = True
        self.batch_size = state.tokens_seen.shape[0]
        self.dtype, self.device = first_tensor(state).dtype, first_tensor(state).device

    def update(
        self,
        window: KeysValues | None,
        memory: MemoryGrid | MemoryState | None,
        mlp_conv_inputs: torch.Tensor | None,
        layout: GridLayout | StepLayout,
        config: LatentAttentionConfig,
    ) -> None:
        """Take over what the parts of a layer leave after a forward: their grids, or after a step their states."""
        if isinstance(layout, StepLayout):
            grid, tokens = None, 1
            tokens_seen = layout.tokens_after.clone()  # the layout's tensor is shared by all layers
            state = LayerState(window, memory, mlp_conv_inputs, tokens_seen)
        else:
            grid, tokens = LayerGrid(window, memory, mlp_conv_inputs, layout), layout.progress.seen.shape[1]
            state = grid.state_after(tokens - 1)
        if not self.is_initialized:
            self.lazy_initialization(state)
            self.made_for = state_fields(config)
        if self.record_past:
            self.history.append(PastForward(tokens, self.state, grid))
        self.store(state, tokens)

    def store(self, state: LayerState, tokens: int) -> None:
        self.state = state
        self.length = self.length + tokens

    def activate_past_recording(self) -> None:
        """From now on remember what `crop` needs. Memory grows until it is called, or `record_past` set to False."""
        self.record_past = True

    def crop(self, tokens_to_remove: int) -> None:
        """
        Forget the last `-tokens_to_remove` tokens exactly, as if they had never been seen.

        Raises:
            `ValueError`: for anything but a negative integer or 0; `RuntimeError`: for more tokens than were recorded.
        """
        is_integer = hasattr(tokens_to_remove, "__index__")  # of numpy and torch, too
        if not is_integer or tokens_to_remove > 0:
            raise ValueError(
                f"`crop` takes a number of tokens to remove, as a negative integer, not {tokens_to_remove!r}."
            )
        left = -tokens_to_remove
        if left > sum(past.tokens for past in self.history):
            raise RuntimeError(
                f"`crop({tokens_to_remove})` goes back further than what was recorded. Call "
                "`activate_past_recording()` on the cache before the forward passes that may have to be undone. After "
                f"a `crop` {CROP_AGAIN} tokens before it can still be undone, after rows were exchanged, expanded or "
                "selected none of what came before."
            )
        while left > 0:
            past = self.history.pop()
            kept = max(past.tokens - left, 0)
            undone = past.tokens - kept
            self.state, self.length, left = past.before, self.length - undone, left - undone
            if kept:
                self.state = past.grid.state_after(kept - 1)
                self.history.append(past._replace(tokens=kept))
        while sum(past.tokens for past in self.history[1:]) >= CROP_AGAIN:
            self.history.pop(0)
        self.is_initialized = self.state is not None

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        return int(self.length)

    def get_max_length(self) -> int:
        return -1

    def reset(self) -> None:
        """Forget everything. Zeroed statistics would be a token's, not none's, so the state itself goes."""
        self.state, self.history, self.is_initialized = None, [], False
        self.length = torch.tensor(0, device="cpu")

    def _apply(self, change) -> None:
        if self.state is not None:
            self.state = map_tensors(change, self.state)
            self.history = []
            self.rearranged += 1
            self.batch_size = self.state.tokens_seen.shape[0]

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        self._apply(lambda tensor: tensor.index_select(0, beam_idx.to(tensor.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._apply(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self._apply(lambda tensor: tensor[indices.to(tensor.device)])


class StaticLatentAttentionCacheLayer(LatentAttentionCacheLayer):
    """One layer of a `StaticCache`: the same state at fixed addresses, which compiled graphs write in place."""

    # Registration by `_layer_type` would take it for a dynamic layer, as it is no `StaticLayer` of keys and values.
    _layer_type = None
    is_compileable = True
    is_croppable = False

    def __init__(self, max_cache_len: int, **kwargs):
        super().__init__()
        if not is_torch_greater_or_equal("2.13"):
            logger.warning_once(
                f"This is PyTorch {torch.__version__}. The code that 2.11 generates for a compiled step on a CPU "
                "writes a static cache before it has read it, and gives wrong tokens: pass `disable_compile=True` to "
                "`generate()`, or take PyTorch 2.13."
            )
        self.max_cache_len = max_cache_len  # asked for by the cache's users; nothing here grows towards it

    def store(self, state: LayerState, tokens: int) -> None:
        if self.state is None:
            self.state = map_tensors(torch.clone, state)
            self.length = self.length.to(self.device)
            if not torch.compiler.is_compiling():
                map_tensors(torch._dynamo.mark_static_address, self.state)
                torch._dynamo.mark_static_address(self.length)
        else:
            map_tensors(torch.Tensor.copy_, self.state, state)
        self.length.add_(tokens)

    def get_seq_length(self) -> torch.Tensor:
        return self.length  # on the device, where reading it would wait

    def activate_past_recording(self) -> None:
        raise ValueError("A static cache is written in place and can't go back: use a `DynamicCache` to `crop`.")

    def crop(self, tokens_to_remove: int) -> None:
        self.activate_past_recording()


def add_layers(cache, config: LatentAttentionConfig) -> None:
    """
    Give a `DynamicCache()` its layers, all at once: made without a configuration, it has none, and would get the
    library's own as they are used.
    """
    if isinstance(cache, DynamicCache) and not cache.layers:
        cache.layers.extend(LatentAttentionCacheLayer() for _ in range(config.num_hidden_layers))


def used_layer(cache) -> LatentAttentionCacheLayer | None:
    """
    The first layer with a state, if there is any. In a later stage of a pipeline the layers of earlier ones are empty,
    and a cache of keys and values has none.
    """
    layers = getattr(cache, "layers", [])
    return next((layer for layer in layers if getattr(layer, "state", None) is not None), None)


def take_over_empty_layers(layers: list) -> None:
    """
    The library keeps one class of layers for each type, that of the copy of this code that was loaded last, as with a
    second checkpoint. A model fills layers of its own copy only.
    """
    for index, layer in enumerate(layers):
        if layer.state is None and not isinstance(layer, LatentAttentionCacheLayer):
            is_static = type(layer).__name__ == StaticLatentAttentionCacheLayer.__name__
            own = StaticLatentAttentionCacheLayer(layer.max_cache_len) if is_static else LatentAttentionCacheLayer()
            own.record_past = layer.record_past
            layers[index] = own


STATIC_LAYER_TYPE_MAPPING[LatentAttentionCacheLayer._layer_type] = StaticLatentAttentionCacheLayer
