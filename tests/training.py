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
"""What tests of training, compiling and loading share: a batch, gradients, and a seed that each test starts from."""

import pytest
import torch
from transformers import set_seed

from common import random_ids


LENGTH = 14  # three complete chunks of 4 tokens and a half


@pytest.fixture(autouse=True)
def fixed_seed():
    """In front of every test of a file that imports this."""
    set_seed(0)


def close(actual, expected, atol: float = 1e-5):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=atol, check_dtype=False)


def gradients(model: torch.nn.Module, **inputs) -> dict[str, torch.Tensor | None]:
    """Of the loss, by parameter; `None` for those that the loss does not depend on."""
    model.zero_grad(set_to_none=True)
    model(**inputs).loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def padded_batch() -> dict[str, torch.Tensor]:
    """Three rows, one padded on the left, one on the right."""
    input_ids = random_ids(3, LENGTH)
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, :5] = 0
    attention_mask[2, -3:] = 0
    labels = input_ids.where(attention_mask.bool(), -100)
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
