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
The exports of test_export.py with all that may vary in them, as in transformers' own tests of its exporters, which are
in no distribution. They take minutes, so `pytest tests` leaves them out.
"""

import copy

import pytest
import torch
from transformers.exporters.utils import get_leaf_tensors

from common import random_ids
from test_export import CACHES, EXPORTERS, PROMPT, can_run_exports, export, exportable_model, padded_prompt, stages


pytestmark = can_run_exports
every_backend = pytest.mark.parametrize("backend", EXPORTERS)
every_stage = pytest.mark.parametrize(
    "stage, tokens, dynamic",
    [("prefill", 1, False), ("decode", 1, False), ("prefill", 1, True), ("decode", 1, True), ("decode", 2, True)],
)


@torch.no_grad()
def assert_exports(backend: str, model, inputs: dict, **settings) -> None:
    """That the exported graph gives every tensor that the model gives, of the cache as well, under its name."""
    expected = get_leaf_tensors(model(**copy.deepcopy(inputs)))
    exported = export(backend, model, inputs, **settings)
    torch.testing.assert_close(get_leaf_tensors(exported(**copy.deepcopy(inputs))), expected, atol=1e-4, rtol=1e-4)


@every_backend
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_forward(backend, dynamic):
    assert_exports(backend, exportable_model(), padded_prompt(random_ids(13, PROMPT)), dynamic=dynamic)


@every_backend
@every_stage
@pytest.mark.parametrize("cache", CACHES)
def test_a_stage_of_generation(backend, cache, stage, tokens, dynamic):
    """`tokens`: how many a step of decoding takes."""
    parts = stages(exportable_model(), random_ids(2, PROMPT), cache, multi_token_decode=tokens > 1)
    assert_exports(backend, *parts[stage], dynamic=dynamic)


def with_positions(ids: torch.Tensor) -> dict[str, torch.Tensor]:
    return {**padded_prompt(ids), "position_ids": torch.arange(ids.shape[1]).expand(ids.shape)}


@every_backend
@torch.no_grad()
def test_a_forward_of_other_shapes_than_it_was_exported_with(backend):
    model = exportable_model()
    inputs = {**with_positions(random_ids(2, 13)), "use_cache": False}
    exported = export(backend, model, inputs, dynamic=True)
    for rows, tokens in ((3, 30), (1, 12), (2, 132)):  # up to as many chunks as the latents read at once, and one
        inputs = with_positions(random_ids(rows, tokens))
        torch.testing.assert_close(exported(**inputs).logits, model(**inputs).logits, atol=1e-4, rtol=1e-4)
