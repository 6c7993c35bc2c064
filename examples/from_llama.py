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
"""
Give a trained Llama, Mistral, Qwen2 or Qwen3 a memory of fixed size: its weights, a window, and latents beside it.

    python examples/from_llama.py HuggingFaceTB/SmolLM2-135M --output_dir out/converted
    python examples/distill.py --teacher HuggingFaceTB/SmolLM2-135M --model out/converted --output_dir out/stage1

What tokens read from the latents starts at zero, so the converted model is exactly the old one as long as the
window holds all tokens: in the first two chunks. Behind them it sees the window and the text's first tokens, called
sinks, on which attention that was trained without a window rests. It no longer sees what else has left the window, and
has a somewhat higher loss. distill.py teaches the latents what to keep of it, from the old model itself.
"""

import argparse

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaForCausalLM,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
    set_seed,
)

from modeling_latent import LatentAttentionConfig, LatentAttentionForCausalLM
from modeling_latent.modeling_latent import LatentAttentionDecoderLayer


# One architecture, apart from biases, windows, and norms on queries and keys.
CLASSES = (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM)
SHARED_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "attention_dropout",
    "rope_parameters",
    "initializer_range",
    "tie_word_embeddings",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
)
NEW_NAMES = {"self_attn": "local_attention", "input_layernorm": "local_norm", "post_attention_layernorm": "mlp_norm"}


def convert(
    llama: PreTrainedModel, num_latents: int, chunk_size: int, num_sink_tokens: int, latent_every: int
) -> LatentAttentionForCausalLM:
    """
    The `llama`'s weights in a model with latents in one of `latent_every` layers. Latents are drawn at random and read
    with zeros at first, see `start_from_attention`; there is no convolution in front of the MLP, whose weights were
    trained without.

    Raises:
        `ValueError`: for a model of another class, for one with a sliding window of less than two chunks, for a
            `latent_every` of less than 0, and for weights that have no place here, such as the biases of `o_proj` and
            of the MLP.
    """
    if not isinstance(llama, CLASSES):
        names = ", ".join(allowed.__name__ for allowed in CLASSES)
        raise ValueError(f"The model is a {type(llama).__name__} but must be one of {names}: others differ in more.")
    window = getattr(llama.config, "sliding_window", None)
    if window is not None and window < 2 * chunk_size:
        raise ValueError(f"`chunk_size` is {chunk_size} but must be at most half of the model's window of {window}.")
    if latent_every < 0:
        raise ValueError(
            f"`latent_every` is {latent_every} but must be at least 1, for latents in every layer, or 0 for none."
        )
    weights = renamed(llama.state_dict())
    config = LatentAttentionConfig(
        **{name: getattr(llama.config, name) for name in SHARED_FIELDS},
        head_dim=getattr(llama.config, "head_dim", None),
        attention_bias=any(name.endswith("q_proj.bias") for name in weights),
        qk_norm=any(name.endswith("q_norm.weight") for name in weights),
        norm_type="rms_norm",
        norm_eps=llama.config.rms_norm_eps,
        num_latents=num_latents,
        chunk_size=chunk_size,
        num_sink_tokens=num_sink_tokens,
        layer_pattern=["local"] * (latent_every - 1) + ["both"] if latent_every else ["local"],
        mlp_conv_kernel_size=0,
    )
    model = LatentAttentionForCausalLM(config).to(llama.dtype)
    homeless = model.load_state_dict(weights, strict=False).unexpected_keys
    if homeless:
        raise ValueError(f"The model has weights that have no place in latent attention: {', '.join(homeless)}.")
    for layer in model.model.layers:
        if layer.kind == "both":
            start_from_attention(layer)
    model.generation_config = llama.generation_config
    return model


@torch.no_grad()
def start_from_attention(layer: LatentAttentionDecoderLayer) -> None:
    """
    Let the memory of a layer start as a rough form of the layer's own attention, in place of random projections, with
    which distillation began more slowly in a trial with one seed.

    A latent collects tokens by the keys that the attention gives them, and holds the values that it gives them; tokens
    ask for both with the attention's queries. What they get is left out at first: it is multiplied by zero.
    """
    attention, memory = layer.local_attention, layer.latent_attention
    compression, retrieval = memory.input_to_latent, memory.latent_to_input
    for own, names in ((compression, ("k_proj", "v_proj")), (retrieval, ("q_proj", "k_proj", "v_proj"))):
        for name in names:
            getattr(own, name).load_state_dict(getattr(attention, name).state_dict())
    # Latents are compared with tokens as keys with keys: each query head asks as the key head of its group.
    for own, keys in zip(compression.q_proj.parameters(), attention.k_proj.parameters(), strict=True):
        heads = keys.unflatten(0, (-1, attention.head_dim))
        own.copy_(heads.repeat_interleave(attention.num_key_value_groups, dim=0).flatten(0, 1))
    # What a latent has read is turned back into what the attention makes the same values of, in the mean of a group.
    values = torch.linalg.pinv(attention.v_proj.weight.float()).unflatten(1, (-1, attention.head_dim))  # (D, Hkv, d)
    values = values.repeat_interleave(attention.num_key_value_groups, dim=1) / attention.num_key_value_groups
    compression.o_proj.weight.copy_(values.flatten(1))
    if retrieval.v_proj.bias is not None:
        retrieval.v_proj.bias.zero_()  # what was read has it already
    retrieval.o_proj.weight.zero_()
    # Latents are as large as the tokens that the attention reads, and read these as they are, not convolved.
    size = layer.local_norm.weight.square().mean().sqrt()
    memory.token_norm.weight.copy_(layer.local_norm.weight)
    memory.latent_norm.weight.fill_(size)
    memory.readout_norm.weight.fill_(size)
    memory.latents.mul_(size)
    memory.latent_self.o_proj.weight.mul_(size)
    memory.token_conv.weight.zero_()


def renamed(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {".".join(NEW_NAMES.get(part, part) for part in name.split(".")): weights[name] for name in weights}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="the trained model, with its tokenizer: a folder, or an id of the Hub")
    parser.add_argument("--output_dir", required=True, help="folder for the converted model and the tokenizer")
    parser.add_argument("--num_latents", type=int, default=64, help="latents of a layer, 64 if not given")
    parser.add_argument("--chunk_size", type=int, default=256, help="tokens per chunk, 256 if not given")
    parser.add_argument(
        "--num_sink_tokens", type=int, default=4, help="first tokens that stay visible, 4 if not given"
    )
    parser.add_argument(
        "--latent_every", type=int, default=2, help="N: latents in every N-th layer, 2 if not given; 0: none"
    )
    args = parser.parse_args(argv)
    set_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(args.model)  # before anything is written, in case there is none
    # In float32, whatever its weights are stored in: what is converted has to be trained.
    llama = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    model = convert(llama, args.num_latents, args.chunk_size, args.num_sink_tokens, args.latent_every)
    model.save_pretrained(args.output_dir)
    tokenizer.save_pretrained(args.output_dir)
    memory = sum(weight.numel() for name, weight in model.named_parameters() if "latent_attention" in name)
    print(f"{args.output_dir}: {model.num_parameters():,} parameters, of which {memory:,} are new")


if __name__ == "__main__":
    main()
