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
"""Loading in all the ways of the library: shards, device maps, offloaded layers, empty models, resized embeddings."""

from pathlib import Path

import accelerate
import pytest
import torch

from common import random_ids, tiny_model
from modeling_latent import LatentAttentionForCausalLM
from training import LENGTH, close, fixed_seed  # noqa: F401 (a fixture)


@pytest.mark.parametrize("size", [40, 20])
@pytest.mark.parametrize("tied", [True, False])
def test_resized_embeddings_keep_the_old_logits_and_survive_saving(tied, size, tmp_path):
    model, input_ids = tiny_model(tie_word_embeddings=tied), random_ids(2, LENGTH, vocab_size=20)
    before = model(input_ids).logits
    model.resize_token_embeddings(size)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    logits = model(input_ids, labels=input_ids).logits
    assert logits.shape == (2, LENGTH, size)
    close(logits[..., :20], before[..., :20])
    model.save_pretrained(tmp_path)
    loaded = LatentAttentionForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.vocab_size == size
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied
    assert torch.equal(loaded(input_ids).logits, logits)


@pytest.fixture
def sharded(tmp_path) -> tuple[LatentAttentionForCausalLM, Path]:
    model = tiny_model()
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    return model, tmp_path


@pytest.mark.parametrize("device_map", [None, "cpu", "auto", {"": "cpu"}])
def test_shards_load_on_any_device_map(device_map, sharded):
    model, folder = sharded
    input_ids = random_ids(2, LENGTH)
    loaded = LatentAttentionForCausalLM.from_pretrained(folder, device_map=device_map)
    close(loaded(input_ids.to(loaded.device)).logits.cpu(), model(input_ids).logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_dtype_auto_is_the_saved_one(dtype, tmp_path):
    tiny_model(dtype=dtype).save_pretrained(tmp_path)
    loaded = LatentAttentionForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}


def test_a_device_map_never_splits_a_block():
    """Its parts would meet on two devices, at the residual connections."""
    model = tiny_model(num_hidden_layers=4, layer_pattern=["both"])
    nbytes = sum(tensor.nbytes for tensor in model.model.layers[0].parameters())
    memory = {"cpu": model.model.embed_tokens.weight.nbytes + 5 * nbytes // 2, "disk": 10**9}
    device_map = accelerate.infer_auto_device_map(model, memory, no_split_module_classes=model._no_split_modules)
    blocks = {name: device for name, device in device_map.items() if name.startswith("model.layers")}
    assert blocks.keys() == {f"model.layers.{index}" for index in range(4)}
    assert set(blocks.values()) == {"cpu", "disk"}


def test_layers_offloaded_to_disk_give_the_same_logits_and_text(sharded, tmp_path):
    model, folder = sharded
    input_ids = random_ids(2, LENGTH)
    device_map = {"model.embed_tokens": "cpu", "model.norm": "cpu", "lm_head": "cpu"}
    device_map |= {"model.layers.0": "disk", "model.layers.1": "cpu"}
    loaded = LatentAttentionForCausalLM.from_pretrained(
        folder, device_map=device_map, offload_folder=tmp_path / "offloaded"
    )
    assert loaded.model.layers[0].latent_attention.latents.device.type == "meta"
    assert torch.equal(loaded(input_ids).logits, model(input_ids).logits)
    options = {"max_new_tokens": 9, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(loaded.generate(input_ids, **options), model.generate(input_ids, **options))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("make_empty", [lambda: torch.device("meta"), accelerate.init_empty_weights])
def test_a_model_on_the_meta_device_takes_a_state_dict(make_empty, tied):
    model, input_ids = tiny_model(tie_word_embeddings=tied), random_ids(2, LENGTH)
    with make_empty():
        empty = LatentAttentionForCausalLM(model.config).eval()
    assert all(tensor.device.type == "meta" for tensor in (*empty.parameters(), *empty.buffers()))
    empty.load_state_dict(model.state_dict(), assign=True)
    assert torch.equal(empty(input_ids).logits, model(input_ids).logits)


def test_an_empty_model_is_loaded_and_dispatched_by_accelerate(sharded):
    model, folder = sharded
    input_ids = random_ids(2, LENGTH)
    with accelerate.init_empty_weights():
        empty = LatentAttentionForCausalLM(model.config).eval()
    loaded = accelerate.load_checkpoint_and_dispatch(empty, folder, device_map="auto")
    close(loaded(input_ids.to(loaded.device)).logits.cpu(), model(input_ids).logits)


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_weights_offloaded_by_accelerate_give_the_same_logits(where, tmp_path):
    model, input_ids = tiny_model(), random_ids(2, LENGTH)
    expected = model(input_ids).logits
    if where == "memory":
        accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    else:
        accelerate.disk_offload(model, tmp_path, execution_device=torch.device("cpu"))
    assert all(parameter.device.type == "meta" for parameter in model.parameters())
    assert torch.equal(model(input_ids).logits, expected)
