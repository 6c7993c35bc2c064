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
"""The models that are measured, ours and its peers, all of transformers and of equal size."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    Mamba2Config,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)

from modeling_latent import LatentAttentionConfig
from modeling_latent.cache_name import CACHE_NAME


CONFIGURATION = Path(__file__).parents[1] / "configuration"
OURS, FULL, WINDOWED, NO_LATENTS = "latent attention", "Llama", "Llama, windowed", "without latents"
MAMBA, GATED_DELTA_NET, GSA = "Mamba-2", "gated delta net", "GSA"
PEERS = (FULL, WINDOWED, NO_LATENTS, MAMBA, GATED_DELTA_NET)
TOLERANCE = 0.03  # of the number of parameters

# What two CPU cores are measured with. The GPU takes the ready-made configurations.
SMALL = {
    "vocab_size": 8192,
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "num_latents": 64,
    "chunk_size": 128,
    "tie_word_embeddings": True,
}


def our_config(name: str) -> LatentAttentionConfig:
    """`"latent-60m"`, which lives here, or the name of a folder of `configuration/`."""
    if name == "latent-60m":
        return LatentAttentionConfig(**SMALL)
    return AutoConfig.from_pretrained(CONFIGURATION / name)


class GatedDeltaNet(Qwen3NextForCausalLM):
    """Qwen3-Next, which asks its cache for the position of a token, and only layers of full attention know it."""

    def forward(self, input_ids: torch.LongTensor, **kwargs):
        no_mask, no_position = {"linear_attention": None}, torch.zeros_like(input_ids)
        return super().forward(input_ids, attention_mask=no_mask, position_ids=no_position, **kwargs)


OWN_CLASSES = {GATED_DELTA_NET: GatedDeltaNet}


def shared_fields(ours: LatentAttentionConfig) -> dict:
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    fields = {name: getattr(ours, name) for name in (*names, "head_dim", "tie_word_embeddings")}
    # Random tokens must not end a text.
    return {**fields, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}


def full_config(ours: LatentAttentionConfig, units: int) -> LlamaConfig:
    return LlamaConfig(**shared_fields(ours), intermediate_size=8 * units)


def windowed_config(ours: LatentAttentionConfig, units: int) -> MistralConfig:
    """Mistral is Llama with a window: a token sees itself and 2C - 1 before, the furthest that our local ones see."""
    return MistralConfig(**shared_fields(ours), intermediate_size=8 * units, sliding_window=2 * ours.chunk_size)


def without_latents_config(ours: LatentAttentionConfig, units: int) -> LatentAttentionConfig:
    return LatentAttentionConfig(**{**ours.to_dict(), "layer_pattern": ["local"], "intermediate_size": 8 * units})


def mamba_config(ours: LatentAttentionConfig, units: int) -> Mamba2Config:
    """A block of Mamba-2 has no MLP whose width could vary, so its depth does."""
    head_dim = min(64, ours.hidden_size)
    return Mamba2Config(
        vocab_size=ours.vocab_size,
        hidden_size=ours.hidden_size,
        head_dim=head_dim,
        num_heads=2 * ours.hidden_size // head_dim,
        n_groups=1,
        num_hidden_layers=units,
        tie_word_embeddings=ours.tie_word_embeddings,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )


def gated_delta_net_config(ours: LatentAttentionConfig, units: int) -> Qwen3NextConfig:
    """Qwen3-Next with neither full attention nor experts."""
    return Qwen3NextConfig(
        **shared_fields(ours),
        intermediate_size=8 * units,
        layer_types=["linear_attention"] * ours.num_hidden_layers,
        mlp_only_layers=list(range(ours.num_hidden_layers)),
        linear_key_head_dim=ours.head_dim,
        linear_value_head_dim=ours.head_dim,
        linear_num_key_heads=ours.num_attention_heads,
        linear_num_value_heads=ours.num_attention_heads,
    )


def gsa_config(ours: LatentAttentionConfig, units: int) -> PreTrainedConfig:
    """Gated slot attention of flash-linear-attention, with as many slots as we have latents."""
    from fla.models import GSAConfig

    return GSAConfig(
        vocab_size=ours.vocab_size,
        hidden_size=ours.hidden_size,
        num_hidden_layers=ours.num_hidden_layers,
        num_heads=ours.num_attention_heads,
        num_slots=ours.num_latents,
        intermediate_size=8 * units,
        tie_word_embeddings=ours.tie_word_embeddings,
    )


CONFIGS: dict[str, Callable] = {
    FULL: full_config,
    WINDOWED: windowed_config,
    NO_LATENTS: without_latents_config,
    MAMBA: mamba_config,
    GATED_DELTA_NET: gated_delta_net_config,
    GSA: gsa_config,
}


def build(name: str, config: PreTrainedConfig) -> PreTrainedModel:
    """Random weights; attention by SDPA wherever there is attention."""
    return OWN_CLASSES[name](config) if name in OWN_CLASSES else AutoModelForCausalLM.from_config(config)


def cache_name_of(model: PreTrainedModel) -> str:
    """What a model calls its cache: since transformers 5.24 they all call it the same, before Mamba-2 does not."""
    of_its_own = CACHE_NAME == "past_key_values" and model.config.model_type == "mamba2"
    return "cache_params" if of_its_own else CACHE_NAME


def parameters_of(make: Callable[[], PreTrainedModel]) -> int:
    """Tied embeddings counted once. Allocates nothing."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in make().parameters())


def count_parameters(name: str, config: PreTrainedConfig) -> int:
    return parameters_of(lambda: build(name, config))


def nearest_size(count: Callable[[int], int], parameters: int) -> int:
    """The size, at least 1, whose `count` of parameters is the nearest to `parameters`: it is linear in the size."""
    one, two = count(1), count(2)
    return max(1, 1 + round((parameters - one) / (two - one)))


def equal_config(name: str, ours: LatentAttentionConfig) -> PreTrainedConfig:
    """The configuration of peer `name` whose number of parameters is the nearest to ours."""
    make = partial(CONFIGS[name], ours)
    return make(nearest_size(lambda units: count_parameters(name, make(units)), count_parameters(OURS, ours)))


def configs_of(name: str, peers: tuple[str, ...]) -> dict[str, PreTrainedConfig]:
    """Ours and `peers` at equal size.

    Raises:
        `ValueError`: for a peer whose number of parameters differs by more than `TOLERANCE`.
    """
    ours = our_config(name)
    configs = {OURS: ours} | {peer: equal_config(peer, ours) for peer in peers}
    target = count_parameters(OURS, ours)
    for peer in peers:
        parameters = count_parameters(peer, configs[peer])
        if abs(parameters / target - 1) > TOLERANCE:
            raise ValueError(
                f"{peer} has {parameters} parameters but must be within {TOLERANCE:.0%} of the {target} of {name}: "
                f"choose another shape in `CONFIGS`."
            )
    return configs
