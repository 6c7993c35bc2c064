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
"""Models as a unit of work names them: a name of `benchmarks.peers`, a shape, and settings, a change among them."""

import torch
from transformers import PreTrainedModel

from benchmarks import peers

from .changes import changed_model


def build(model: str, shape: dict, settings: dict) -> PreTrainedModel:
    """
    A model with random weights.

    Args:
        model: the name of its function in `benchmarks.peers`.
        shape: see there.
        settings: that the function takes; and as `change`, one of `CHANGES` of our model.
    """
    change = settings.get("change")
    config = peers.config_of(model, shape, {name: value for name, value in settings.items() if name != "change"})
    return peers.make_model(config) if change is None else changed_model(change, config)


def count_parameters(model: str, shape: dict, settings: dict) -> int:
    return peers.parameters_of(lambda: build(model, shape, settings))


def matched_shape(model: str, shape: dict, settings: dict, parameters: int) -> dict:
    """`shape` with the feed-forward width, or in Mamba-2 the number of layers, that comes nearest to `parameters`."""
    return peers.matched_shape(
        lambda shape: count_parameters(model, shape, settings), shape, peers.sized_by(model), parameters
    )


def hidden_states(model: PreTrainedModel, input_ids: torch.Tensor) -> torch.Tensor:
    """`(B, T)` to what the head reads, `(B, T, D)`."""
    return model.base_model(input_ids, use_cache=False).last_hidden_state


@torch.no_grad()
def state_elements(model: PreTrainedModel, length: int) -> int:
    """Numbers that the model keeps of one sequence of `length` tokens: those of its real cache, all layers."""
    input_ids = torch.zeros(1, length, dtype=torch.long, device=model.device)
    cache = model(input_ids, use_cache=True)[peers.cache_name_of(model)]
    return sum(tensor.numel() for tensor in peers.cache_tensors(cache) if tensor.is_floating_point())
