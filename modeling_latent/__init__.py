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
"""Latent attention for transformers. Importing this registers config and models with the Auto classes."""

from transformers import AutoConfig

from .configuration_latent import LatentAttentionConfig  # first: it checks the version of transformers


# isort: split
from .cache_latent import LatentAttentionCacheLayer, StaticLatentAttentionCacheLayer
from .modeling_latent import (
    LatentAttention,
    LatentAttentionForCausalLM,
    LatentAttentionForMaskedLM,
    LatentAttentionForQuestionAnswering,
    LatentAttentionForSequenceClassification,
    LatentAttentionForTokenClassification,
    LatentAttentionModel,
    LatentAttentionPreTrainedModel,
)


AutoConfig.register(LatentAttentionConfig.model_type, LatentAttentionConfig, exist_ok=True)

__all__ = [
    "LatentAttention",
    "LatentAttentionCacheLayer",
    "LatentAttentionConfig",
    "LatentAttentionForCausalLM",
    "LatentAttentionForMaskedLM",
    "LatentAttentionForQuestionAnswering",
    "LatentAttentionForSequenceClassification",
    "LatentAttentionForTokenClassification",
    "LatentAttentionModel",
    "LatentAttentionPreTrainedModel",
    "StaticLatentAttentionCacheLayer",
]
