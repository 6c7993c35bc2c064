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
"""Calls of `generate()`, and what is compared of them, for the tests of it."""

import pytest
import torch
from transformers import DynamicCache, StaticCache

from common import double_model, random_ids
from modeling_latent import LatentAttentionForCausalLM
from modeling_latent.cache_name import CACHE_NAME


NEW = 13  # tokens to generate: three chunks of 4 and one token
CLOSE32 = {"atol": 1e-5, "rtol": 0}  # `generate()` turns logits into float32
EVERYTHING = {
    "return_dict_in_generate": True,
    "output_scores": True,
    "output_logits": True,
    "output_hidden_states": True,
    "output_attentions": True,
}
METHODS = {
    "greedy": {},
    "greedy with processors": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "bad_words_ids": [[5], [7, 8]]},
    "guided greedy": {"guidance_scale": 1.5},
    "sampling": {"do_sample": True, "top_k": 10, "top_p": 0.9, "temperature": 0.7},
    "several samples": {"do_sample": True, "num_return_sequences": 3},
    "beam search": {"num_beams": 3, "length_penalty": 2.0, "num_return_sequences": 2},
    "beam sampling": {"num_beams": 2, "do_sample": True, "top_k": 10},
}
CACHES = [DynamicCache, lambda config: StaticCache(config, max_cache_len=64)]
each_cache = pytest.mark.parametrize("cache_implementation", [None, "static"])


def eager_model(**overrides) -> LatentAttentionForCausalLM:
    """Attention weights are there to be recorded."""
    model = double_model(**overrides)
    model.set_attn_implementation("eager")
    return model


def generate(model, input_ids=None, cache=None, **settings):
    """Greedy unless the settings say otherwise, and always from the same seed."""
    torch.manual_seed(0)
    defaults = {"do_sample": False, "max_new_tokens": NEW, "pad_token_id": 0}
    given = {} if cache is None else {CACHE_NAME: cache}
    return model.generate(input_ids, **{**defaults, **settings, **given})


def left_padded(lengths, seed: int = 1) -> tuple[list, dict]:
    """Prompts of several lengths `(1, T)`, and the batch of them."""
    rows = [random_ids(1, length, seed=seed + i) for i, length in enumerate(lengths)]
    input_ids, mask = torch.zeros(2, len(rows), max(lengths), dtype=torch.long)
    for i, row in enumerate(rows):
        input_ids[i, -row.shape[1] :], mask[i, -row.shape[1] :] = row[0], 1
    return rows, {"input_ids": input_ids, "attention_mask": mask}
