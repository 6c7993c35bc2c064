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
"""How many operators a step of decoding runs: on a GPU, where each is a launch, that is what a step costs."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from modeling_latent import LatentAttentionConfig, LatentAttentionForCausalLM


pytestmark = pytest.mark.quick

SHAPE = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 4}
SHAPE |= {"num_key_value_heads": 2, "num_hidden_layers": 12}


class CountOperators(TorchDispatchMode):
    """Counts what computes or copies. A view does neither."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        aliases = any(output.alias_info is not None for output in operator._schema.returns)
        writes = any(argument.is_write for argument in operator._schema.arguments)
        is_view = (aliases and not writes) or operator is torch.ops.aten._unsafe_view.default
        self.count += not is_view
        return operator(*args, **(kwargs or {}))


@torch.no_grad()
def operators_of_a_step(model: PreTrainedModel, **arguments) -> int:
    cache = DynamicCache(config=model.config)
    model.eval()(torch.zeros(1, 10, dtype=torch.long), cache=cache)
    with CountOperators() as operators:
        model(torch.zeros(1, 1, dtype=torch.long), cache=cache, **arguments)
    return operators.count


def test_a_step_runs_at_most_115_operators_where_a_llama_runs_100():
    """Both have as many layers. How wide these are changes nothing."""
    ours = LatentAttentionForCausalLM(LatentAttentionConfig(**SHAPE, num_latents=4, chunk_size=8))
    no_row_enters_a_chunk = torch.tensor([], dtype=torch.long)
    count = operators_of_a_step(ours, new_chunk_rows=no_row_enters_a_chunk)
    llama = operators_of_a_step(LlamaForCausalLM(LlamaConfig(**SHAPE)))
    assert count <= 1.15 * llama
