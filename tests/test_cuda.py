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
"""What only a CUDA device can show. Skipped where there is none."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CompileConfig

from common import PATTERNS, every_pattern, random_ids, tiny_model
from modeling_latent.cache_name import cache_of


pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
FUSED = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]


def cuda_model(dtype: torch.dtype = torch.bfloat16, **overrides):
    sizes = {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2, "num_latents": 32}
    return tiny_model(dtype=dtype, **{**sizes, "chunk_size": 64, **overrides}).cuda()


@pytest.mark.parametrize(
    "overrides",
    [*PATTERNS.values(), {"is_causal": False, "layer_pattern": ["both"]}],
    ids=[*PATTERNS, "bidirectional"],
)
def test_cuda_equals_cpu(overrides):
    model, input_ids = cuda_model(torch.float32, **overrides), random_ids(2, 300)
    logits = model(input_ids.cuda()).logits.cpu()
    torch.testing.assert_close(logits, model.cpu()(input_ids).logits, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("is_causal", [True, False])
def test_every_attention_runs_in_a_fused_kernel_forward_and_backward(is_causal):
    """Without the unfused kernel among the choices, SDPA raises where it would have taken it."""
    model = cuda_model(is_causal=is_causal, layer_pattern=["both"], num_sink_tokens=4 if is_causal else 0)
    mask = torch.ones(2, 300, dtype=torch.long, device="cuda")
    mask[0, :70] = 0
    with sdpa_kernel(FUSED):
        model(random_ids(2, 300).cuda(), attention_mask=mask).logits.float().square().mean().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


@every_pattern
def test_decoding_does_not_wait_for_the_device(pattern):
    model, prompt = cuda_model(**pattern), random_ids(2, 130).cuda()
    outputs = model(prompt, use_cache=True)
    kwargs = model._update_model_kwargs_for_generation(outputs, {"use_cache": True}, is_encoder_decoder=False)
    for step in range(70):  # one of them enters a chunk
        inputs = model.prepare_inputs_for_generation(prompt[:, -1:], next_sequence_length=1, **kwargs)
        torch.cuda.set_sync_debug_mode("error")
        try:
            outputs = model(**inputs)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        kwargs = model._update_model_kwargs_for_generation(outputs, kwargs, is_encoder_decoder=False)
        assert cache_of(outputs).get_seq_length() == 131 + step


@every_pattern
def test_compiled_static_cache_generates_what_the_dynamic_one_does(pattern):
    model, prompt = cuda_model(torch.float32, **pattern), random_ids(1, 130).cuda()
    settings = {"max_new_tokens": 140, "do_sample": False, "pad_token_id": 0}
    compiled = model.generate(prompt, cache_implementation="static", compile_config=CompileConfig(), **settings)
    assert torch.equal(compiled, model.generate(prompt, **settings))
