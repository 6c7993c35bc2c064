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
Latent attention language models.

A layer is `x -> + local_attention(norm(x)) -> + latent_attention -> + mlp(norm(x))`, of which `layer_pattern` leaves
out one or the other attention in some layers. Notable:

- A few learnable latent vectors in a layer are its memory, of a size that does not depend on the context's length.
- Compression reads whole chunks only, so nothing leaks from the future; local attention covers the rest exactly.
- No absolute positions: rotary embeddings turn by the slot in a window of two chunks. There is no maximum length.
- Short convolutions put a token together with the few before it, for the memory and for the MLP (`token_conv.py`).
- Padding, packing and continuation are one idea, the chunk layout (`chunk_layout.py`).
- The prefix over chunks is exact, linear in time and memory (`prefix_statistics.py`).
- The state is of constant size (`layer_state.py`) and can be rolled back exactly (`cache_latent.py`).

Shapes: B batch, T tokens, D hidden_size, H heads, Hkv key/value heads, d head_dim, M latents, C chunk_size,
S sink tokens, K tokens of a convolution, and in the chunk layout R rows and N chunks.
"""

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_layers import (
    GenericForQuestionAnswering,
    GenericForSequenceClassification,
    GenericForTokenClassification,
    GradientCheckpointingLayer,
)
from transformers.modeling_outputs import (
    QuestionAnsweringModelOutput,
    SequenceClassifierOutputWithPast,
    TokenClassifierOutput,
)
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple, logging
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.import_utils import is_tracing
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .attention import MultiHeadAttention, branch_size, make_linear, make_norm
from .attention_maps import (
    LatentAttentionCausalLMOutput,
    LatentAttentionMaskedLMOutput,
    LatentAttentionModelOutput,
    maps_in_token_order,
    recorded,
    what_to_record,
)
from .cache_name import CACHE_NAME, cache_of, one_cache, refuse_other_names
from .checkpoint_files import CheckpointFilesMixin
from .chunk_layout import GridLayout, StepLayout, bidirectional_layout, grid_layout, step_layout
from .configuration_latent import LAYER_KINDS, LatentAttentionConfig, check_config
from .context_parallel import RankGroup, check_context_parallel, check_logits_to_keep, own_tokens, shard_layout
from .generation import LatentAttentionGenerationMixin
from .labels import (
    check_answers,
    check_labels,
    check_labels_of_rows,
    check_places,
    labels_to_divide_by,
    next_labels,
    part_of_mean,
    predictable,
)
from .latent_attention import ChunkedLatentAttention, LatentAttention, init_weights
from .local_attention import LocalAttention, WindowRotation, local_attention_mask, window_rotation
from .model_inputs import (
    check_no_cache_beside,
    check_tokens,
    prepare_cache,
    read_mask,
    warn_of_other_arguments,
)
from .packing import packed_starts
from .pieces import goes_in_pieces, of_last_real_token, piece_length
from .token_conv import convolve, make_token_conv


logger = logging.get_logger(__name__)


# No class in this file that derives from nn.Module itself may have "Attention" in its name: transformers searches the
# file for such modules, finds no call of its attention interface beside them (that is in attention.py), and
# `set_attn_implementation` then only warns.
class GatedMLP(nn.Module):
    """The feed-forward layer, with a short convolution in front of it (`mlp_conv_kernel_size`)."""

    def __init__(self, config: LatentAttentionConfig):
        super().__init__()
        self.token_conv = make_token_conv(config.hidden_size, config.mlp_conv_kernel_size)
        self.gate_proj = make_linear(config.hidden_size, config.intermediate_size)
        self.up_proj = make_linear(config.hidden_size, config.intermediate_size)
        self.down_proj = make_linear(config.intermediate_size, config.hidden_size, size=branch_size(config))
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(
        self, hidden_states: torch.Tensor, layout: GridLayout | StepLayout, conv_inputs: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`(..., D) -> (..., D)`, and what the convolution took in, after the `conv_inputs` of a cache."""
        hidden_states, conv_inputs = convolve(self.token_conv, hidden_states, layout, conv_inputs)
        states = hidden_states.flatten(1, -2)  # (R, N C, D), see `apply_linear`
        gated = self.act_fn(self.gate_proj(states)) * self.up_proj(states)
        return self.down_proj(gated).view_as(hidden_states), conv_inputs


class LatentAttentionDecoderLayer(GradientCheckpointingLayer):
    """A layer: local attention, latent attention, MLP. Its kind says which of the two attentions it has."""

    def __init__(self, config: LatentAttentionConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.kind = config.layer_kinds[layer_idx]
        if "local_attention" in LAYER_KINDS[self.kind]:
            self.local_norm = make_norm(config)
            self.local_attention = LocalAttention(config)
        if "latent_attention" in LAYER_KINDS[self.kind]:
            self.latent_attention = ChunkedLatentAttention(config)
        self.mlp_norm = make_norm(config)
        self.mlp = GatedMLP(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        layout: GridLayout | StepLayout,
        position_embeddings: WindowRotation | None = None,
        attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """`(R, N, C, D)`, or in a step `(B, 1, D)`, to the same; the cache's layer, if there is one, moves on."""
        cache_layer = None if cache is None else cache.layers[self.layer_idx]
        no_state = cache_layer is None or cache_layer.state is None
        window, memory, conv_inputs, _ = (None,) * 4 if no_state else cache_layer.state
        # Each part returns what it adds; and what it computed for every chunk, or after a step its new state, which
        # takes the name of the old one.
        if "local_attention" in LAYER_KINDS[self.kind]:
            attended, _, window = self.local_attention(
                self.local_norm(hidden_states), layout, position_embeddings, attention_mask, window
            )
            hidden_states = hidden_states + attended
        if "latent_attention" in LAYER_KINDS[self.kind]:
            read, memory = self.latent_attention(hidden_states, layout, memory)
            hidden_states = hidden_states + read
        transformed, conv_inputs = self.mlp(self.mlp_norm(hidden_states), layout, conv_inputs)
        if cache_layer is not None:
            cache_layer.update(window, memory, conv_inputs, layout, self.config)
        return hidden_states + transformed


class LatentAttentionPreTrainedModel(CheckpointFilesMixin, PreTrainedModel):
    config: LatentAttentionConfig
    config_class = LatentAttentionConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["LatentAttentionDecoderLayer"]
    _skip_keys_device_placement = ["cache", "past_key_values"]
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {
        "hidden_states": LatentAttentionDecoderLayer,
        # Retrieval: what every token reads from the latents.
        "attentions": OutputRecorder(MultiHeadAttention, index=1, layer_name="latent_to_input"),
        # A causal layer gives its grid, from which the map is made; a bidirectional one the weights themselves.
        "compression_attentions": [
            OutputRecorder(ChunkedLatentAttention, index=1),
            OutputRecorder(MultiHeadAttention, index=1, layer_name="input_to_latent"),
        ],
        "refinement_attentions": OutputRecorder(MultiHeadAttention, index=1, layer_name="latent_self"),
        "local_attentions": OutputRecorder(LocalAttention, index=1),
    }

    def __init__(self, config: LatentAttentionConfig, *args, **kwargs):
        check_config(config)
        config.validate()  # again: fields given to `from_pretrained` are set after it was made
        # Heads make their base model through `AutoModel`. The library may have loaded this configuration's class from
        # another copy of the code than this one, and that class is not registered yet.
        AutoModel.register(type(config), LatentAttentionModel, exist_ok=True)
        super().__init__(config, *args, **kwargs)

    @classmethod
    def is_backend_compatible(cls) -> bool:
        """Refuse vLLM and its like, which keep keys and values in pages of their own: a state has no place there."""
        return False

    def _check_and_adjust_attn_implementation(self, attn_implementation: str | None, *args, **kwargs) -> str:
        """Refuse FlashAttention and say why: the library would say that this model does not support it *yet*."""
        if "flash" in (attn_implementation or ""):
            raise ValueError(
                f"`attn_implementation` is {attn_implementation!r}, but FlashAttention takes no mask, and local "
                'attention needs one. Leave it out, for "sdpa", or take "eager", or on a GPU "flex_attention".'
            )
        return super()._check_and_adjust_attn_implementation(attn_implementation, *args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        init_weights(self.config, module)


def reaches_second_chunk(layout: GridLayout | StepLayout) -> bool:
    """Whether a token stands behind a complete chunk. Waits for the device where rows are not simply filled."""
    if isinstance(layout, GridLayout) and layout.indices is None:
        return layout.grid_shape[1] > 1
    return bool((layout.chunk_index > 0).any())


class LatentAttentionModel(LatentAttentionPreTrainedModel):
    """The stack of blocks: `input_ids` `(B, T)` to hidden states `(B, T, D)`."""

    def __init__(self, config: LatentAttentionConfig):
        super().__init__(config)
        # Configurations on the Hub have a padding token of -1, or one that a smaller vocabulary has lost: the library
        # warns of it. As an index it would be the last token, or an error.
        has_padding = config.pad_token_id is not None and 0 <= config.pad_token_id < config.vocab_size
        padding_idx = config.pad_token_id if has_padding else None
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx)
        self.layers = nn.ModuleList(
            [LatentAttentionDecoderLayer(config, layer_idx) for layer_idx in range(config.num_hidden_layers)]
        )
        self.norm = make_norm(config)
        self.gradient_checkpointing = False
        self.looked_for_memory = False
        self.rank_group: RankGroup | None = None  # of context parallel
        self.post_init()

    def enable_context_parallel(self, mesh: DeviceMesh) -> None:
        """
        From now on share every sequence with the other ranks of `mesh`, in training and in prefill.

        Each rank has to be given the same whole rows, runs the layers on its own chunks of them, and returns what
        belongs to these: of the outputs `token_indices` `(B, n C)` says which tokens they are, -1 for a slot without
        one. The cache that a prefill returns is whole on every rank. A forward that continues from a cache runs on the
        rank that calls it alone.

        Gradients are to be averaged over the ranks, as `DistributedDataParallel` and FSDP2 do.

        Args:
            mesh: a `torch.distributed` device mesh of one dimension, or with one named `cp`, as accelerate's
                `ParallelismConfig(cp_size=...).get_device_mesh(device_type)` has it.

        Raises:
            `ValueError`: for another mesh, and for a bidirectional model.
        """
        if not self.config.is_causal:
            raise ValueError(
                "`is_causal` is False, but context parallel needs a causal model: latents of this one read all tokens "
                "of a sequence before any token reads them. Leave context parallel out."
            )
        group = RankGroup(mesh)
        self.rank_group = group if group.size > 1 else None

    @merge_with_config_defaults
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        cu_seq_lens_q: torch.LongTensor | None = None,
        seq_idx: torch.LongTensor | None = None,
        new_chunk_rows: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> LatentAttentionModelOutput:
        """
        Args:
            input_ids: `(B, T)`; or `inputs_embeds`, `(B, T, D)`.
            attention_mask: `(B, T)` or `(B, past + T)`, 0 for padding, wherever it is. Beside a cache, which knows
                the past, only the last T columns count. Integers beyond 1 number packed documents, as `seq_idx` does.
            position_ids: `(B, T)`; where they start anew, at 0 or by not rising, a new packed sequence starts.
                Positions have no other meaning here, and must not start anew beside a cache with tokens.
            cache: a `DynamicCache` or a `StaticCache(config=model.config, ...)`.
            use_cache: whether to return one; never in a bidirectional model.
            cu_seq_lens_q: `(sequences + 1,)`, where packed sequences start in the one row, and where the last ends.
            seq_idx: `(B, T)`, number of the packed sequence that a token belongs to; another way to say the same. Of
                several ways `cu_seq_lens_q` counts, then `seq_idx`, then a mask of numbers, then `position_ids`.
            new_chunk_rows: for a step of decoding, rows among which are all that enter a new chunk; `generate()`
                knows them without asking the device.
            past_key_values: the same as `cache`, by its name before transformers 5.24.

        Raises:
            `ValueError`: for other shapes, such as a mask that is not 2-D, a cache that does not belong to this model
                and batch, two of them or one by another name, packed sequences beside a cache with tokens or in
                several rows with `cu_seq_lens_q`, and for embeddings beside ids.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Pass exactly one of `input_ids` and `inputs_embeds`.")
        # A rank of several that share the sequences embeds its own tokens alone, once it knows which ones they are.
        if inputs_embeds is None and self.rank_group is None:
            inputs_embeds = self.embed_tokens(input_ids)
        tokens = input_ids[..., None] if inputs_embeds is None else inputs_embeds  # (B, T, D), or of ids (B, T, 1)
        cache = one_cache(cache, past_key_values)
        refuse_other_names(kwargs)
        warn_of_other_arguments(kwargs)
        checkpointing = self.gradient_checkpointing and self.training and torch.is_grad_enabled()
        check_tokens(tokens, 1 if inputs_embeds is None else self.config.hidden_size)
        check_no_cache_beside(checkpointing, cache)
        if use_cache and self.config.is_causal and not checkpointing and cache is None:
            cache = DynamicCache(config=self.config)
        tokens_seen = prepare_cache(cache, self.config, tokens)
        valid, documents = read_mask(attention_mask, tokens, tokens_seen is not None)
        seq_idx = documents if seq_idx is None else seq_idx
        starts = packed_starts(position_ids, cu_seq_lens_q, seq_idx, valid, tokens_seen, tokens)
        # At most: what lies in front of the first and behind the last one is a sequence, too.
        sequences = None if cu_seq_lens_q is None else cu_seq_lens_q.shape[0] + 1
        if starts is None and self.rank_group is None and goes_in_pieces(tokens, self.config, kwargs):
            return self.run_pieces(tokens, valid, cache, piece_length(tokens, self.config.chunk_size))
        layout = self.make_layout(tokens, valid, starts, sequences, tokens_seen, cache is not None, new_chunk_rows)
        if self.training and torch.is_grad_enabled():
            self.look_for_memory(layout)
        if self.rank_group is not None and tokens_seen is None:
            layout = self.make_shard(layout, tokens, cache, kwargs.get("output_attentions"))
            tokens = own_tokens(tokens, layout.shard.token_indices)
        inputs_embeds = self.embed_tokens(tokens[..., 0]) if inputs_embeds is None else tokens
        kwargs |= what_to_record(kwargs.get("output_attentions"), self.config)
        outputs = self.run_layers(layout, inputs_embeds, cache, **{**kwargs, "return_dict": True})
        return self.in_token_order(outputs, layout, inputs_embeds)

    def run_pieces(self, inputs_embeds, valid, cache: Cache | None, length: int) -> LatentAttentionModelOutput:
        """
        Run the layers on long rows, `length` tokens of each at a time, through a cache: as for a caller who passes the
        pieces one by one.
        """
        pieces = DynamicCache(config=self.config) if cache is None else cache
        hidden_states = []
        for start in range(0, inputs_embeds.shape[1], length):
            embeds = inputs_embeds[:, start : start + length]
            tokens_seen = prepare_cache(pieces, self.config, embeds)
            real = None if valid is None else valid[:, start : start + length]
            layout = self.make_layout(embeds, real, None, None, tokens_seen, with_cache=True, new_chunk_rows=None)
            outputs = self.run_layers(layout, embeds, pieces, return_dict=True)
            hidden_states.append(layout.to_tokens(outputs.last_hidden_state))
        hidden_states = of_last_real_token(torch.cat(hidden_states, dim=1), valid)  # (B, T, D)
        return LatentAttentionModelOutput(last_hidden_state=hidden_states, **{CACHE_NAME: cache})

    def make_layout(
        self, inputs_embeds, valid, starts, sequences, tokens_seen, with_cache, new_chunk_rows
    ) -> GridLayout | StepLayout:
        batch_shape, size, device = inputs_embeds.shape[:2], self.config.chunk_size, inputs_embeds.device
        if not self.config.is_causal:
            return bidirectional_layout(batch_shape, size, device, valid, starts)
        if tokens_seen is not None and valid is None and batch_shape[1] == 1:
            return step_layout(tokens_seen, size, new_chunk_rows)
        return grid_layout(batch_shape, size, device, valid, starts, tokens_seen, with_cache, sequences)

    def make_shard(self, layout: GridLayout, tokens, cache, output_attentions: bool | None) -> GridLayout:
        """This rank's part of the layout, of several ranks that share the sequences."""
        check_context_parallel(cache, output_attentions or self.config.output_attentions)
        self.rank_group.check_same(tokens)
        kernels = self.config.conv_kernel_size, self.config.mlp_conv_kernel_size
        return shard_layout(layout, self.rank_group, least_slots=max(kernels) - 1)

    def look_for_memory(self, layout: GridLayout | StepLayout) -> None:
        """Warn, once a training, if the first batch gives the latents nothing to read."""
        # What a replica of `DataParallel` notes is gone after the forward.
        if self.looked_for_memory or is_tracing(layout.chunk_index) or hasattr(self, "_is_replica"):
            return
        self.looked_for_memory = True
        if self.config.is_causal and self.config.has_latents and not reaches_second_chunk(layout):
            logger.warning(
                f"No sequence of this batch is longer than a chunk (`chunk_size` is {self.config.chunk_size}). Latents"
                " read complete chunks, for the tokens behind them: such a batch trains no memory. Train on longer "
                "sequences, or with a smaller `chunk_size`."
            )

    @capture_outputs
    def run_layers(
        self, layout: GridLayout | StepLayout, inputs_embeds, cache, **kwargs
    ) -> LatentAttentionModelOutput:
        """All blocks in the chunk layout. Recorded hidden states and attentions are in it, too."""
        position_embeddings = attention_mask = None
        if self.config.has_windows:
            position_embeddings = window_rotation(self.config, layout, inputs_embeds)
            attention_mask = local_attention_mask(self.config, layout, inputs_embeds.dtype)
        hidden_states = layout.to_slots(inputs_embeds)  # (R, N, C, D) or (B, 1, D)
        for decoder_layer in self.layers[: self.config.num_hidden_layers]:
            hidden_states = decoder_layer(
                hidden_states,
                layout=layout,
                position_embeddings=position_embeddings,
                attention_mask=attention_mask,
                cache=cache,
                **kwargs,
            )
        return LatentAttentionModelOutput(last_hidden_state=self.norm(hidden_states), **{CACHE_NAME: cache})

    def in_token_order(
        self, outputs: LatentAttentionModelOutput, layout: GridLayout | StepLayout, inputs_embeds: torch.Tensor
    ) -> LatentAttentionModelOutput:
        """Everything that `run_layers` recorded, back from slots to tokens."""
        last_hidden_state, states, maps = layout.to_tokens(outputs.last_hidden_state), outputs.hidden_states, {}
        if states is not None:
            # Layers that were not asked for are None. First and last are the tensors that the caller has anyway.
            states = [None if state is None else layout.to_tokens(state) for state in states]
            states[0] = None if states[0] is None else inputs_embeds
            states[-1] = None if states[-1] is None else last_hidden_state
            states = tuple(states)
        if outputs.attentions is not None:
            layers = self.layers[: self.config.num_hidden_layers]
            maps = maps_in_token_order(outputs, layout, layers, inputs_embeds)
        shard = getattr(layout, "shard", None)  # a step of decoding has none
        return LatentAttentionModelOutput(
            last_hidden_state=last_hidden_state,
            hidden_states=states,
            token_indices=None if shard is None else shard.token_indices,
            **{CACHE_NAME: cache_of(outputs)},
            **maps,
        )


def refuse_activated_lora(model: nn.Module) -> None:
    """Refuse adapters that act on the last so many tokens by PEFT's count: a layer sees slots, not rows of tokens."""
    for name, adapter in getattr(model, "peft_config", {}).items():
        if getattr(adapter, "alora_invocation_tokens", None):
            raise ValueError(
                f"The adapter `{name}` has `alora_invocation_tokens` {adapter.alora_invocation_tokens}, but must have "
                "none: activated LoRA counts tokens from the end of a row, and this model's layers see chunks. Train "
                "a plain LoRA instead."
            )


class LatentAttentionForCausalLM(LatentAttentionPreTrainedModel, LatentAttentionGenerationMixin):
    """Latent attention with a language modelling head."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    def __init__(self, config: LatentAttentionConfig):
        super().__init__(config)
        self.model = LatentAttentionModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        past_key_values: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> LatentAttentionCausalLMOutput:
        """
        Arguments as in [`LatentAttentionModel`], and:

        Args:
            labels: `(B, T)`, -100 where there is none; shifted by one inside the loss. That of a row's first token
                does not count, behind left padding either; for that of a packed sequence write -100, as
                `DataCollatorWithFlattening` does.
            num_items_in_batch: by what to divide the summed loss instead of its own number of labels. `Trainer`
                counts every label but those at the first place of a row, which may be padding; where it has counted
                no other batch than this, the first tokens behind left padding are taken out again.
            logits_to_keep: how many of the last tokens get logits, or their indices; 0 for all.

        Raises:
            `ValueError`: as the base model, and with an adapter of activated LoRA.
        """
        refuse_activated_lora(self)
        outputs: LatentAttentionModelOutput = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=one_cache(cache, past_key_values),
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        check_logits_to_keep(logits_to_keep, outputs.token_indices)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])  # (B, kept, V)
        loss = None
        if labels is not None and outputs.token_indices is not None:
            check_labels(labels, (input_ids if inputs_embeds is None else inputs_embeds).shape[:2])
            loss = self.loss_of_all_ranks(logits, labels, outputs.token_indices, attention_mask, kwargs)
        elif labels is not None:
            loss = self.loss_of_whole_rows(logits, labels, attention_mask, kwargs)
        return LatentAttentionCausalLMOutput(
            loss=loss, logits=logits, **{CACHE_NAME: cache_of(outputs)}, **recorded(outputs)
        )

    def enable_context_parallel(self, mesh: DeviceMesh) -> None:
        """As [`LatentAttentionModel.enable_context_parallel`]; the loss is the same on all ranks of the mesh."""
        self.model.enable_context_parallel(mesh)

    def loss_of_whole_rows(self, logits, labels, attention_mask, kwargs) -> torch.Tensor:
        """The loss of `labels`, or `shift_labels`, `(B, kept)`, where this process has all tokens of each row."""
        if kwargs.get("shift_labels") is None:
            check_labels(labels, logits.shape[:2])
            counted, predicted = kwargs.get("num_items_in_batch"), predictable(labels, attention_mask)
            if counted is not None:
                kwargs["num_items_in_batch"] = labels_to_divide_by(counted, labels, predicted)
            labels = predicted
        return self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)

    def loss_of_all_ranks(self, logits, labels, token_indices, attention_mask, kwargs) -> torch.Tensor:
        """
        The loss of `labels` `(B, T)` on all ranks that share the rows, the same on each of them. What a rank's
        backward gives is of the size of one that had done all of the work: the mean over the ranks is the gradient.
        """
        shifted = next_labels(labels, kwargs.pop("shift_labels", None), attention_mask)  # (B, T)
        if kwargs.get("num_items_in_batch") is None:
            kwargs["num_items_in_batch"] = (shifted != -100).sum()
        own = own_tokens(shifted, token_indices).masked_fill(token_indices < 0, -100)
        vocab_size = self.config.vocab_size
        loss = self.loss_function(logits=logits, labels=None, shift_labels=own, vocab_size=vocab_size, **kwargs)
        return self.model.rank_group.sum(loss)


class LatentAttentionTaskModel(LatentAttentionPreTrainedModel):
    """Tell a user who gives a model that does not generate an adapter for one that does."""

    def __getattr__(self, name: str):
        if name == "prepare_inputs_for_generation":
            raise AttributeError(
                f"{type(self).__name__} does not generate, but has been given an adapter with the `task_type` "
                '"CAUSAL_LM", which does. Make the adapter with the `task_type` of this model, such as "SEQ_CLS", '
                '"TOKEN_CLS" or "QUESTION_ANS", or load a LatentAttentionForCausalLM.'
            )
        return super().__getattr__(name)


class LatentAttentionForMaskedLM(LatentAttentionTaskModel):
    """A bidirectional model that fills in masked tokens."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: LatentAttentionConfig):
        super().__init__(config)
        if config.is_causal:
            raise ValueError(
                "`is_causal` is True but must be False for masked language modelling: a causal model does not see "
                "what follows a mask. Make the configuration with `is_causal=False`."
            )
        self.model = LatentAttentionModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> LatentAttentionMaskedLMOutput:
        """Arguments as in [`LatentAttentionModel`], and `labels` `(B, T)`, -100 where no token is to be filled in."""
        outputs = self.model(input_ids, attention_mask, position_ids, inputs_embeds=inputs_embeds, **kwargs)
        logits = self.lm_head(outputs.last_hidden_state)  # (B, T, V)
        loss = None
        if labels is not None:
            check_labels(labels, logits.shape[:2])
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return LatentAttentionMaskedLMOutput(loss=loss, logits=logits, **recorded(outputs))


def real_tokens(config: LatentAttentionConfig, input_ids, attention_mask, like: torch.Tensor) -> torch.Tensor:
    """`(B, T)`, 1 for real tokens: by the mask, without one by the padding token, if there is one."""
    if attention_mask is not None:
        return attention_mask[:, -like.shape[1] :].to(like.device)
    if input_ids is not None and config.pad_token_id is not None:
        return (input_ids != config.pad_token_id).to(like.device)
    return torch.ones(like.shape[:2], dtype=torch.bool, device=like.device)


class LatentAttentionForSequenceClassification(GenericForSequenceClassification, LatentAttentionTaskModel):
    """Classifies by the last real token, or, in a bidirectional model, by the mean of the real tokens."""

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SequenceClassifierOutputWithPast:
        """
        Arguments as in [`LatentAttentionModel`], and `labels` `(B,)`, or `(B, num_labels)` for several at once.
        Padding, on either side, is where `attention_mask` is 0. Without a mask the model reads it; what is pooled then
        leaves out the padding token, if there is one.
        """
        outputs = self.model(input_ids, attention_mask, position_ids, inputs_embeds=inputs_embeds, **kwargs)
        logits = self.score(outputs.last_hidden_state)  # (B, T, labels)
        pooled_logits = self.pool(logits, real_tokens(self.config, input_ids, attention_mask, logits))
        loss = None
        if labels is not None:
            check_labels_of_rows(labels, pooled_logits.shape[0], self.config)
            items = kwargs.get("num_items_in_batch")
            loss = self.loss_function(
                logits=logits, labels=labels, pooled_logits=pooled_logits, config=self.config, num_items_in_batch=items
            )
            if items is not None and self.config.problem_type != "single_label_classification":
                loss = part_of_mean(loss, labels, items)  # these losses are means, whatever they are told
        return SequenceClassifierOutputWithPast(
            loss=loss,
            logits=pooled_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **{CACHE_NAME: cache_of(outputs)},
        )

    def pool(self, logits: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """`(B, T, labels) -> (B, labels)`"""
        if self.config.is_causal:
            last = (torch.arange(real.shape[1], device=real.device) * real.bool()).argmax(1)  # (B,)
            return logits[torch.arange(logits.shape[0], device=logits.device), last]
        weights = real.bool().to(logits.dtype)[..., None]
        return (logits * weights).sum(1) / weights.sum(1).clamp(min=1)


class LatentAttentionForTokenClassification(GenericForTokenClassification, LatentAttentionTaskModel):
    """A label for every token."""

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> TokenClassifierOutput:
        """Arguments as in [`LatentAttentionModel`], and `labels` `(B, T)`, -100 where a token has none."""
        outputs = self.model(input_ids, attention_mask, position_ids, inputs_embeds=inputs_embeds, **kwargs)
        logits = self.score(self.dropout(outputs.last_hidden_state))  # (B, T, labels)
        loss = None
        if labels is not None:
            check_labels(labels, logits.shape[:2])
            loss = self.loss_function(logits, labels, self.config, **kwargs)
        return TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class LatentAttentionForQuestionAnswering(GenericForQuestionAnswering, LatentAttentionTaskModel):
    """Where the answer starts and ends, which is not in the padding."""

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        start_positions: torch.LongTensor | None = None,
        end_positions: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> QuestionAnsweringModelOutput:
        """
        Arguments as in [`LatentAttentionModel`], and `start_positions` and `end_positions`, `(B,)`; from `T` on they
        don't count.

        Raises:
            `ValueError`: as the base model, and for positions in the padding.
        """
        outputs = self.model(input_ids, attention_mask, position_ids, inputs_embeds=inputs_embeds, **kwargs)
        logits = self.qa_outputs(outputs.last_hidden_state)  # (B, T, 2)
        padding = ~real_tokens(self.config, input_ids, attention_mask, logits).bool()
        logits = logits.masked_fill(padding[..., None], torch.finfo(logits.dtype).min)
        start_logits, end_logits = logits.unbind(-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            check_places(logits.shape[0], start_positions=start_positions, end_positions=end_positions)
            positions = (start_positions.to(logits.device), end_positions.to(logits.device))
            check_answers(positions, padding)
            loss = self.loss_function(start_logits, end_logits, *positions, **kwargs)
        return QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=start_logits,
            end_logits=end_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


# Here and not in the package's `__init__`, which a checkpoint does not carry: the heads make their base model through
# `AutoModel`, which then finds the copy of the class that belongs to the copy of the configuration.
for _auto_class, _model_class in (
    (AutoModel, LatentAttentionModel),
    (AutoModelForCausalLM, LatentAttentionForCausalLM),
    (AutoModelForMaskedLM, LatentAttentionForMaskedLM),
    (AutoModelForSequenceClassification, LatentAttentionForSequenceClassification),
    (AutoModelForTokenClassification, LatentAttentionForTokenClassification),
    (AutoModelForQuestionAnswering, LatentAttentionForQuestionAnswering),
):
    _auto_class.register(LatentAttentionConfig, _model_class, exist_ok=True)
    _model_class.register_for_auto_class(_auto_class.__name__)
# By this table `Trainer` tells whose labels label smoothing has to shift; registration does not write to it.
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.setdefault(LatentAttentionConfig.model_type, LatentAttentionForCausalLM.__name__)

__all__ = [
    "LatentAttention",
    "LatentAttentionForCausalLM",
    "LatentAttentionForMaskedLM",
    "LatentAttentionForQuestionAnswering",
    "LatentAttentionForSequenceClassification",
    "LatentAttentionForTokenClassification",
    "LatentAttentionModel",
    "LatentAttentionPreTrainedModel",
]
