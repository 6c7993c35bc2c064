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
"""Configuration of latent attention models."""

import math
from difflib import get_close_matches

import torch
import transformers


# Here, as this file is imported first, and before what older versions lack.
if tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 17):
    raise ImportError(
        f"transformers {transformers.__version__} is installed, but latent attention needs version 5.17 or later: "
        'upgrade it with `pip install --upgrade "transformers>=5.17"`.'
    )

from huggingface_hub.dataclasses import strict
from transformers.activations import ACT2FN
from transformers.configuration_utils import PreTrainedConfig
from transformers.generation import GenerationConfig
from transformers.utils import logging


logger = logging.get_logger(__name__)

AUTO_MAP = {
    "AutoConfig": "configuration_latent.LatentAttentionConfig",
    "AutoModel": "modeling_latent.LatentAttentionModel",
    "AutoModelForCausalLM": "modeling_latent.LatentAttentionForCausalLM",
    "AutoModelForMaskedLM": "modeling_latent.LatentAttentionForMaskedLM",
    "AutoModelForQuestionAnswering": "modeling_latent.LatentAttentionForQuestionAnswering",
    "AutoModelForSequenceClassification": "modeling_latent.LatentAttentionForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_latent.LatentAttentionForTokenClassification",
}
POSITIVE_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "num_latents",
    "chunk_size",
)
CONV_FIELDS = ("conv_kernel_size", "mlp_conv_kernel_size")
LARGEST = 2**24  # of any of these: more than any model has, so a slip, named before memory is asked for
LATENT_STEPS = ("input_to_latent", "latent_self", "latent_to_input")
# The attentions of each kind of layer, in their order, by the names that they have in `LatentAttentionDecoderLayer`.
LAYER_KINDS = {
    "local": ("local_attention",),
    "latent": ("latent_attention",),
    "both": ("local_attention", "latent_attention"),
}
DEFAULT_PATTERN = ("both", "local")
# Without these values the same weights still load, but are another model than the one that was trained.
TRAINED_FIELDS = (
    "chunk_size",
    "is_causal",
    "layer_pattern",
    "num_sink_tokens",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "norm_type",
    "norm_eps",
    "rope_parameters",
)
# What the library reads from any configuration, or once wrote into it, beside the attributes of its base class.
LIBRARY_FIELDS = {
    *("add_cross_attention", "attn_implementation", "classifier_dropout", "cross_attention_hidden_size"),
    *("custom_pipelines", "distributed_config", "experts_implementation", "finetuning_task", "gradient_checkpointing"),
    *("hidden_dropout", "is_decoder", "max_position_embeddings", "prefix", "pruned_heads", "quantization_config"),
    *("sep_token_id", "task_specific_params", "tie_encoder_decoder", "tie_last_hidden_states"),
    *("token_classification_bias", "tokenizer_class", "torchscript", "transformers_weights", "use_bfloat16"),
}
ROPE_FIELDS = {  # by `rope_type`
    "default": {"rope_theta"},
    "llama3": {"rope_theta", "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
}


def is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def with_nearest(name: str, known) -> str:
    """The `name`, and the known one that it may be a misspelling of."""
    nearest = get_close_matches(name, known, n=1)
    return f"`{name}` (did you mean `{nearest[0]}`?)" if nearest else f"`{name}`"


@strict
class LatentAttentionConfig(PreTrainedConfig):
    r"""
    Configuration of a [`LatentAttentionModel`]. Beyond transformers' usual fields:

    Args:
        layer_pattern (`list[str]`, defaults to `["both", "local"]`): Kinds of layers, repeated from the first layer to
            the last. `"local"` has windowed self-attention alone, `"latent"` has latent attention in its place, and
            `"both"` has one after the other.
        num_latents (`int`, defaults to 64): Learnable latent vectors M of each layer that has latents: the size of its
            memory.
        chunk_size (`int`, defaults to 64): Tokens per chunk C, the piece of text that the latents take in at once,
            when it is complete. Local attention reaches between C and 2C - 1 tokens back.
        num_sink_tokens (`int`, defaults to 0): First tokens S of a sequence that local attention still sees once they
            have left its window (StreamingLLM, Xiao et al. 2023, arXiv:2309.17453); at most C. The weights of a model
            that was trained with full attention need them.
        conv_kernel_size (`int`, defaults to 4): Tokens that the causal depthwise convolution in front of the memory
            spans; 0 for none.
        mlp_conv_kernel_size (`int`, defaults to 4): The same for a convolution in front of the MLP.
        max_chunk_repeats (`float`, defaults to 1): In training, each chunk weighs in compression as if the text had it
            up to so many times, drawn log-uniformly for every chunk. The latents learn to find what matters among many
            more tokens than a row has, as they must in longer texts. 1 for none; for causal models.
        is_causal (`bool`, defaults to `True`): Language model, or bidirectional encoder.
        initializer_range (`float`, defaults to 1 / sqrt(hidden_size)): Standard deviation of embeddings and head; what
            layers add to the token stream starts in proportion to it.
        norm_type (`str`, defaults to `"layer_norm"`): `"layer_norm"` or `"rms_norm"`.
        norm_eps (`float`, defaults to 1e-5): Added to the variance in every norm.
        rope_parameters (`dict`): Of the rotary embeddings in local attention. Defaults to
            `{"rope_type": "default", "rope_theta": 10000.0}`; "llama3" is for weights that were trained with it.
        attention_bias (`bool`, defaults to `False`): Biases on `q_proj`, `k_proj`, `v_proj`; never on `o_proj`,
            so that latents that have read nothing stay as they are.
        qk_norm (`bool`, defaults to `False`): Norms over the numbers of each head on the queries and keys of local
            attention, before they are turned, as in Qwen3.
        trained_with (`dict`, defaults to `None`): Not to be set: what of the above the weights were saved with.
            `from_pretrained` warns where it differs from what the model has.

    Raises:
        `ValueError`, or huggingface_hub's `StrictDataclassError` around one: for a value that no model can be built
            from; the message names the field, the value and what is allowed.
    """

    model_type = "latent_attention"
    keys_to_ignore_at_inference = ["cache", "past_key_values"]  # the same, see cache_name.py
    base_model_pp_plan = {
        "embed_tokens": (["input_ids"], ["inputs_embeds"]),
        "layers": (["hidden_states", "layout"], ["hidden_states"]),
        "norm": (["hidden_states"], ["hidden_states"]),
    }

    vocab_size: int = 32000
    hidden_size: int = 576
    intermediate_size: int = 1536
    num_hidden_layers: int = 12
    num_attention_heads: int = 9
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    num_latents: int = 64
    chunk_size: int = 64
    conv_kernel_size: int = 4
    mlp_conv_kernel_size: int = 4
    layer_pattern: list[str] | None = None
    num_sink_tokens: int = 0
    is_causal: bool = True
    hidden_act: str = "silu"
    norm_type: str = "layer_norm"
    norm_eps: float = 1e-5
    attention_bias: bool = False
    qk_norm: bool = False
    attention_dropout: int | float = 0.0
    max_chunk_repeats: int | float = 1
    rope_parameters: dict | None = None
    initializer_range: float | None = None
    trained_with: dict | None = None
    use_cache: bool = True
    tie_word_embeddings: bool = False
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs):
        if is_number(self.num_hidden_layers):  # else its type is reported
            self._require_size("num_hidden_layers", least=1)  # before a list of them fills the memory
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.initializer_range is None:
            self.initializer_range = max(self.hidden_size, 1) ** -0.5  # a width of 0 is reported by its name
        if self.head_dim is None:
            # Zero heads are reported by `validate_architecture`, with the field's name.
            self.head_dim = self.hidden_size // max(self.num_attention_heads, 1)
            self._require(
                self.head_dim * self.num_attention_heads == self.hidden_size or self.num_attention_heads < 1,
                "num_attention_heads",
                f"a divisor of `hidden_size` ({self.hidden_size}) where `head_dim` is not given",
            )
        self._take_older_pattern(kwargs)
        self.dtype = self.dtype or kwargs.pop("torch_dtype", None)  # the older name
        self.validate_dtype()
        # What a checkpoint says is overwritten: entries read from the Hub carry the name of the repository that they
        # were read from, and a copy saved elsewhere must point to its own code.
        kwargs.pop("auto_map", None)
        self.auto_map = dict(AUTO_MAP)
        if "layer_types" in kwargs:
            self.layer_types = kwargs.pop("layer_types")
        # By their older names, too, as in the library's configurations.
        older = {name: kwargs.pop(name) for name in ("rope_theta", "partial_rotary_factor") if name in kwargs}
        plain = {"rope_type": "default", "rope_theta": self.default_theta}
        scaled = kwargs.pop("rope_scaling", None) or {}
        if not isinstance(scaled, dict):
            raise ValueError(
                f"`rope_scaling`, the older name of `rope_parameters`, is {scaled!r} but must be a dictionary."
            )
        self.rope_parameters = {**plain, **scaled, **older, **(self.rope_parameters or {})}
        self.validate_rope()
        if self.rope_parameters["rope_type"] == "llama3":
            # No limit of the model. The library asks for it where it reads a configuration without its code.
            factor, length = (self.rope_parameters[name] for name in ("factor", "original_max_position_embeddings"))
            kwargs.setdefault("max_position_embeddings", int(factor * length))
        self._warn_of_unknown(kwargs)
        super().__post_init__(**kwargs)

    def _take_older_pattern(self, kwargs: dict) -> None:
        """Read `local_attention`, which version 0.1.0 wrote, and give `layer_pattern` its default."""
        older, meant = kwargs.pop("local_attention", None), None
        if older is not None:
            meant = ["both"] if older else ["latent"]
            if not isinstance(older, bool) or self.layer_pattern not in (None, meant):
                raise ValueError(
                    f"`local_attention` is {older!r}, but must be True, which is the older name of "
                    '`layer_pattern=["both"]`, or False, for `["latent"]`, and agree with `layer_pattern`, which is '
                    f"{self.layer_pattern}. Leave `local_attention` out."
                )
        if self.layer_pattern is None:
            self.layer_pattern = meant or list(DEFAULT_PATTERN)

    def _warn_of_unknown(self, names) -> None:
        """Name fields that are kept, as the library keeps any, and have no effect: one may be misspelt."""
        unknown = [name for name in names if not (name.startswith("_") or hasattr(type(self), name))]
        if unknown := [name for name in unknown if name not in LIBRARY_FIELDS | vars(GenerationConfig()).keys()]:
            named = ", ".join(with_nearest(name, type(self).__dataclass_fields__) for name in unknown)
            logger.warning(f"The configuration keeps fields that latent attention does not read: {named}.")

    def record_training(self) -> None:
        """Note what the weights that are being saved were made with."""
        self.trained_with = {field: getattr(self, field) for field in TRAINED_FIELDS}

    def warn_of_changes_since_training(self) -> None:
        trained = self.trained_with or {}
        changed = [field for field in TRAINED_FIELDS if field in trained and trained[field] != getattr(self, field)]
        if changed:
            named = "; ".join(f"`{field}` was {trained[field]!r} and is {getattr(self, field)!r}" for field in changed)
            logger.warning(
                f"These weights were trained with other values than the configuration has: {named}. They load, but "
                "the model computes something else than it has learned. Restore the values, or train it on with the "
                "new ones."
            )

    def _require(self, holds: bool, field: str, allowed: str):
        if not holds:
            raise ValueError(f"`{field}` is {getattr(self, field)!r} but must be {allowed}.")

    def _require_size(self, field: str, least: int):
        allowed = f"an integer of at least {least} and at most {LARGEST:,}"
        self._require(least <= getattr(self, field) <= LARGEST, field, allowed)

    def standardize_rope_params(self):
        """Nothing is left to do; the library would ask for a maximum length, which there is not."""

    def validate_dtype(self):
        dtype = getattr(torch, self.dtype, None) if isinstance(self.dtype, str) else self.dtype
        self._require(
            self.dtype is None or (isinstance(dtype, torch.dtype) and dtype.is_floating_point),
            "dtype",
            'a dtype of torch for floating point or its name, such as "bfloat16", "float16" or "float32"',
        )

    def validate_rope(self):
        numbers = dict(self.rope_parameters or {})
        fields = ROPE_FIELDS.get(str(numbers.pop("rope_type", "default")))
        self._require(
            numbers.keys() == fields
            and all(is_number(value) and 0 < value < math.inf for value in numbers.values())
            and numbers.get("low_freq_factor", 1) < numbers.get("high_freq_factor", 2),
            "rope_parameters",
            'a dictionary of a positive `rope_theta` and the `rope_type` "default": positions stay within the window, '
            'so there is nothing to scale. For weights that were trained so, "llama3" is allowed, with positive '
            "`factor`, `low_freq_factor`, a greater `high_freq_factor` and `original_max_position_embeddings`",
        )

    def validate_architecture(self):
        """Part of `@strict`-powered validation: runs when the configuration is made."""
        for fields, least in ((POSITIVE_FIELDS, 1), (CONV_FIELDS, 0)):
            for field in fields:
                self._require_size(field, least)
        *kinds, last_kind = (f'"{kind}"' for kind in LAYER_KINDS)
        self._require(
            len(self.layer_pattern) > 0 and set(self.layer_pattern) <= LAYER_KINDS.keys(),
            "layer_pattern",
            f"a list of {', '.join(kinds)} and {last_kind}, at least one of them",
        )
        self._require(
            0 <= self.num_sink_tokens <= self.chunk_size,
            "num_sink_tokens",
            f"an integer of at least 0 and at most `chunk_size` ({self.chunk_size})",
        )
        self._require(
            self.num_sink_tokens == 0 or (self.is_causal and self.has_windows),
            "num_sink_tokens",
            "0 where `is_causal` is False, as nothing leaves a sequence that is read at once, and where no layer of "
            "`layer_pattern` has local attention, which sees the sinks",
        )
        self._require(
            self.num_attention_heads % self.num_key_value_heads == 0,
            "num_key_value_heads",
            f"a divisor of `num_attention_heads` ({self.num_attention_heads})",
        )
        self._require(self.head_dim % 2 == 0, "head_dim", "even, because rotary embeddings turn pairs of numbers")
        self._require(self.norm_type in ("layer_norm", "rms_norm"), "norm_type", '"layer_norm" or "rms_norm"')
        self._require(0 < self.norm_eps < math.inf, "norm_eps", "greater than 0 and finite")
        self._require(0 <= self.attention_dropout < 1, "attention_dropout", "at least 0 and less than 1")
        self._require(1 <= self.max_chunk_repeats < math.inf, "max_chunk_repeats", "at least 1 and finite")
        self._require(0 < self.initializer_range < math.inf, "initializer_range", "greater than 0 and finite")
        self._require(self.hidden_act in ACT2FN, "hidden_act", f"one of {', '.join(sorted(ACT2FN))}")

    @property
    def layer_kinds(self) -> list[str]:
        """The kind of every layer: the pattern, repeated, and cut off where the layers end."""
        return [self.layer_pattern[index % len(self.layer_pattern)] for index in range(self.num_hidden_layers)]

    @property
    def has_windows(self) -> bool:
        return any("local_attention" in LAYER_KINDS[kind] for kind in self.layer_kinds)

    @property
    def layers_with_latents(self) -> list[int]:
        """The numbers of the layers that have latents, counted from 0."""
        return [index for index, kind in enumerate(self.layer_kinds) if "latent_attention" in LAYER_KINDS[kind]]

    @property
    def has_latents(self) -> bool:
        return bool(self.layers_with_latents)

    @property
    def base_model_tp_plan(self) -> dict[str, str]:
        """How tensor parallel splits the linear layers: of each attention that the pattern has, and of the MLP."""
        attentions = ["local_attention"] if self.has_windows else []
        if self.has_latents:
            attentions += [f"latent_attention.{step}" for step in LATENT_STEPS]
        plan = {"mlp.gate_proj": "colwise", "mlp.up_proj": "colwise", "mlp.down_proj": "rowwise"}
        for attention in attentions:
            plan |= {f"{attention}.{name}": "colwise" for name in ("q_proj", "k_proj", "v_proj")}
            plan[f"{attention}.o_proj"] = "rowwise"
        if self.qk_norm:  # the same for every head, so that each process has the gradients of its own heads only
            plan |= {f"local_attention.{name}": "replicated_with_grad_allreduce" for name in ("q_norm", "k_norm")}
        return {f"layers.*.{name}": style for name, style in plan.items()} | vars(self).get("base_model_tp_plan", {})

    @base_model_tp_plan.setter
    def base_model_tp_plan(self, plan: dict[str, str]):
        """Keep what transformers before 5.23 adds where embeddings are tied. Under this name it is not saved."""
        added = {name: style for name, style in plan.items() if not name.startswith("layers.")}
        vars(self)["base_model_tp_plan"] = added

    # `DynamicCache(config=...)` looks up the cache layers under this name. It is no field: `Trainer` resumes by
    # reading config.json with the library's base class, whose list of layer types is closed.
    @property
    def layer_types(self) -> list[str]:
        return [self.model_type] * self.num_hidden_layers

    @layer_types.setter
    def layer_types(self, value: list[str]):
        if value != self.layer_types:
            raise ValueError(
                f'`layer_types` is {value!r} but must be "{self.model_type}" once for each of the '
                f"{self.num_hidden_layers} layers."
            )

    def validate_layer_type(self):
        """Nothing to check: there is one type, and the library's closed list does not have it."""

    def state_bytes(self, batch_size: int = 1, dtype: torch.dtype = torch.bfloat16) -> int:
        """Bytes of the whole cache of a model that computes in `dtype`, however many tokens the cache has seen."""
        if not isinstance(dtype, torch.dtype):
            raise TypeError(f"`dtype` is {dtype!r} but must be a dtype of torch, such as `torch.bfloat16`.")
        size, statistics_size = dtype.itemsize, max(dtype.itemsize, torch.float32.itemsize)
        token = 2 * self.num_key_value_heads * self.head_dim * size  # keys and values of one token or latent
        window = (self.num_sink_tokens + 2 * self.chunk_size) * token
        statistics = self.num_attention_heads * self.num_latents * (2 + self.head_dim) * statistics_size
        conv, mlp_conv = (
            max(kernel - 1, 0) * self.hidden_size * size
            for kernel in (self.conv_kernel_size, self.mlp_conv_kernel_size)
        )
        memory = (self.chunk_size + self.num_latents) * token + statistics + conv
        parts = {"local_attention": window, "latent_attention": memory}
        attentions = sum(parts[attention] for kind in self.layer_kinds for attention in LAYER_KINDS[kind])
        return batch_size * (attentions + self.num_hidden_layers * (mlp_conv + torch.int64.itemsize))


def check_config(config) -> None:
    """Check that it is the configuration of such a model. Its class may be that of another copy of this code."""
    if getattr(config, "model_type", None) != LatentAttentionConfig.model_type:
        raise TypeError(f"`config` is of type {type(config).__name__} but must be a `LatentAttentionConfig`.")


LatentAttentionConfig.register_for_auto_class()

__all__ = ["LatentAttentionConfig"]
