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
"""Two processes that train side by side, or share one model: tensor parallel, sharded and as a pipeline."""

import re
from pathlib import Path

import pytest
import torch
from torch import distributed
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers.distributed import DistributedConfig

from common import random_ids, tiny_config, tiny_model
from modeling_latent import LatentAttentionForCausalLM, LatentAttentionForMaskedLM
from ranks import run_ranks
from training import LENGTH, close, fixed_seed, gradients  # noqa: F401 (a fixture)


def train_beside_another(folder: Path) -> dict:
    """One of two processes: the first has rows of several chunks, the second rows of one."""
    model = DistributedDataParallel(tiny_model().train())
    input_ids = random_ids(2, (LENGTH, 3)[distributed.get_rank()])
    for _ in range(2):
        model.zero_grad()
        model(input_ids, labels=input_ids).loss.backward()
    return {name: parameter.grad for name, parameter in model.module.named_parameters()}


def test_two_processes_of_which_one_has_short_rows_take_the_mean_of_their_gradients(tmp_path):
    found = run_ranks(train_beside_another, tmp_path, 2)
    model, parts = tiny_model().train(), []
    for length in (LENGTH, 3):
        input_ids = random_ids(2, length)
        parts.append(gradients(model, input_ids=input_ids, labels=input_ids))
    expected = {name: (gradient + parts[1][name]) / 2 for name, gradient in parts[0].items()}
    for of_rank in found:
        close(of_rank, expected, atol=1e-6)


# Parallel plans


def test_the_tensor_parallel_plan_names_every_linear_layer_of_a_block_and_nothing_else():
    model = tiny_model().model
    named = set(model.config.base_model_tp_plan)
    linear = {name for name, module in model.layers.named_modules() if isinstance(module, torch.nn.Linear)}
    assert named == {re.sub(r"^\d+", "layers.*", name) for name in linear}


def run_in_parallel(folder: Path, plan: dict, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple:
    """One of two processes that share a model: its logits, generated tokens and gradients."""
    model = LatentAttentionForCausalLM.from_pretrained(folder, distributed_config=DistributedConfig(**plan))
    whole = [name for name, tensor in model.named_parameters() if not isinstance(tensor, DTensor)]
    outputs = model(input_ids, attention_mask=attention_mask, labels=input_ids)
    grads = {}
    if outputs.loss is not None:  # a pipeline has none
        outputs.loss.backward()
        grads = {name: tensor.grad for name, tensor in model.named_parameters()}
        grads = {name: grad.full_tensor() if isinstance(grad, DTensor) else grad for name, grad in grads.items()}
    generated = model.generate(input_ids, attention_mask=attention_mask, **GREEDY)
    return outputs.logits.detach(), generated, grads, whole


GREEDY = {"max_new_tokens": 9, "do_sample": False, "pad_token_id": 0}
PLANS = {"tensor": {"tp_plan": "auto"}, "sharded": {"fsdp_size": 2}, "pipeline": {"pp_size": 2}}


@pytest.mark.parametrize(("parallel", "tied"), [("tensor", False), ("sharded", True), ("pipeline", True)])
def test_two_processes_that_share_a_model_equal_one(parallel, tied, tmp_path):
    model, input_ids = tiny_model(vocab_size=32, tie_word_embeddings=tied), random_ids(2, LENGTH)
    inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
    inputs["attention_mask"][0, :3] = 0
    real = inputs["attention_mask"].bool()
    model.save_pretrained(tmp_path)
    for logits, generated, grads, whole in run_ranks(run_in_parallel, tmp_path, 2, PLANS[parallel], *inputs.values()):
        close(logits[real], model(**inputs).logits[real])
        assert torch.equal(generated, model.generate(**inputs, **GREEDY))
        if parallel == "tensor":
            assert not [name for name in whole if "_proj" in name or "lm_head" in name]
        if parallel == "sharded":
            assert whole == []
        if parallel != "pipeline":
            close(grads, gradients(model, **inputs, labels=input_ids))


def test_the_head_is_in_every_parallel_plan():
    model = tiny_model()
    assert model.tp_plan.keys() >= {"lm_head"} | {f"model.{name}" for name in model.config.base_model_tp_plan}
    assert model.pp_plan.keys() == {"lm_head"} | {f"model.{name}" for name in model.config.base_model_pp_plan}
    assert model.fsdp_plan.keys() == {"lm_head"} | {f"model.{name}" for name in model.config.base_model_fsdp_plan}
    assert "lm_head" in LatentAttentionForMaskedLM(tiny_config(is_causal=False)).tp_plan


def test_the_pipeline_parallel_plan_names_modules_in_the_order_of_the_forward():
    model = tiny_model().model
    assert list(model.config.base_model_pp_plan) == [name for name, _ in model.named_children()]
