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
"""Weights quantized by bitsandbytes: the model generates with them, and an adapter is trained beside them (QLoRA)."""

import peft
import pytest
import torch
from transformers import BitsAndBytesConfig, set_seed

from common import random_ids, tiny_config
from modeling_latent import LatentAttentionForCausalLM


SIZES = {"hidden_size": 64, "intermediate_size": 128, "vocab_size": 64, "num_latents": 8, "initializer_range": 0.125}
# How much of the logits may change: rounding to 8 bits, and to 16 values.
FORMS = {
    "8 bits": ({"load_in_8bit": True}, 0.03),
    "4 bits": ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32}, 0.3),
}
every_form = pytest.mark.parametrize(("settings", "change"), FORMS.values(), ids=FORMS)


@pytest.fixture
def original(tmp_path) -> LatentAttentionForCausalLM:
    set_seed(0)
    model = LatentAttentionForCausalLM(tiny_config(**SIZES, num_sink_tokens=2)).eval()
    model.save_pretrained(tmp_path)
    return model


def quantized(folder, settings: dict) -> LatentAttentionForCausalLM:
    config = BitsAndBytesConfig(**settings)
    return LatentAttentionForCausalLM.from_pretrained(folder, quantization_config=config, dtype=torch.float32)


@every_form
def test_a_quantized_model_says_nearly_the_same_and_generates(settings, change, original, tmp_path):
    model, input_ids = quantized(tmp_path, settings), random_ids(2, 22)
    plain = {name for name, module in model.named_modules() if type(module) is torch.nn.Linear}
    assert plain == {"lm_head"}
    expected, logits = original(input_ids).logits, model(input_ids).logits
    assert 1e-4 < (logits - expected).norm() / expected.norm() < change
    options = {
        "attention_mask": torch.ones_like(input_ids),
        "max_new_tokens": 9,
        "do_sample": False,
        "pad_token_id": 0,
    }
    options["attention_mask"][0, :3] = 0
    generated = model.generate(input_ids, **options)
    mask = torch.nn.functional.pad(options["attention_mask"], (0, 9), value=1)
    logits = model(generated, mask, use_cache=False).logits[:, 21:-1]
    # Activations are rounded a little differently beside others: a near tie may be broken the other way.
    short_of_the_likeliest = logits.amax(-1) - logits.gather(-1, generated[:, 22:, None])[..., 0]
    assert short_of_the_likeliest.max() < 0.1


@every_form
@pytest.mark.filterwarnings("ignore:.*checkpointing.*:FutureWarning")  # peft asks by the old name
def test_an_adapter_learns_beside_quantized_weights(settings, change, original, tmp_path):
    base = peft.prepare_model_for_kbit_training(quantized(tmp_path, settings))
    model = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"))
    optimizer = torch.optim.Adam([weight for weight in model.parameters() if weight.requires_grad], lr=1e-2)
    losses, input_ids = [], random_ids(4, 22)
    for _ in range(5):
        optimizer.zero_grad()
        loss = model(input_ids=input_ids, labels=input_ids).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert [name for name, weight in trained.items() if weight.grad is None] == []
