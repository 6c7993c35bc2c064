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
"""A Llama's weights in latent attention: the same numbers in the window, and a memory that can be learned."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    set_seed,
)

import from_llama
import train
from common import LLAMA3_ROPE, SIZES, random_ids, randomize
from modeling_latent import LatentAttentionForCausalLM
from test_heads import word_tokenizer


CHUNK, SINKS = 4, 3
CLOSE = {"atol": 1e-5, "rtol": 0}  # Llama's norms and angles are float32 in a float64 model, too


@pytest.fixture(autouse=True)
def seed():
    """The memory of a converted model and an adapter are drawn at random."""
    set_seed(0)


def tiny_llama(config_class=LlamaConfig, model_class=LlamaForCausalLM, **overrides) -> PreTrainedModel:
    settings = {
        **SIZES,
        "num_hidden_layers": 3,
        "hidden_act": "gelu",
        "rms_norm_eps": 1e-3,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
    }
    model = model_class(config_class(**{**settings, **overrides}))
    return randomize(model).double().eval()


MODELS = {
    "untied": {"head_dim": 6},
    "tied": {"tie_word_embeddings": True},
    "Llama 3": {"head_dim": 12, "rope_parameters": LLAMA3_ROPE},
    "Mistral": {"config_class": MistralConfig, "model_class": MistralForCausalLM, "sliding_window": 100},
    "Qwen2": {"config_class": Qwen2Config, "model_class": Qwen2ForCausalLM, "tie_word_embeddings": True},
    "Qwen3": {"config_class": Qwen3Config, "model_class": Qwen3ForCausalLM, "head_dim": 6},
}


def converted(llama: PreTrainedModel, **overrides) -> LatentAttentionForCausalLM:
    settings = {"num_latents": 3, "chunk_size": CHUNK, "num_sink_tokens": SINKS, "latent_every": 2}
    return from_llama.convert(llama, **{**settings, **overrides}).eval()


def attend_to_window(llama: PreTrainedModel, layer, states: torch.Tensor, n: int, sinks: int) -> torch.Tensor:
    """
    What the Llama's own attention gives the tokens of chunk n, `(B, C, D)`, of the normed `states` `(B, T, D)`: of a
    text that consists of the sinks, the chunk before and chunk n, and whose positions are the slots of the window.
    """
    own, window = (states[:, max(first, 0) * CHUNK : (n + 1) * CHUNK] for first in (n, n - 1))
    if n >= 2:
        window = torch.cat([states[:, :sinks], window], dim=1)
    length = window.shape[1]
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    mask = torch.zeros(1, 1, length, length, dtype=states.dtype).masked_fill(future, -torch.inf)
    rotation = llama.model.rotary_emb(window, torch.arange(length)[None])
    attended, _ = layer.self_attn(window, position_embeddings=rotation, attention_mask=mask)
    return attended[:, -own.shape[1] :]


def windowed_logits(llama: PreTrainedModel, input_ids: torch.Tensor, sinks: int) -> torch.Tensor:
    """The Llama, layer by layer, whose attention sees only window and sinks."""
    states = llama.model.embed_tokens(input_ids)
    for layer in llama.model.layers:
        normed = layer.input_layernorm(states)
        chunks = range(-(-states.shape[1] // CHUNK))
        states = states + torch.cat([attend_to_window(llama, layer, normed, n, sinks) for n in chunks], dim=1)
        states = states + layer.mlp(layer.post_attention_layernorm(states))
    return llama.lm_head(llama.model.norm(states))


@pytest.mark.parametrize("sinks", [0, SINKS])
@pytest.mark.parametrize("overrides", MODELS.values(), ids=MODELS.keys())
def test_it_is_the_llama_whose_attention_sees_only_window_and_sinks(overrides, sinks):
    llama = tiny_llama(**overrides)
    model = converted(llama, num_sink_tokens=sinks)
    input_ids = random_ids(2, 5 * CHUNK + 3)
    with torch.no_grad():
        logits, full = model(input_ids).logits, llama(input_ids).logits
        windowed = windowed_logits(llama, input_ids, sinks)
    torch.testing.assert_close(logits, windowed, **CLOSE)
    torch.testing.assert_close(logits[:, : 2 * CHUNK], full[:, : 2 * CHUNK], **CLOSE)
    assert (logits - full)[:, 2 * CHUNK :].abs().amax(-1).min() > 1e-3


@pytest.mark.parametrize(("every", "with_latents"), [(0, []), (1, [0, 1, 2]), (2, [1]), (3, [2])])
def test_latents_are_in_every_so_many_layers(every, with_latents):
    layers = converted(tiny_llama(), latent_every=every).model.layers
    assert [index for index, layer in enumerate(layers) if hasattr(layer, "latent_attention")] == with_latents
    assert all(hasattr(layer, "local_attention") for layer in layers)


@pytest.mark.parametrize("overrides", [MODELS["untied"], MODELS["Qwen2"]], ids=["untied", "Qwen2"])
def test_a_memory_starts_from_the_attention_of_its_layer(overrides):
    """Latents ask for tokens as keys do, and what one has read of a token is read from it as that token's value."""
    layer = converted(tiny_llama(**overrides)).model.layers[1]
    attention, memory = layer.local_attention, layer.latent_attention
    tokens = torch.randn(2, 5, attention.config.hidden_size, dtype=torch.float64)
    keys, values = (
        tensor.repeat_interleave(attention.num_key_value_groups, dim=1) for tensor in attention.keys_values(tokens)
    )
    torch.testing.assert_close(memory.input_to_latent.queries(tokens), keys)
    held = memory.input_to_latent.o_proj(values.transpose(1, 2).flatten(2))  # by latents that have read one token each
    read = memory.latent_to_input.keys_values(held).values
    torch.testing.assert_close(read, attention.keys_values(tokens).values, **CLOSE)


def test_all_of_the_memory_learns():
    """The readout starts at zero: in the first step it alone gets gradients, from the second step on all."""
    model = converted(tiny_llama()).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    input_ids = random_ids(2, 5 * CHUNK)
    for _ in range(2):
        optimizer.zero_grad()
        model(input_ids, labels=input_ids).loss.backward()
        optimizer.step()
    silent = [name for name, weight in model.named_parameters() if not weight.grad.abs().sum() > 0]
    assert silent == []


def test_an_adapter_can_hold_the_memory_and_leave_the_llama_alone(tmp_path):
    config = LoraConfig(target_modules=r".*local_attention\.[qkvo]_proj", modules_to_save=["latent_attention"])
    llama, input_ids = tiny_llama().float(), random_ids(2, 5 * CHUNK)
    model = get_peft_model(converted(llama).train(), config)
    before = model(input_ids).logits.detach()
    optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(input_ids, labels=input_ids).loss.backward()
        optimizer.step()
    model.save_pretrained(tmp_path)
    logits = model.eval()(input_ids).logits
    assert (logits - before).abs().max() > 1e-2
    loaded = PeftModel.from_pretrained(converted(llama), tmp_path)
    torch.testing.assert_close(loaded.eval()(input_ids).logits, logits, **CLOSE)


def test_the_saved_model_generates_what_the_llama_does_and_can_be_trained(tmp_path):
    tokenizer = word_tokenizer()
    tokenizer.eos_token = "found"
    llama = tiny_llama(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id).to(torch.bfloat16)
    llama.generation_config.update(repetition_penalty=1.3, eos_token_id=[tokenizer.eos_token_id, 2])
    folders = [str(tmp_path / name) for name in ("llama", "converted", "tuned")]
    for part in (llama, tokenizer):
        part.save_pretrained(folders[0])
    from_llama.main([folders[0], "--output_dir", folders[1], "--num_latents", "3", "--chunk_size", "16"])
    model = AutoModelForCausalLM.from_pretrained(folders[1], trust_remote_code=True)
    assert model.dtype == torch.float32
    assert model.generation_config.repetition_penalty == 1.3
    assert model.generation_config.eos_token_id == [tokenizer.eos_token_id, 2]
    assert AutoTokenizer.from_pretrained(folders[1])("the token").input_ids == tokenizer("the token").input_ids
    prompt = random_ids(2, 8, vocab_size=len(tokenizer))
    settings = {"max_new_tokens": 20, "min_new_tokens": 20, "pad_token_id": 0}
    expected = llama.float().generate(prompt, **settings)
    assert torch.equal(model.generate(prompt, **settings), expected)

    texts = tmp_path / "texts"
    texts.mkdir()
    for name in ("a.txt", "b.txt"):
        (texts / name).write_text("the latent reads every token\n" * 200, encoding="utf-8")
    flags = ["--max_steps", "2", "--block_size", "64", "--report_to", "none", "--use_cpu"]
    train.main(["--model", folders[1], "--output_dir", folders[2], "--dataset", str(texts), *flags])
    tuned = AutoModelForCausalLM.from_pretrained(folders[2])
    assert tuned.model.layers[1].latent_attention.latent_to_input.o_proj.weight.abs().max() > 0


def test_two_chunks_may_fill_the_sliding_window():
    model = tiny_llama(MistralConfig, MistralForCausalLM, sliding_window=2 * CHUNK)
    assert converted(model).config.chunk_size == CHUNK


def test_the_same_llama_gives_the_same_memory(tmp_path):
    tokenizer = word_tokenizer()
    for part in (tiny_llama(vocab_size=len(tokenizer)), tokenizer):
        part.save_pretrained(tmp_path)
    latents = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        from_llama.main([str(tmp_path), "--output_dir", str(tmp_path / "out"), "--num_latents", "3"])
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        latents.append(model.model.layers[1].latent_attention.latents)
    assert torch.equal(*latents)


def test_what_does_not_fit_is_refused():
    for field, weights in {"attention_bias": "local_attention.o_proj.bias", "mlp_bias": "mlp.up_proj.bias"}.items():
        with pytest.raises(ValueError, match=rf"weights that have no place in latent attention: .*{weights}"):
            converted(tiny_llama(**{field: True}))
    other = GPTNeoXForCausalLM(
        GPTNeoXConfig(vocab_size=31, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    )
    with pytest.raises(ValueError, match="is a GPTNeoXForCausalLM but must be one of LlamaForCausalLM, Mistral"):
        converted(other)
    scaled = tiny_llama(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 100.0})
    with pytest.raises(ValueError, match="`rope_parameters` is .* must be"):
        converted(scaled)
    with pytest.raises(ValueError, match="`latent_every` is -1 but must be at least 1"):
        converted(tiny_llama(), latent_every=-1)
    narrow = tiny_llama(MistralConfig, MistralForCausalLM, sliding_window=2 * CHUNK - 1)
    with pytest.raises(ValueError, match="`chunk_size` is 4 but must be at most half of the model's window of 7"):
        converted(narrow)
