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
The models that the contract is held to, and what more than one of its test files needs.

The files `test_contract_*.py` hold what must be true of latent attention, in the order and with the numbers of
docs/architecture.md. All of it is tested on random weights of visible size. Unless a test says otherwise it is in
float64 with atol 1e-9, where the float32 tolerance would be 1e-5: what is equal in exact arithmetic is then told from
what is only close.
"""

import pytest
import torch
from torch.utils._pytree import tree_leaves
from transformers import DynamicCache

from common import CLOSE, PATTERNS
from modeling_latent.prefix_statistics import Statistics


# What is compared with the reference.
LAYER_PATTERNS = [["local"], ["latent"], ["both"], ["both", "local"], ["local", "both", "latent"]]
# What the properties of whole models are held to.
MODELS = {
    **PATTERNS,
    "local with sinks": {"layer_pattern": ["local"], "num_sink_tokens": 2},
    "a whole chunk of sinks": {"num_sink_tokens": 4},
    "no convolution": {"conv_kernel_size": 0, "mlp_conv_kernel_size": 0},
    "chunks of one token": {"chunk_size": 1},
    "chunks of one token with a sink": {"chunk_size": 1, "num_sink_tokens": 1},
    "chunks of five tokens, one latent": {"chunk_size": 5, "num_latents": 1},
    "rms norm, biases": {"norm_type": "rms_norm", "attention_bias": True},
    "norms on queries and keys": {"norm_type": "rms_norm", "qk_norm": True, "num_sink_tokens": 2},
}
every_model = pytest.mark.parametrize("overrides", MODELS.values(), ids=MODELS.keys())
# What a cache's bytes are measured of.
STATES = {
    "default": {},
    "local with sinks": {"layer_pattern": ["local"], "num_sink_tokens": 3},
    "latent, no convolution": {"layer_pattern": ["latent"], "conv_kernel_size": 0, "mlp_conv_kernel_size": 0},
    "mixed with sinks": PATTERNS["mixed with sinks"],
}


def tensors(tree) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def assert_same_state(ours: DynamicCache, expected: DynamicCache) -> None:
    for mine, theirs in zip(ours.layers, expected.layers, strict=True):
        torch.testing.assert_close(tensors(mine.state), tensors(theirs.state), **CLOSE)


def step_by_step(model, input_ids, pieces, **inputs):
    """Logits of a forward in pieces of the given sizes, through a cache."""
    cache, logits, start = DynamicCache(config=model.config), [], 0
    for size in pieces:
        stop = start + size
        more = {name: value[:, :stop] for name, value in inputs.items()}
        logits.append(model(input_ids[:, start:stop], cache=cache, **more).logits)
        start = stop
    return torch.cat(logits, dim=1)


def storage_bytes(cache) -> int:
    return sum(leaf.untyped_storage().nbytes() for layer in cache.layers for leaf in tensors(layer.state))


def some_statistics(*shape: int, peak: float | None = None, head_dim: int = 4) -> Statistics:
    """As of spans with tokens: a total is at least 1."""
    generator = torch.Generator().manual_seed(0)
    peaks = torch.randn(shape, generator=generator) if peak is None else torch.full(shape, peak)
    return Statistics(
        peaks, 1 + torch.rand(shape, generator=generator), torch.randn(*shape, head_dim, generator=generator)
    )
