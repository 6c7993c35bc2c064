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
"""Properties 9 to 11 of docs/architecture.md: precision of numbers, attention backends, and memory of a forward."""

import pytest
import torch

from common import in_direction, random_ids, tiny_config, tiny_model
from contract_cases import some_statistics, tensors
from modeling_latent import LatentAttentionForCausalLM
from modeling_latent.cache_name import cache_of
from modeling_latent.local_attention import rotary_embedding
from modeling_latent.prefix_statistics import Statistics, chunk_statistics, empty_statistics, exclusive_prefix, merge


# 9. Precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_9_half_precision_is_close_to_float32_at_16384_tokens(dtype):
    """Relative error of the logits, norm over norm, under 3e-2, with the weights that training starts from."""
    torch.manual_seed(0)
    config = tiny_config(hidden_size=64, num_latents=16, chunk_size=64, vocab_size=97)
    model = LatentAttentionForCausalLM(config).eval()
    input_ids = random_ids(1, 16_384, vocab_size=97)
    with torch.no_grad():
        expected = model(input_ids).logits
        outputs = model.to(dtype)(input_ids, use_cache=True)
    assert (outputs.logits.float() - expected).norm() / expected.norm() < 3e-2
    statistics = cache_of(outputs).layers[0].state.memory.statistics
    assert {tensor.dtype for tensor in statistics} == {torch.float32}


@pytest.mark.parametrize("peak", [0.0, 30.0, 300.0])
@pytest.mark.parametrize("how", ["one by one", "by prefix"])
def test_9_what_a_long_text_is_worth_does_not_drift(how, peak):
    """5,000 chunks after a million: relative error under 1e-5 of float64, at whatever size of the scores."""
    noise = some_statistics(1, 5000, 1, 8, head_dim=2)
    chunks = noise._replace(peak=peak + 0.3 * noise.peak, out=1 + 0.5 * noise.out)
    known = Statistics(torch.full((1, 1, 8), peak), torch.full((1, 1, 8), 1.5e6), torch.full((1, 1, 8, 2), 0.7))

    def read(known: Statistics, chunks: Statistics) -> torch.Tensor:
        if how == "by prefix":
            return exclusive_prefix(chunks, known).out[:, -1]
        for chunk in zip(*(tensor.unbind(1) for tensor in chunks), strict=True):
            known = merge(known, Statistics(*chunk))
        return known.out

    expected = read(*(Statistics(*(tensor.double() for tensor in part)) for part in (known, chunks)))
    torch.testing.assert_close(read(known, chunks).double(), expected, atol=0, rtol=1e-5)


def test_9_a_text_that_says_the_same_for_ever_leaves_the_latents_as_they_are():
    chunk = some_statistics(1, 1, 8)
    known = Statistics(chunk.peak, 1e6 * chunk.total, chunk.out)
    for _ in range(1000):
        known = merge(known, chunk)
    assert torch.equal(known.out, chunk.out)


def test_9_statistics_merge_in_float32_under_autocast():
    chunks = some_statistics(1, 9, 2, 3)
    first = empty_statistics((1, 2, 3), 4, torch.float32, "cpu")
    expected = exclusive_prefix(chunks, first)
    with torch.autocast("cpu", torch.bfloat16):
        merged = exclusive_prefix(chunks, first)
    assert all(map(torch.equal, merged, expected))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_9_statistics_of_a_chunk_are_float32(dtype):
    """By themselves, before they are merged with others."""
    queries, keys, values = torch.randn(2, 4, 8, dtype=dtype), *torch.randn(2, 3, 2, 4, 8, dtype=dtype)
    statistics = chunk_statistics(queries, keys, values, 1.0, 0.0)
    assert {tensor.dtype for tensor in statistics} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_9_rotary_angles_are_computed_in_float32(dtype):
    config, like = tiny_config(), torch.empty(0)
    expected = rotary_embedding(config, 512, like).to(dtype)
    assert torch.equal(rotary_embedding(config, 512, like.to(dtype)), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_9_large_scores_stay_finite_forward_and_backward(dtype):
    model = tiny_model()
    with torch.no_grad():
        for layer in model.model.layers:
            for name, module in layer.named_modules():
                if name.endswith("q_proj"):
                    module.weight.mul_(100)
    model.to(dtype)
    logits = model(random_ids(1, 41)).logits
    logits.float().square().mean().backward()
    assert torch.isfinite(logits).all()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


# 10. Attention backends


@pytest.mark.parametrize("backend", ["sdpa", "flex_attention"])
@pytest.mark.parametrize("is_causal", [True, False])
def test_10_backends_agree_with_eager(backend, is_causal):
    torch.compiler.reset()  # flex attention compiles; on a CPU its kernels for dynamic shapes do not build
    overrides = in_direction(is_causal, {"num_sink_tokens": 2})
    model = tiny_model(num_hidden_layers=1, layer_pattern=["both"], **overrides)
    input_ids, mask = random_ids(2, 11), torch.ones(2, 11, dtype=torch.long)
    mask[0, :3] = 0
    logits = {}
    with torch.no_grad():  # flex attention has no backward pass on a CPU
        for name in ("eager", backend):
            model.set_attn_implementation(name)
            assert model.model.layers[0].latent_attention.latent_self.config._attn_implementation == name
            logits[name] = model(input_ids, attention_mask=mask).logits[mask.bool()]
    torch.testing.assert_close(logits[backend], logits["eager"], atol=1e-5, rtol=0)


def test_10_every_step_goes_through_the_attention_interface(monkeypatch):
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    sdpa, calls = ALL_ATTENTION_FUNCTIONS["sdpa"], []

    def counting(module, *args, **kwargs):
        calls.append(module)
        return sdpa(module, *args, **kwargs)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, "sdpa", counting)
    for is_causal, expected in ((True, 3), (False, 4)):
        model = tiny_model(is_causal=is_causal, num_hidden_layers=1, layer_pattern=["both"])
        calls.clear()
        model(random_ids(1, 9))
        layer = model.model.layers[0]
        steps = [layer.local_attention, layer.latent_attention.latent_self, layer.latent_attention.latent_to_input]
        steps += [] if is_causal else [layer.latent_attention.input_to_latent]
        assert len(calls) == expected
        assert {id(module) for module in calls} == {id(module) for module in steps}


def test_10_flash_attention_is_a_clear_error():
    """Whether it is installed or not: it takes no mask, and local attention needs one."""
    with pytest.raises((ValueError, ImportError), match="[Ff]lash"):
        tiny_model().set_attn_implementation("flash_attention_2")


# 11. Memory


def test_11_activations_are_linear_in_the_number_of_tokens():
    """Bytes that autograd keeps for the backward pass, 4 times the tokens: at most 4.3 times as many."""
    model, kept = tiny_model(num_hidden_layers=1, layer_pattern=["both"], chunk_size=16, num_sink_tokens=4), []
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    for length in (4096, 16_384):
        storages = {}

        def pack(tensor, storages=storages):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in parameters:
                storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = model(random_ids(1, length), use_cache=False).logits
        kept.append(sum(storages.values()))
        del output
    assert 3.9 < kept[1] / kept[0] < 4.3


def test_11_no_single_tensor_of_a_forward_grows_faster_than_the_tokens():
    """The prefix weights of N chunks would be N x N: no tensor may be more than linear in the tokens."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            self.largest = max([self.largest, *(leaf.numel() for leaf in tensors(result))])
            return result

    model, largest = tiny_model(num_hidden_layers=1, layer_pattern=["both"], chunk_size=1, num_sink_tokens=1), []
    for length in (2048, 8192):
        with Largest() as mode, torch.no_grad():
            model(random_ids(1, length), use_cache=False, logits_to_keep=1)
        largest.append(mode.largest)
    assert largest[1] <= 4.3 * largest[0]
