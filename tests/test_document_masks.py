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
"""Masks that number packed documents: these are kept apart. Other masks are of padding, or refused."""

import pytest
import torch
from transformers import DynamicCache

from common import CLOSE, double_model, random_ids, tiny_config, tiny_model
from modeling_latent import LatentAttention


DTYPES = [torch.long, torch.int32, torch.uint8]


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_documents_that_the_mask_numbers_are_kept_apart(dtype, is_causal):
    """With padding before, between, inside and behind them, on which it has 0."""
    model, input_ids = double_model(is_causal=is_causal), random_ids(2, 14)
    mask = torch.tensor([[0, 1, 1, 0, 1, 2, 2, 2, 2, 2, 2, 0, 7, 0], [1] * 5 + [2] * 9], dtype=dtype)
    logits = model(input_ids, attention_mask=mask).logits
    for row in range(2):
        for number in mask[row].unique()[mask[row].unique() > 0]:
            document = mask[row] == number
            alone = model(input_ids[row, document][None]).logits[0]
            torch.testing.assert_close(logits[row, document], alone, **CLOSE)
    # What says more counts more.
    torch.testing.assert_close(
        model(input_ids[1:], mask[1:], seq_idx=torch.zeros(1, 14).int()).logits, model(input_ids[1:]).logits, **CLOSE
    )
    assert torch.equal(model(input_ids, mask, position_ids=torch.arange(14)[None]).logits, logits)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.bool, torch.float32], ids=str)
def test_masks_of_zeros_and_ones_are_of_padding_whatever_their_dtype_and_cost_one_look(dtype, monkeypatch):
    model, input_ids = double_model(), random_ids(2, 9)
    mask = torch.ones(2, 9, dtype=dtype)
    mask[0, :4] = mask[1, 3:5] = 0
    expected, looks = model(input_ids, attention_mask=mask.long()).logits, []
    for name in ("__bool__", "__int__", "item", "tolist"):
        look = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda self, look=look: (looks.append(1), look(self))[1])
    for given in (mask, torch.ones_like(mask)):
        looks.clear()
        logits = model(input_ids, attention_mask=given).logits
        assert len(looks) == 1
    monkeypatch.undo()
    assert torch.equal(model(input_ids, attention_mask=mask).logits, expected)
    torch.testing.assert_close(logits, model(input_ids).logits, **CLOSE)


@pytest.mark.parametrize(
    "mask",
    [
        torch.tensor([[2, 2, 1, 1]]),  # as a mask that `generate()` lengthens by ones
        torch.tensor([[1, 0, -1, 1]]),
        torch.tensor([[1.0, 1.0, 2.0, 2.0]]),
        torch.tensor([[1.0, 1.0, 0.5, 1.0]]),
        torch.tensor([[0.0, 0.0, -1e9, -1e9]]),
    ],
    ids=str,
)
def test_other_numbers_in_a_mask_are_refused(mask):
    with pytest.raises(ValueError, match="`attention_mask` has values other than 0 and 1.*rise along each row"):
        tiny_model()(random_ids(1, 4), attention_mask=mask)


def test_documents_do_not_stand_beside_a_cache_with_tokens_nor_in_a_layer_alone_nor_in_a_compiled_model():
    model, input_ids, mask = tiny_model(), random_ids(1, 8), torch.tensor([[1] * 5 + [2] * 3])
    cache = DynamicCache(config=model.config)
    model(input_ids[:, :4], mask[:, :4], cache=cache)
    with pytest.raises(ValueError, match="`attention_mask` with numbers beyond 1 tell packed sequences apart, but"):
        model(input_ids[:, 4:], mask, cache=cache)
    with pytest.raises(ValueError, match="`attention_mask` numbers packed documents.*one sequence per row"):
        LatentAttention(tiny_config())(torch.randn(1, 8, 16), mask)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(input_ids, mask.clamp(max=1)).logits, model(input_ids).logits)
    with pytest.raises(RuntimeError, match="values other than 0 and 1, which a compiled model does not take"):
        compiled(input_ids, mask)


def test_generation_goes_on_with_the_last_document_or_refuses():
    model, input_ids, mask = double_model(), random_ids(1, 8), torch.tensor([[1] * 5 + [2] * 3])
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    alone = model.generate(input_ids[:, 5:], attention_mask=torch.ones(1, 3, dtype=torch.long), **settings)
    for more in ({}, {"num_beams": 1, "prompt_lookup_num_tokens": 2}):
        packed = model.generate(input_ids, attention_mask=mask, **settings, **more)
        assert packed[0, 8:].tolist() == alone[0, 3:].tolist()
    for more in ({"use_cache": False}, {"prefill_chunk_size": 3}):
        with pytest.raises(ValueError, match="`attention_mask`"):
            model.generate(input_ids, attention_mask=mask, **settings, **more)
