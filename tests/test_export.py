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
"""Exports to `torch.export` and ONNX, by torch and by transformers' own exporters, and traces.

And the engines that must not take the model.
"""

import copy
import inspect

import onnxruntime
import pytest
import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.exporters import base
from transformers.exporters.exporter_dynamo import DynamoConfig, DynamoExporter
from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter
from transformers.exporters.utils import decompose_for_generation

import modeling_latent
from common import in_direction, one_layer, random_ids, tiny_model
from modeling_latent.cache_name import CACHE_NAME, cache_of
from training import LENGTH, close, fixed_seed, padded_batch  # noqa: F401 (a fixture)


EXPORTERS = {"torch": (DynamoExporter, DynamoConfig), "onnx": (OnnxExporter, OnnxConfig)}
CACHES = {
    "dynamic": GenerationConfig(use_cache=True),
    "static": GenerationConfig(use_cache=True, cache_implementation="static", max_cache_len=64),
}
PROMPT = 7  # tokens: a chunk and a part of one
can_run_exports = pytest.mark.skipif(
    not hasattr(base, "ExportedModel"), reason="this version of transformers exports programs, but does not run them"
)


def exportable_model() -> modeling_latent.LatentAttentionForCausalLM:
    return one_layer(num_sink_tokens=2)


def padded_prompt(ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """The rows differ in length, so that they enter their chunks at different steps."""
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    return {"input_ids": ids, "attention_mask": mask}


def stages(model, ids: torch.Tensor, cache: str, **settings) -> dict:
    """Prefill and decoding as `generate()` calls them: the model and its arguments, by name."""
    return decompose_for_generation(model, padded_prompt(ids), generation_config=CACHES[cache], **settings)


def export(backend: str, model, inputs: dict, **settings):
    exporter, config = EXPORTERS[backend]
    return exporter().export(model, copy.deepcopy(inputs), config=config(**settings))


# The library's exporters. Dynamic shapes, and the grid of the library's own tests, are in deep_export.py, which takes
# minutes.


@can_run_exports
@torch.no_grad()
@pytest.mark.parametrize("backend, cache", [("torch", "dynamic"), ("torch", "static"), ("onnx", "dynamic")])
def test_exported_steps_go_on_as_one_forward_does(backend, cache):
    model, ids = exportable_model(), random_ids(2, PROMPT + 9)  # nine steps, in which each row enters two chunks
    expected = model(**padded_prompt(ids)).logits
    (_, prefill_inputs), (_, step_inputs) = stages(model, ids[:, :PROMPT], cache).values()
    prefill = export(backend, model, prefill_inputs, dynamic=False)
    step = export(backend, model, step_inputs, dynamic=False)
    outputs = prefill(**copy.deepcopy(prefill_inputs))
    for token in range(PROMPT, PROMPT + 9):
        new = {"input_ids": ids[:, token : token + 1], CACHE_NAME: cache_of(outputs)}
        outputs = step(**{**step_inputs, **new})
        torch.testing.assert_close(outputs.logits[:, 0], expected[:, token], atol=1e-4, rtol=1e-4)
        assert cache_of(outputs).get_seq_length() == token + 1


def test_a_state_is_rebuilt_as_plain_tuples_are():
    # As the library's exporters and others do that know no named tuples.
    def rebuilt(parts):
        return type(parts)(rebuilt(part) for part in parts) if isinstance(parts, tuple) else parts

    state = cache_of(exportable_model()(random_ids(2, PROMPT))).layers[0].state
    again = rebuilt(state)
    assert isinstance(again, type(state)) and again._fields == state._fields
    assert again.memory.statistics._asdict() == state.memory.statistics._asdict()  # the very tensors
    assert again.window.keys is state.window.keys and again._replace(window=None).memory is again.memory


# torch's own exporters


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("padded", [False, True])
def test_exported_forward_equals_eager(is_causal, padded):
    model, inputs = tiny_model(**in_direction(is_causal, {"num_sink_tokens": 2})), padded_batch()
    inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")[: 1 + padded]}
    program = torch.export.export(model, (), {**inputs, "use_cache": False}, strict=False)
    close(program.module()(**inputs, use_cache=False).logits, model(**inputs).logits)


def test_exported_forward_takes_other_batch_sizes_and_lengths():
    model = one_layer(num_sink_tokens=2)
    shapes = {"input_ids": {0: torch.export.Dim("batch"), 1: torch.export.Dim.AUTO}, "use_cache": None}
    inputs = {"input_ids": random_ids(2, LENGTH), "use_cache": False}
    program = torch.export.export(model, (), inputs, dynamic_shapes=shapes, strict=False)
    for batch, length in ((3, 9), (1, 33)):  # as the one it was made with, not multiples of the chunk
        input_ids = random_ids(batch, length)
        close(program.module()(input_ids=input_ids, use_cache=False).logits, model(input_ids).logits)


@pytest.mark.parametrize("is_causal", [True, False])
def test_onnx_gives_the_same_at_any_batch_size_and_length(is_causal, tmp_path):
    model = one_layer(**in_direction(is_causal, {"num_sink_tokens": 2}), use_cache=False)
    inputs = {name: padded_batch()[name] for name in ("input_ids", "attention_mask")}
    torch.onnx.export(
        model,
        (),
        tmp_path / "model.onnx",
        kwargs=inputs,
        dynamic_shapes={name: {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO} for name in inputs},
        dynamo=True,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for rows, tokens in ((3, LENGTH), (1, 9), (2, 33), (2, 16)):
        input_ids, mask = random_ids(rows, tokens), torch.ones(rows, tokens, dtype=torch.long)
        mask[0, :2] = 0
        feed = {"input_ids": input_ids.numpy(), "attention_mask": mask.numpy()}
        logits = torch.from_numpy(session.run(None, feed)[0])
        expected = model(input_ids, attention_mask=mask).logits
        close(logits[mask.bool()], expected[mask.bool()], atol=1e-4)


@pytest.mark.filterwarnings("ignore")  # tracing warns of every shape that it takes for a constant
def test_a_trace_made_with_a_full_mask_takes_padding():
    class Logits(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, input_ids, attention_mask):
            return self.model(input_ids, attention_mask=attention_mask, use_cache=False).logits

    model, inputs = one_layer(num_sink_tokens=2), padded_batch()
    input_ids, mask = inputs["input_ids"], inputs["attention_mask"]
    traced = torch.jit.trace(Logits(model), (input_ids, torch.ones_like(mask)), check_trace=False)
    close(traced(input_ids, mask)[mask.bool()], model(input_ids, mask).logits[mask.bool()])


# Engines


def test_no_engine_with_pages_of_keys_and_values_takes_a_model():
    models = [
        model
        for name, model in inspect.getmembers(modeling_latent, inspect.isclass)
        if issubclass(model, PreTrainedModel) and name.startswith("LatentAttention")
    ]
    assert len(models) == 7
    for model in models:  # vLLM and SGLang ask the class, and take one that says no for none of theirs
        assert not model.is_backend_compatible()
