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
"""Static caches, caches that serve again after `reset`, and compiled decoding."""

import shutil

import pytest
import torch
from torch.utils._pytree import tree_leaves
from transformers import CompileConfig, StaticCache
from transformers.utils.import_utils import is_torch_greater_or_equal

from common import CLOSE, PATTERNS, double_model, every_pattern, random_ids, tiny_model
from generating import CACHES, CLOSE32, EVERYTHING, METHODS, NEW, eager_model, generate, left_padded
from modeling_latent.cache_name import cache_of


# Static caches and reset


@every_pattern
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", ["greedy", "sampling", "beam search"])
def test_static_cache_generates_what_a_dynamic_one_does(method, dtype, pattern):
    model, (_, batch) = tiny_model(dtype=dtype, **pattern), left_padded([7, 3])
    out = generate(model, **batch, **METHODS[method], cache_implementation="static", return_dict_in_generate=True)
    assert type(cache_of(out)) is StaticCache
    assert torch.equal(out.sequences, generate(model, **batch, **METHODS[method]))


@pytest.mark.parametrize("make", CACHES)
def test_a_cache_serves_again_after_reset(make):
    model = double_model()
    cache = make(config=model.config)
    for seed, rows in ((1, 2), (2, 2), (3, 1)):  # the last of another batch size
        prompt = random_ids(rows, 6 + seed, seed=seed)
        assert torch.equal(generate(model, prompt, cache=cache), generate(model, prompt))
        cache.reset()


@pytest.mark.parametrize("make", CACHES)
def test_after_reset_a_cache_serves_another_model_of_as_many_layers(make):
    prompt, cache = random_ids(2, 6), make(config=double_model().config)
    for overrides in ({}, {"chunk_size": 5}):
        model = double_model(**overrides)
        assert torch.equal(generate(model, prompt, cache=cache), generate(model, prompt))
        cache.reset()


def test_the_length_that_a_static_cache_was_asked_for_is_no_limit():
    model, prompt = double_model(), random_ids(1, 6)
    cache = StaticCache(config=model.config, max_cache_len=2)
    assert torch.equal(generate(model, prompt, cache=cache), generate(model, prompt))


# Compiled. `backend="eager"` traces and guards like any other, and spares the minutes of code generation.


@pytest.fixture
def compiled():
    """Settings that make `generate()` compile on any device, and count graphs from zero."""
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()

    def settings(backend="eager"):
        config = CompileConfig(fullgraph=True, backend=backend, mode=None)
        config._compile_all_devices = True
        return {"cache_implementation": "static", "compile_config": config}

    yield settings
    torch.compiler.reset()


def compiled_graphs() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


# Rows that enter a chunk together: none or all; none, one or two.
@pytest.mark.parametrize(
    ("lengths", "graphs", "pattern"),
    [([6], 2, {}), ([6, 6], 2, {}), *(([8, 6, 4], 3, pattern) for pattern in PATTERNS.values())],
    ids=str,
)
def test_compiled_greedy_equals_dynamic_with_a_few_graphs_for_any_number_of_tokens(compiled, lengths, graphs, pattern):
    model, settings = double_model(**pattern), compiled()
    for seed, new in ((1, NEW), (7, 2 * NEW)):
        batch = left_padded(lengths, seed)[1]
        expected = generate(model, **batch, max_new_tokens=new)
        assert torch.equal(generate(model, **batch, max_new_tokens=new, **settings), expected)
        assert compiled_graphs() == graphs


def test_any_number_of_rows_may_enter_a_chunk_in_one_compiled_step(compiled):
    model, (_, batch) = (
        double_model(num_hidden_layers=1, layer_pattern=["both"], num_sink_tokens=2),
        left_padded([5, 6, 10, 7, 3, 11, 4, 8, 12, 16]),
    )  # one, two, three and four
    expected = generate(model, **batch)
    assert torch.equal(generate(model, **batch, **compiled()), expected)
    assert compiled_graphs() <= 3


def test_compiled_steps_record_everything(compiled):
    model, prompt = eager_model(num_hidden_layers=1, layer_pattern=["both"]), random_ids(2, 6)
    ours, expected = generate(model, prompt, **EVERYTHING, **compiled()), generate(model, prompt, **EVERYTHING)
    assert compiled_graphs() == 2
    for name in ("scores", "logits", "hidden_states", "attentions"):
        torch.testing.assert_close(tree_leaves(ours[name]), tree_leaves(expected[name]), **CLOSE32)


@pytest.mark.parametrize("lengths", [[9], [9, 6]])
def test_prefill_in_pieces_compiles(compiled, lengths):
    model, (_, batch) = double_model(num_hidden_layers=1, layer_pattern=["both"]), left_padded(lengths)
    out = generate(model, **batch, prefill_chunk_size=3, **compiled())
    assert torch.equal(out, generate(model, **batch))


@every_pattern
def test_a_compiled_step_finds_out_by_itself_which_rows_enter_a_chunk(compiled, pattern):
    model, (_, batch) = double_model(**pattern), left_padded([8, 6, 4])
    more = random_ids(3, NEW, seed=7)
    mask = torch.nn.functional.pad(batch["attention_mask"], (0, NEW), value=1)
    expected = model(torch.cat([batch["input_ids"], more], dim=1), attention_mask=mask).logits[:, 8:]
    cache = StaticCache(config=model.config, max_cache_len=64)
    model(**batch, cache=cache)
    step = torch.compile(model, backend="eager", fullgraph=True)
    logits = [step(token, cache=cache).logits for token in more.split(1, dim=1)]
    torch.testing.assert_close(torch.cat(logits, dim=1), expected, **CLOSE)
    assert compiled_graphs() == 1


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="needs a C++ compiler")
@pytest.mark.skipif(not is_torch_greater_or_equal("2.13"), reason="this version of torch writes before it has read")
def test_generated_code_equals_dynamic(compiled):
    model, prompt = double_model(num_hidden_layers=1, layer_pattern=["both"]), random_ids(1, 6)
    assert torch.equal(generate(model, prompt, **compiled("inductor")), generate(model, prompt))
