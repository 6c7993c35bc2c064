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
"""The models that the measurements of quality compare: their state, their changes, and equal sizes."""

import pytest
import torch

from benchmarks.quality import ablations, language_model, mqar, passkey
from benchmarks.quality.changes import CHANGES
from benchmarks.quality.models import build, count_parameters, matched_shape, state_elements
from common import randomize
from modeling_latent.cache_name import cache_of
from quality_cases import SHAPE, ids


LATENT = {"num_latents": 3, "chunk_size": 4}


def random_model(model: str, **settings):
    return randomize(build(model, SHAPE, settings)).eval()


@pytest.mark.parametrize(
    "model, settings, expected",
    [
        ("full_attention", {}, 2 * 2 * 16 * 40),  # keys and values of 40 tokens in 2 layers
        ("window", {"chunk_size": 4}, 2 * (2 * 16 * 8 + 16 * 3)),  # of two chunks, and inputs of the convolution
        ("latents_and_window", LATENT, None),
        ("latents_in_every_layer", LATENT, None),
        ("latents", LATENT, None),
        ("mamba2", {"state_size": 8}, 2 * (32 * 8 + (32 + 2 * 8) * 4)),  # state and inputs of the convolution
        ("gated_delta_net", {"key_dim": 4}, 2 * (2 * 4 * 8 + 2 * (4 + 4 + 8) * 4)),
    ],
)
def test_state_elements_are_those_of_the_cache(model, settings, expected):
    built = random_model(model, **settings)
    if expected is None:
        expected = built.config.state_bytes(dtype=torch.float32) // 4 - 2 * 2  # without a counter of 8 bytes per layer
    assert state_elements(built, 40) == expected


def test_window_alone_sees_only_the_window_and_continues_from_its_cache():
    model, input_ids = random_model("window", chunk_size=4), ids(1, 23)
    changed = input_ids.clone()
    changed[0, 0] += 1
    assert not any("latent" in name for name, _ in model.named_parameters())
    # Two layers: each attends to the chunk before, and then its convolution reaches 3 tokens back. So the first one
    # brings the first token to token 10, and the second one that to the end of the fourth chunk and to token 18.
    torch.testing.assert_close(model(changed).logits[:, 19:], model(input_ids).logits[:, 19:])
    assert not torch.allclose(model(changed).logits[:, 18], model(input_ids).logits[:, 18])
    assert not torch.allclose(model(changed).logits[:, 8], model(input_ids).logits[:, 8])
    outputs, logits = model(input_ids[:, :14], use_cache=True), []
    for step in range(14, 23):
        outputs = model(input_ids[:, step : step + 1], cache=cache_of(outputs))
        logits.append(outputs.logits)
    torch.testing.assert_close(torch.cat(logits, 1), model(input_ids).logits[:, 14:], atol=1e-5, rtol=1e-4)


def test_without_refinement_is_the_model_whose_refinement_adds_nothing():
    unrefined = random_model("latents_and_window", **LATENT, change="no refinement")
    refined = random_model("latents_and_window", **LATENT)
    assert not any("latent_self" in name or "refine" in name for name, _ in unrefined.named_parameters())
    refined.load_state_dict(unrefined.state_dict(), strict=False)
    assert not torch.allclose(refined(ids(2, 20)).logits, unrefined(ids(2, 20)).logits, atol=1e-3)
    torch.nn.init.zeros_(refined.model.layers[0].latent_attention.latent_self.o_proj.weight)
    torch.testing.assert_close(refined(ids(2, 20)).logits, unrefined(ids(2, 20)).logits)


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_model_is_another_one_and_causal(change):
    model, unchanged = (random_model("latents_and_window", **LATENT, change=name) for name in (change, None))
    # What both have is equal, so that only the change itself makes a difference.
    common = {name: tensor for name, tensor in unchanged.state_dict().items() if name in model.state_dict()}
    model.load_state_dict(
        {name: tensor for name, tensor in common.items() if tensor.shape == model.state_dict()[name].shape},
        strict=False,
    )
    input_ids = ids(2, 21)
    logits = model(input_ids).logits
    assert not torch.allclose(logits, unchanged(input_ids).logits, atol=1e-3)
    changed = input_ids.clone()
    changed[:, 9] = (changed[:, 9] + 1) % SHAPE["vocab_size"]
    torch.testing.assert_close(model(changed).logits[:, :9], logits[:, :9], rtol=0, atol=0)
    assert not torch.allclose(model(changed).logits[:, 20], logits[:, 20], atol=1e-4)


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_change_draws_starts_as_in_the_package(change):
    """Projections from the latents by their width, what refinement adds a tenth of that, branches smaller still."""
    torch.manual_seed(0)  # of 2,048 weights or more, whose deviation is within 5 % of its own at three sigma
    shape = {**SHAPE, "hidden_size": 128, "num_attention_heads": 4}
    memory = build("latents_and_window", shape, {**LATENT, "change": change}).model.layers[0].latent_attention
    branch = 128**-0.5 / (3 * SHAPE["num_hidden_layers"]) ** 0.5
    sizes = {"latent_self.o_proj": 0.1, "latent_to_input.o_proj": branch}
    for name, module in memory.named_modules():
        if isinstance(module, torch.nn.Linear):
            expected = sizes.get(name, 1.0) * module.in_features**-0.5
            assert module.weight.std().item() == pytest.approx(expected, rel=0.1), name


def test_gated_delta_net_starts_with_a_memory():
    model = build("gated_delta_net", {**SHAPE, "num_hidden_layers": 50}, {"key_dim": 4})
    steps = torch.nn.functional.softplus(torch.cat([layer.linear_attn.dt_bias for layer in model.model.layers]))
    assert 0.001 <= steps.min() < 0.002 and 0.05 < steps.max() <= 0.1  # of 100 draws, log-uniform


@pytest.mark.parametrize(
    "model, settings", [("full_attention", {}), ("mamba2", {"state_size": 16}), ("latents", LATENT)]
)
def test_models_are_matched_in_parameters(model, settings):
    shape = {**SHAPE, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4}
    wanted = count_parameters("latents_in_every_layer", shape, LATENT)
    found = count_parameters(model, matched_shape(model, shape, settings, wanted), settings)
    assert found == pytest.approx(wanted, rel=0.05)


def test_the_reduced_form_is_named_and_its_points_can_be_built():
    for module in (mqar, passkey, language_model):
        for point in module.points(module.FORMS["reduced"]):
            assert count_parameters(point["model"], point["shape"], point["settings"]) > 1000
    for task in ablations.TASKS:
        points = ablations.task_points(ablations.FORMS["reduced"], task)
        sizes = [count_parameters(point["model"], point["shape"], point["settings"]) for point in points]
        # Equal except for steps of the feed-forward width; an MLP is never narrower than twice the model.
        assert max(sizes) / min(sizes) < 1.01
        assert all(p["shape"]["intermediate_size"] >= 2 * p["shape"]["hidden_size"] for p in points)
