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
"""Adapters and tuned prompts of peft."""

import peft
import pytest
import torch

from common import random_ids, tiny_model
from training import LENGTH, close, fixed_seed  # noqa: F401 (a fixture)


@pytest.mark.filterwarnings("ignore:.*checkpointing.*:FutureWarning")  # peft asks by the old name
def test_lora_trains_merges_saves_and_loads(tmp_path):
    input_ids = random_ids(2, LENGTH)
    settings = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"])
    model = peft.get_peft_model(tiny_model(), settings)
    before = model(input_ids=input_ids, labels=input_ids).loss.item()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(10):
        model(input_ids=input_ids, labels=input_ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    trained = model.eval()(input_ids=input_ids, labels=input_ids)
    assert trained.loss.item() < before - 0.2
    adapted = {name for name, module in model.named_modules() if hasattr(module, "lora_A")}
    assert len(adapted) == 2 * (1 + 4)  # projections of each attention, in a layer without latents and one with them

    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(tiny_model(), tmp_path)
    close(loaded(input_ids=input_ids).logits, trained.logits, atol=1e-6)
    close(model.merge_and_unload()(input_ids).logits, trained.logits, atol=1e-4)


def two_adapters(**settings) -> peft.PeftModel:
    settings = peft.LoraConfig(task_type="CAUSAL_LM", r=2, init_lora_weights=False, **settings)
    torch.manual_seed(0)
    model = peft.get_peft_model(tiny_model(), settings, adapter_name="one")
    model.add_adapter("two", settings)
    return model.eval()


def test_rows_take_adapters_of_their_own_in_local_attention_and_mlp():
    model = two_adapters(target_modules=r".*\.(local_attention|mlp)\..*_proj")
    input_ids = random_ids(3, LENGTH)
    names = ["two", "one", "two"]
    together = model(input_ids=input_ids, adapter_names=names).logits
    for row, name in enumerate(names):
        model.set_adapter(name)
        close(together[row : row + 1], model(input_ids=input_ids[row : row + 1]).logits, atol=1e-5)


STATES_OF_THREE_DIMENSIONS = {
    "OFT": peft.OFTConfig(target_modules=r".*_proj", oft_block_size=4),
    "GraLoRA": peft.GraloraConfig(target_modules=r".*_proj", r=4, gralora_k=2),
}


@pytest.mark.parametrize("kind", STATES_OF_THREE_DIMENSIONS)
def test_adapters_that_ask_for_three_dimensions_train(kind):
    input_ids = random_ids(2, LENGTH)
    model = peft.get_peft_model(tiny_model(), STATES_OF_THREE_DIMENSIONS[kind])
    before = model(input_ids=input_ids).logits
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        model(input_ids=input_ids, labels=input_ids).loss.backward()
        optimizer.step()
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert [name for name, weight in trained.items() if weight.grad is None] == []
    logits = model.eval()(input_ids=input_ids).logits
    assert (logits - before).abs().max() > 1e-3
    generated = model.generate(input_ids=input_ids, max_new_tokens=1, do_sample=False, pad_token_id=0)
    assert torch.equal(generated[:, -1], logits[:, -1].argmax(-1))


@pytest.mark.parametrize("is_causal", [True, False])
def test_every_linear_layer_gets_three_dimensions(is_causal):
    """As in the library's models, and as LLM.int8 asks for."""
    model, shapes, input_ids = tiny_model(is_causal=is_causal), [], random_ids(2, LENGTH)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(lambda module, args: shapes.append(args[0].shape))
    model(input_ids, attention_mask=torch.ones_like(input_ids))
    model(input_ids, position_ids=torch.arange(LENGTH).remainder(5).expand(2, -1))
    if is_causal:
        model.generate(input_ids, max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert {len(shape) for shape in shapes} == {3}


def test_activated_lora_is_refused():
    """It would act on the wrong tokens."""
    settings = {"target_modules": r".*mlp.*_proj", "task_type": "CAUSAL_LM", "alora_invocation_tokens": [5, 6]}
    model = peft.get_peft_model(tiny_model(), peft.LoraConfig(**settings))
    with pytest.raises(ValueError, match=r"`default` has `alora_invocation_tokens` \[5, 6\], but must have none"):
        model(input_ids=random_ids(2, LENGTH))


def test_rows_are_not_taken_for_latents():
    """A batch of as many rows as there are latents would give each latent the adapter of a row."""
    model = two_adapters(target_modules=["q_proj"])
    with pytest.raises(ValueError, match="Length of `adapter_names` should be the same as the number of inputs"):
        model(input_ids=random_ids(model.config.num_latents, LENGTH), adapter_names=["one", "two", "one"])


@pytest.mark.filterwarnings("ignore")  # of peft, which asks by old names
def test_a_tuned_prompt_stands_in_front_of_the_text_and_learns():
    settings = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=6)
    model = peft.get_peft_model(tiny_model(), settings).eval()
    model.prompt_encoder["default"].embedding.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    base, input_ids = model.get_base_model(), random_ids(2, LENGTH)

    def behind_the_prompt(input_ids: torch.Tensor) -> torch.Tensor:
        inputs_embeds = torch.cat([model.get_prompt(2), base.get_input_embeddings()(input_ids)], dim=1)
        return base(inputs_embeds=inputs_embeds).logits[:, 6:]

    outputs = model(input_ids=input_ids, labels=input_ids)
    close(outputs.logits[:, 6:], behind_the_prompt(input_ids), atol=1e-6)
    outputs.loss.backward()
    assert model.prompt_encoder["default"].embedding.weight.grad.abs().sum(1).min() > 0
    # Without a cache: with one, peft 0.21 inserts the prompt before every token if transformers is 5.24.
    kwargs = {"attention_mask": torch.ones_like(input_ids), "max_new_tokens": 9, "use_cache": False}
    expected = input_ids
    for _ in range(9):
        expected = torch.cat([expected, behind_the_prompt(expected)[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(model.generate(input_ids=input_ids, do_sample=False, **kwargs), expected)
