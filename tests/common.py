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
"""Small models with visible weights, shared by all tests."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from modeling_latent import LatentAttentionConfig, LatentAttentionForCausalLM


CLOSE = {"atol": 1e-9, "rtol": 0}  # in float64, of what is equal in exact arithmetic


SIZES = {  # fields that a Llama has, too
    "vocab_size": 31,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
LLAMA3_ROPE = {  # of six pairs the fastest is kept, two are stretched in part and three by the whole factor
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 30,
}


# What more than one test file holds a whole model to: kinds of layers, alone and mixed.
PATTERNS = {
    "default": {},
    "both": {"layer_pattern": ["both"]},
    "latent": {"layer_pattern": ["latent"]},
    "mixed with sinks": {"layer_pattern": ["both", "local", "latent"], "num_hidden_layers": 3, "num_sink_tokens": 2},
}
every_pattern = pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)


def tiny_config(**overrides) -> LatentAttentionConfig:
    """
    Two layers, of which the first has latents, 16 wide, chunks of 4 tokens, 3 latents; heads differ in number, and
    convolutions in length.
    """
    settings = {**SIZES, "num_latents": 3, "chunk_size": 4, "mlp_conv_kernel_size": 3}
    return LatentAttentionConfig(**{**settings, **overrides})


def randomize(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Every parameter of visible size: a projection that starts at zero would let most tests pass by accident."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3
            is_norm_scale = name.endswith("norm.weight")
            parameter.copy_(values + 1 if is_norm_scale else values)
    return module


def tiny_model(seed: int = 0, dtype: torch.dtype = torch.float32, **overrides) -> LatentAttentionForCausalLM:
    return randomize(LatentAttentionForCausalLM(tiny_config(**overrides)), seed).to(dtype).eval()


def double_model(**overrides) -> LatentAttentionForCausalLM:
    return tiny_model(dtype=torch.float64, **overrides)


def one_layer(**overrides) -> LatentAttentionForCausalLM:
    """With both attentions: what is compiled or traced is then small, and has everything."""
    return tiny_model(num_hidden_layers=1, layer_pattern=["both"], **overrides)


def in_direction(is_causal: bool, overrides: dict) -> dict:
    """The same model in one direction or in both; what is read in both has no sinks."""
    return {**overrides, "is_causal": is_causal} | ({} if is_causal else {"num_sink_tokens": 0})


def random_ids(*shape: int, vocab_size: int = 31, seed: int = 1) -> torch.Tensor:
    """Token ids without 0 and 1, which tests take for padding and end of text."""
    return torch.randint(2, vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, then 256 for the end of a text and 257 for padding."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={byte: number for number, byte in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>")
    fast.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    return fast
