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
"""`torch.compile` of the whole forward and backward: equal to what is not compiled, or refused."""

import pytest
import torch
from transformers import DataCollatorWithFlattening, DynamicCache

from common import in_direction, one_layer, random_ids
from modeling_latent import LatentAttentionForCausalLM
from training import LENGTH, close, fixed_seed, gradients, padded_batch  # noqa: F401 (a fixture)


@pytest.fixture
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def assert_compiled_equals_eager(model: LatentAttentionForCausalLM, **inputs):
    expected_loss, expected = model(**inputs).loss, gradients(model, **inputs)
    model.zero_grad(set_to_none=True)
    # Captures the forward and the backward whole; which code is then made of the graphs is not this model's matter.
    loss = torch.compile(model, fullgraph=True, backend="aot_eager")(**inputs).loss
    loss.backward()
    close(loss, expected_loss)
    close({name: parameter.grad for name, parameter in model.named_parameters()}, expected)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("is_causal", [True, False])
def test_compiled_forward_and_backward_equal_eager(is_causal, padded, fresh_compiler):
    inputs = padded_batch()
    if not padded:
        del inputs["attention_mask"]
    assert_compiled_equals_eager(one_layer(**in_direction(is_causal, {"num_sink_tokens": 2})).train(), **inputs)


def test_compiled_packed_documents_equal_eager(fresh_compiler):
    collator = DataCollatorWithFlattening(return_position_ids=False, return_flash_attn_kwargs=True)
    batch = collator([{"input_ids": random_ids(length).tolist()} for length in (5, 8, 1)])
    assert_compiled_equals_eager(one_layer(num_sink_tokens=2).train(), **batch)


def test_compiled_takes_position_ids_that_do_not_restart_and_refuses_others(fresh_compiler):
    model, input_ids = one_layer(), random_ids(1, LENGTH)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    position_ids = torch.arange(LENGTH)[None]
    close(compiled(input_ids, position_ids=position_ids, use_cache=False).logits, model(input_ids).logits)
    with pytest.raises(RuntimeError, match="cu_seq_lens_q"):
        compiled(input_ids, position_ids=position_ids % 5, use_cache=False)


def test_compiled_refuses_what_it_would_silently_read_as_one_sequence(fresh_compiler):
    model, input_ids = one_layer(), random_ids(1, 12)
    compiled = torch.compile(model, backend="eager")
    cache = DynamicCache(config=model.config)
    model(input_ids, cache=cache)
    with pytest.raises(RuntimeError, match="`position_ids` start anew"):
        compiled(input_ids, position_ids=torch.arange(12)[None], cache=cache)
    with pytest.raises(RuntimeError, match="`cu_seq_lens_q` must be rising places in the row of 12 tokens"):
        compiled(input_ids, cu_seq_lens_q=torch.tensor([0, 5, 13]), use_cache=False)


@pytest.mark.parametrize("lengths", [[5, 1, 6], [1, 1, 1]], ids=str)  # the second needs all the room there is
def test_compiled_takes_sequences_that_do_not_make_up_the_row(lengths, fresh_compiler):
    model, input_ids = one_layer(), random_ids(1, sum(lengths))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    inner = torch.tensor(lengths).cumsum(0)[:-1]
    logits = compiled(input_ids, cu_seq_lens_q=inner, use_cache=False).logits
    close(logits, torch.cat([model(part).logits for part in input_ids.split(lengths, dim=1)], dim=1))


def test_compiled_takes_a_mask_of_floats(fresh_compiler):
    """Whose values it can't look at."""
    model, batch = one_layer(), padded_batch()
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"].float(), "use_cache": False}
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    close(compiled(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize("padded", [False, True])
def test_one_graph_serves_all_batch_sizes_and_lengths(padded, fresh_compiler):
    model, graphs = one_layer(num_sink_tokens=2), []

    def counting(graph, example_inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=counting)
    # Without a mask, lengths that fill their last chunk are the plainer case and get a graph of their own.
    for batch, length in ((2, 14), (3, 9), (5, 33)):
        inputs = {"input_ids": random_ids(batch, length)}
        if padded:
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"]).tril(length - 3)
        with torch.no_grad():
            close(compiled(**inputs, use_cache=False).logits, model(**inputs).logits)
    assert len(graphs) == 1
