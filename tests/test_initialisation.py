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
"""Fresh parameters, and those that a checkpoint lacks, start with the sizes of the table."""

import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from common import randomize, tiny_config
from modeling_latent import LatentAttentionForCausalLM, LatentAttentionModel
from training import fixed_seed  # noqa: F401 (a fixture)


VOCAB = 31
WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_latents": 64, "initializer_range": 0.03}
UNIT = 256**-0.5
BRANCH = 0.03 / 6**0.5  # two layers of up to three branches
STD = {
    r"latents": 1.0,
    r"[qkv]_proj\.weight|input_to_latent\.o_proj\.weight|(gate|up)_proj\.weight": UNIT,
    r"latent_self\.o_proj\.weight": 0.1 * UNIT,
    r"(local_attention|latent_to_input)\.o_proj\.weight": BRANCH * UNIT,
    r"down_proj\.weight": BRANCH * 512**-0.5,
    r"(embed_tokens|lm_head)\.weight": 0.03,
    r"latent_attention\.token_conv\.weight": 1.0,
    r"mlp\.token_conv\.weight": 3**-0.5,
    r"bias": 0.0,
}


def assert_initialised(name: str, parameter: torch.Tensor):
    if name.endswith("norm.weight"):
        assert (parameter == 1).all(), name
        return
    (std,) = [std for pattern, std in STD.items() if re.search(rf"(^|\.)({pattern})$", name)]
    # The smallest, the convolution, has 1,024 elements: their standard deviation is within 2 % of its own.
    assert parameter.std().item() == pytest.approx(std, rel=0.1), name
    assert abs(parameter.mean().item()) <= 0.1 * std, name


@pytest.mark.parametrize("layer_pattern", [["local", "both"], ["both"], ["local", "latent"]], ids="-".join)
def test_fresh_parameters_follow_the_table(layer_pattern):
    """Whatever a layer leaves out, the others start as they do beside it."""
    settings = {"layer_pattern": layer_pattern, "vocab_size": 100, "attention_bias": True, "qk_norm": True}
    model = LatentAttentionForCausalLM(tiny_config(**WIDE, **settings))
    for name, parameter in model.named_parameters():
        assert_initialised(name, parameter)


@pytest.mark.parametrize("pad_token_id", [0, VOCAB - 1])
def test_the_embedding_of_padding_is_zero_and_gets_no_gradient(pad_token_id):
    model = LatentAttentionModel(tiny_config(pad_token_id=pad_token_id))
    embeddings, other = model.embed_tokens.weight, torch.arange(VOCAB) != pad_token_id
    model(torch.arange(VOCAB)[None]).last_hidden_state.square().sum().backward()
    for rows in (embeddings, embeddings.grad):
        assert not rows[pad_token_id].any() and rows[other].any(-1).all()


def test_missing_parameters_follow_the_table_and_loaded_ones_stay(tmp_path):
    saved = randomize(LatentAttentionForCausalLM(tiny_config(**WIDE, vocab_size=100, attention_bias=True)))
    saved.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(file).items() if ".layers.0." not in name}
    kept = {name: tensor for name, tensor in kept.items() if not re.search(r"lm_head|layers\.1.*(latents|conv)", name)}
    save_file(kept, file, metadata={"format": "pt"})
    loaded = LatentAttentionForCausalLM.from_pretrained(tmp_path)
    for name, parameter in loaded.named_parameters():
        if name in kept:
            assert torch.equal(parameter, kept[name]), name
        else:
            assert_initialised(name, parameter)
