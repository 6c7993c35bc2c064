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
"""Checkpoints that an older version wrote say what they said then. How they were made is in data/README.md."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from modeling_latent import LatentAttentionForCausalLM


DATA = Path(__file__).parent / "data"


@pytest.mark.parametrize("kind", ["both", "latent"])
def test_a_checkpoint_of_version_0_1_0_gives_its_logits(kind, tmp_path):
    folder = DATA / "v0.1.0" / kind
    recorded = load_file(folder / "outputs.safetensors")
    model, loading = LatentAttentionForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(loading.values())
    assert model.config.layer_pattern == [kind] and model.config.num_sink_tokens == 0
    torch.testing.assert_close(model(recorded["input_ids"]).logits, recorded["logits"], atol=1e-5, rtol=0)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(recorded["input_ids"]).logits, model(recorded["input_ids"]).logits)
