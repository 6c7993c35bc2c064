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
"""The models whose speed is measured: a configuration of ours, and peers with as many parameters."""

from pathlib import Path

from transformers import AutoConfig, PreTrainedConfig

from benchmarks.peers import config_of, make_model, matched_shape, parameters_of, sized_by
from modeling_latent import LatentAttentionConfig


CONFIGURATION = Path(__file__).parents[2] / "configuration"
OURS, FULL, WINDOWED, NO_LATENTS = "latent attention", "Llama", "Llama, windowed", "without latents"
MAMBA, GATED_DELTA_NET = "Mamba-2", "gated delta net"
PEERS = (FULL, WINDOWED, NO_LATENTS, MAMBA, GATED_DELTA_NET)
TOLERANCE = 0.03  # of the number of parameters
WIDTH_STEP = 8  # of feed-forward layers
SHAPE = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "tie_word_embeddings",
)
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


def peer_of(name: str, ours: LatentAttentionConfig) -> tuple[str, dict]:
    """The name that peer `name` has in `benchmarks.peers`, and its settings beside `ours`."""
    others = {field: value for field, value in ours.to_dict().items() if field not in SHAPE}
    return {
        FULL: ("full_attention", {}),
        WINDOWED: (
            "windowed_attention",
            {"sliding_window": 2 * ours.chunk_size},
        ),  # the furthest that our windows reach
        NO_LATENTS: ("latents_and_window", {**others, "layer_pattern": ["local"]}),
        MAMBA: ("mamba2", {"state_size": 128, "head_dim": min(64, ours.hidden_size), "chunk_size": 256}),
        GATED_DELTA_NET: ("gated_delta_net", {"key_dim": ours.head_dim}),
    }[name]


def count_parameters(config: PreTrainedConfig) -> int:
    return parameters_of(lambda: make_model(config))


def equal_config(name: str, ours: LatentAttentionConfig) -> PreTrainedConfig:
    """The configuration of peer `name` whose number of parameters is the nearest to ours."""
    model, settings = peer_of(name, ours)
    field = sized_by(model)
    step = WIDTH_STEP if field == "intermediate_size" else 1
    shape = matched_shape(
        lambda shape: count_parameters(config_of(model, shape, settings)),
        {field: getattr(ours, field) for field in SHAPE},
        field,
        count_parameters(ours),
        step,
    )
    return config_of(model, shape, settings)


def configs_of(name: str, peers: tuple[str, ...]) -> dict[str, PreTrainedConfig]:
    """Ours and `peers` at equal size.

    Raises:
        `ValueError`: for a peer whose number of parameters differs by more than `TOLERANCE`.
    """
    ours = our_config(name)
    configs = {OURS: ours} | {peer: equal_config(peer, ours) for peer in peers}
    target = count_parameters(ours)
    for peer in peers:
        parameters = count_parameters(configs[peer])
        if abs(parameters / target - 1) > TOLERANCE:
            raise ValueError(
                f"{peer} has {parameters} parameters but must be within {TOLERANCE:.0%} of the {target} of {name}: "
                f"choose another shape in `configuration/`."
            )
    return configs
