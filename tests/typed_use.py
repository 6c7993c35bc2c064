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
The public surface as a typed program uses it. `make lint` runs mypy on this file: an argument that is renamed, a type
that changes or a name that is no longer exported is an error here. It is not run.
"""

from pathlib import Path
from typing import assert_type

import torch

from modeling_latent import (
    LatentAttention,
    LatentAttentionConfig,
    LatentAttentionForCausalLM,
    LatentAttentionForMaskedLM,
    LatentAttentionForQuestionAnswering,
    LatentAttentionForSequenceClassification,
    LatentAttentionForTokenClassification,
    LatentAttentionModel,
)


MODELS = (
    LatentAttentionForMaskedLM,
    LatentAttentionForQuestionAnswering,
    LatentAttentionForSequenceClassification,
    LatentAttentionForTokenClassification,
)


def configure() -> LatentAttentionConfig:
    config = LatentAttentionConfig(layer_pattern=["both", "local"], num_latents=8, chunk_size=16, num_sink_tokens=2)
    assert_type(config.layer_kinds, list[str])
    assert_type(config.has_latents, bool)
    assert_type(config.has_windows, bool)
    assert_type(config.state_bytes(batch_size=2, dtype=torch.bfloat16), int)
    return config


def use_the_layer(config: LatentAttentionConfig, hidden_states: torch.Tensor) -> torch.Tensor:
    return LatentAttention(config).forward(hidden_states, attention_mask=None)


def train_and_save(config: LatentAttentionConfig, input_ids: torch.LongTensor, folder: Path) -> None:
    model = LatentAttentionForCausalLM(config)
    model.forward(input_ids=input_ids, labels=input_ids, use_cache=False, logits_to_keep=0)
    model.save_pretrained(folder, push_to_hub=False)
    LatentAttentionForCausalLM.from_pretrained(folder)
    for model_class in MODELS:
        model_class(config)


def read(config: LatentAttentionConfig, input_ids: torch.LongTensor, mask: torch.Tensor) -> None:
    LatentAttentionModel(config).forward(input_ids, attention_mask=mask, position_ids=None, cache=None, use_cache=True)
