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
"""Documents packed into one row train as they do one by one."""

import pytest
import torch
from transformers import DataCollatorWithFlattening

from common import random_ids, tiny_model
from modeling_latent.cache_name import CACHE_NAME, cache_of
from training import close, fixed_seed, gradients  # noqa: F401 (a fixture)


@pytest.mark.parametrize("lengths", [(5, 8, 1, 13), (4, 8, 4), (1, 1, 3), (9,)])
@pytest.mark.parametrize("sent", ["position_ids", "position_ids_from_2", "cu_seq_lens", "both", "seq_idx"])
@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("kernel", [0, 4])
def test_packed_documents_equal_the_documents_one_by_one(lengths, sent, is_causal, kernel):
    model = tiny_model(dtype=torch.float64, is_causal=is_causal, conv_kernel_size=kernel)
    documents = [random_ids(length, seed=length) for length in lengths]
    collator = DataCollatorWithFlattening(
        return_position_ids="position_ids" in sent or sent == "both",
        return_flash_attn_kwargs=sent in ("cu_seq_lens", "both"),
        return_seq_idx=sent == "seq_idx",
    )
    batch = collator([{"input_ids": document.tolist()} for document in documents])
    if sent == "position_ids_from_2":  # the collator's `position_ids_start`
        batch["position_ids"] += 2
    tokens = sum(length - 1 for length in lengths)  # that a label is known for

    packed = gradients(model, **batch, num_items_in_batch=tokens)
    outputs = model(**batch, num_items_in_batch=tokens)
    model.zero_grad(set_to_none=True)
    alone = [model(document[None], labels=document[None], num_items_in_batch=tokens) for document in documents]
    loss = sum(output.loss for output in alone)
    loss.backward()
    close(outputs.logits, torch.cat([output.logits for output in alone], dim=1), atol=1e-9)
    close(outputs.loss, loss, atol=1e-6)  # the library computes it in float32
    for name, parameter in model.named_parameters():
        expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        actual = torch.zeros_like(parameter) if packed[name] is None else packed[name]
        close(actual, expected, atol=1e-6)


@pytest.mark.parametrize("packed", [{"cu_seq_lens_q": torch.tensor([0, 2, 5])}, {"seq_idx": torch.ones(1, 5)}])
def test_packed_documents_beside_a_filled_cache_are_refused(packed):
    model = tiny_model()
    cache = cache_of(model(random_ids(1, 6), use_cache=True))
    with pytest.raises(ValueError, match=f"`{CACHE_NAME}` holds tokens"):
        model(random_ids(1, 5), cache=cache, **packed)
