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
"""One sequence over several ranks: logits, loss, gradients and the cache are those of one process."""

import copy

import pytest
import torch
from accelerate import ParallelismConfig
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import functional
from transformers import DynamicCache

from common import CLOSE, PATTERNS, double_model, random_ids, tiny_config
from modeling_latent import LatentAttentionForCausalLM, LatentAttentionModel
from ranks import run_ranks


MIXED = PATTERNS["mixed with sinks"]


def float64_loss(logits, labels, vocab_size, num_items_in_batch=None, shift_labels=None, **kwargs):
    """The library's, which computes in float32, in the model's own type."""
    shift_labels = functional.pad(labels[:, 1:], (0, 1), value=-100) if shift_labels is None else shift_labels
    items = (shift_labels != -100).sum() if num_items_in_batch is None else num_items_in_batch
    return functional.cross_entropy(logits.flatten(0, 1), shift_labels.flatten(), reduction="sum") / items


def plain(length: int, rows: int = 2) -> dict:
    input_ids = random_ids(rows, length)
    return {"input_ids": input_ids, "labels": input_ids}


def embedded(length: int) -> dict:
    generator = torch.Generator().manual_seed(2)
    embeddings = torch.randn(2, length, 16, dtype=torch.float64, generator=generator)
    return {"inputs_embeds": embeddings, "labels": random_ids(2, length)}


def padded(mask: torch.Tensor) -> dict:
    input_ids = random_ids(*mask.shape)
    return {"input_ids": input_ids, "attention_mask": mask, "labels": input_ids.masked_fill(mask == 0, -100)}


def rows_with_padding() -> dict:
    """Left and right padding, a hole, and a row that ends on the first rank."""
    mask = torch.ones(4, 27, dtype=torch.long)
    mask[0, :9] = mask[1, 21:] = mask[2, 3:8] = mask[3, 6:] = 0
    return padded(mask)


def packed() -> dict:
    """Documents that end before the cut, at it and behind it; one of them fills all ranks, and one is a token."""
    lengths = [[9, 5, 13], [16, 11], [27], [1, 15, 11]]
    rows = [torch.cat([torch.arange(length) for length in row]) for row in lengths]
    return plain(27, rows=4) | {"position_ids": torch.stack(rows)}


CASES = {  # fields of the configuration, and what the model is given
    "local": ({"layer_pattern": ["local"]}, plain(27)),
    "latent": ({"layer_pattern": ["latent"]}, plain(27)),
    "both": ({"layer_pattern": ["both"]}, plain(32)),
    "mixed with sinks": (MIXED, plain(29)),
    "sinks of a whole chunk": ({**MIXED, "num_sink_tokens": 4, "num_hidden_layers": 1}, plain(23)),
    "no convolutions": ({"conv_kernel_size": 0, "mlp_conv_kernel_size": 1, "layer_pattern": ["both"]}, plain(27)),
    "convolution longer than a rank": ({"chunk_size": 2, "conv_kernel_size": 8, "layer_pattern": ["both"]}, plain(9)),
    "less than a chunk": (MIXED, plain(3)),
    "padded": (MIXED, rows_with_padding()),
    "packed": (MIXED, packed()),
    "numbered documents": (MIXED, padded(torch.tensor([[1] * 9 + [2] * 14 + [0] * 4]))),
    "embeddings": (MIXED, embedded(27)),
    "count of a whole step": (MIXED, plain(27) | {"num_items_in_batch": torch.tensor(100)}),
}
PREFILLED = {"mixed with sinks": MIXED, "padded": MIXED, "latent": {"layer_pattern": ["latent"]}}
PREFILLED |= {"less than a chunk": MIXED}


def make_model(overrides: dict) -> LatentAttentionForCausalLM:
    model = double_model(**overrides).train()  # for which latents that have read nothing have gradients of zero
    model.loss_function = float64_loss
    return model


def results(model, inputs: dict) -> dict:
    outputs = model(**inputs, use_cache=False)
    outputs.loss.backward()
    found = {"logits": outputs.logits.detach(), "loss": outputs.loss.detach()}
    grads = {name: tensor.grad for name, tensor in model.named_parameters() if tensor.grad is not None}
    found["grads"] = {name: grad.full_tensor() if isinstance(grad, DTensor) else grad for name, grad in grads.items()}
    return found | ({} if outputs.token_indices is None else {"token_indices": outputs.token_indices})


@torch.no_grad()
def prefill(model, inputs: dict) -> DynamicCache:
    inputs = {name: value for name, value in inputs.items() if name != "labels"}
    return model(**inputs, use_cache=True).cache


@torch.no_grad()
def next_logits(model, cache: DynamicCache) -> torch.Tensor:
    """Of a few more tokens, the first alone and those after it together, from a copy of the cache."""
    cache, more = copy.deepcopy(cache), random_ids(cache.layers[0].state.tokens_seen.shape[0], 6, seed=3)
    return torch.cat([model(ids, cache=cache).logits for ids in (more[:, :1], more[:, 1:])], dim=1)


def share(folder) -> dict:
    """Everything that one of the ranks finds."""
    mesh, found = init_device_mesh("cpu", (distributed.get_world_size(),)), {}
    for name, (overrides, inputs) in CASES.items():
        model = make_model(overrides)
        model.enable_context_parallel(mesh)
        found[name] = results(model, inputs)
    for name, overrides in PREFILLED.items():
        model = make_model(overrides).eval()
        model.enable_context_parallel(mesh)
        found["prefilled", name] = prefilled = prefill(model, CASES[name][1])
        found["continued", name] = next_logits(model, prefilled)
    found["messages"] = messages(mesh)
    return found


def messages(mesh) -> list[str]:
    """What is refused, in a sentence."""
    model, input_ids = make_model(MIXED), random_ids(1, 9)
    model.enable_context_parallel(mesh)
    recording = DynamicCache(config=model.config)
    for layer in recording.layers:
        layer.activate_past_recording()
    calls = {
        "the same rows": lambda: model(input_ids + distributed.get_rank()),
        "leave it out, and pick by the `token_indices`": lambda: model(input_ids, logits_to_keep=1),
        "the maps are of all of its tokens": lambda: model(input_ids, output_attentions=True),
        "would wait for the others": lambda: model(input_ids, cache=recording),
        "Prefill first": lambda: model.generate(input_ids),
        "must be -100 there": lambda: model(input_ids, input_ids.new_tensor([[0] + [1] * 8]), labels=input_ids),
        "must have one alone": lambda: model.enable_context_parallel(init_device_mesh("cpu", (2, 1))),
        "is_causal": lambda: LatentAttentionModel(tiny_config(is_causal=False)).enable_context_parallel(mesh),
    }
    found = {}
    for expected, call in calls.items():
        try:
            call()
        except ValueError as error:
            found[expected] = str(error)
    return found


def whole(parts: list[dict], name: str) -> torch.Tensor:
    """`(B, T, ...)` of all ranks' slots; zeros where no rank has a token."""
    length = max(int(part["token_indices"].max()) for part in parts) + 1
    found = torch.zeros(parts[0][name].shape[0], length, *parts[0][name].shape[2:], dtype=parts[0][name].dtype)
    for part in parts:
        for row, indices in enumerate(part["token_indices"]):
            found[row, indices[indices >= 0]] = part[name][row, indices >= 0]
    return found


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> list[dict]:
    return run_ranks(share, tmp_path_factory.mktemp("ranks"), size=2)


def check_like_one_process(parts: list[dict], expected: dict, real: torch.Tensor) -> None:
    logits = whole(parts, "logits")
    torch.testing.assert_close(logits[real[:, : logits.shape[1]]], expected["logits"][real], **CLOSE)
    taken = torch.cat([part["token_indices"] for part in parts], dim=1)
    assert (taken >= 0).sum() == real.sum()
    for part in parts:
        torch.testing.assert_close(part["loss"], expected["loss"], **CLOSE)
    assert all(part["grads"].keys() == expected["grads"].keys() for part in parts)
    for name, gradient in expected["grads"].items():
        mean = torch.stack([part["grads"][name] for part in parts]).mean(0)
        torch.testing.assert_close(mean, gradient, **CLOSE, msg=name)


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_give_logits_loss_and_gradients_of_one(name, shared):
    overrides, inputs = CASES[name]
    real = inputs.get("attention_mask", torch.ones_like(inputs["labels"])).bool()
    check_like_one_process([part[name] for part in shared], results(make_model(overrides), inputs), real)


def tensors_of(state) -> list[torch.Tensor]:
    return [state] if isinstance(state, torch.Tensor) else [one for part in state or () for one in tensors_of(part)]


@pytest.mark.parametrize("name", PREFILLED)
def test_a_single_rank_decodes_from_the_cache_of_a_prefill_over_two(name, shared):
    model = make_model(PREFILLED[name]).eval()
    expected = prefill(model, CASES[name][1])
    for part in shared:
        found = part["prefilled", name]
        assert found.get_seq_length() == expected.get_seq_length()
        for layer, layer_of_one in zip(found.layers, expected.layers, strict=True):
            torch.testing.assert_close(tensors_of(layer.state), tensors_of(layer_of_one.state), **CLOSE)
        torch.testing.assert_close(next_logits(model, found), next_logits(model, expected), **CLOSE)
        torch.testing.assert_close(part["continued", name], next_logits(model, expected), **CLOSE)


def test_what_ranks_that_share_sequences_cannot_give_is_refused_in_a_sentence(shared):
    for part in shared:
        for expected, message in part["messages"].items():
            assert expected in message
        assert len(part["messages"]) == 8


def share_among_four(folder) -> list[dict]:
    """Two groups of two ranks: each group has rows of its own, and all share the parameters, by FSDP2."""
    mesh, found = ParallelismConfig(dp_shard_size=2, cp_size=2).get_device_mesh("cpu"), []
    for overrides, inputs in (CASES["padded"], CASES["packed"]):
        model = make_model(overrides)
        model.enable_context_parallel(mesh)
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh["dp_shard_cp"])
        fully_shard(model, mesh=mesh["dp_shard_cp"])
        half = slice(0, 2) if mesh.get_local_rank("dp_shard") == 0 else slice(2, 4)
        found.append(results(model, {name: value[half] for name, value in inputs.items()}))
    return found


def test_data_parallel_and_sharded_parameters_compose_with_it_on_one_mesh(tmp_path):
    ranks = run_ranks(share_among_four, tmp_path, size=4)
    for index, name in enumerate(("padded", "packed")):
        overrides, inputs = CASES[name]
        halves = [{name: value[half] for name, value in inputs.items()} for half in (slice(0, 2), slice(2, 4))]
        expected = [results(make_model(overrides), half) for half in halves]
        for rank, part in enumerate(ranks):
            torch.testing.assert_close(part[index]["loss"], expected[rank // 2]["loss"], **CLOSE)
            for parameter, gradient in part[index]["grads"].items():
                mean = sum(one["grads"][parameter] for one in expected) / 2
                torch.testing.assert_close(gradient, mean, **CLOSE, msg=parameter)
