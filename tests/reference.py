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
"""The definition of latent attention, one token and one head at a time. It shares no code with the package.

Every function takes one sequence without padding: `x` is `(T, D)`. `weights` maps the state-dict names of
one module to tensors; `settings` is anything with the fields of the configuration. Slow on purpose: each
softmax is written over the very tokens that the definition names, so nothing is masked and nothing is merged.
"""

import math

import torch


def below(weights: dict, prefix: str) -> dict:
    """The entries of `weights` under `prefix`, with the prefix taken off."""
    return {name[len(prefix) + 1 :]: value for name, value in weights.items() if name.startswith(prefix + ".")}


def linear(weights: dict, name: str, x):
    y = x @ weights[f"{name}.weight"].T
    return y + weights[f"{name}.bias"] if f"{name}.bias" in weights else y


def norm(weights: dict, name: str, x, settings):
    if settings.norm_type == "rms_norm":
        return x / (x.pow(2).mean(-1, keepdim=True) + settings.norm_eps).sqrt() * weights[f"{name}.weight"]
    x = x - x.mean(-1, keepdim=True)
    x = x / (x.pow(2).mean(-1, keepdim=True) + settings.norm_eps).sqrt()
    return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def frequency(i: int, half: int, rope: dict) -> float:
    """Angle per token of the pair `i` of `half`; of `rope_type` "llama3" waves longer than a text are stretched."""
    plain = rope["rope_theta"] ** (-i / half)
    if rope["rope_type"] == "default":
        return plain
    wavelength, longest = 2 * math.pi / plain, rope["original_max_position_embeddings"]
    if wavelength < longest / rope["high_freq_factor"]:
        return plain
    if wavelength > longest / rope["low_freq_factor"]:
        return plain / rope["factor"]
    share = (longest / wavelength - rope["low_freq_factor"]) / (rope["high_freq_factor"] - rope["low_freq_factor"])
    return (1 - share) * plain / rope["factor"] + share * plain


def rotate(vector, position: int, rope: dict):
    """Rotary position embedding of one head vector (Su et al. 2021, halves paired as in Llama)."""
    half = vector.shape[-1] // 2
    angles = torch.stack([torch.tensor(position * frequency(i, half, rope), dtype=vector.dtype) for i in range(half)])
    first, second = vector[:half], vector[half:]
    return torch.cat([first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()])


def attend(weights: dict, queries, keys, settings, reads, position=None):
    """Multi-head attention in which query `i` attends to exactly the rows `reads(i)` of `keys`.

    `position(i, s)` gives the positions of query `i` and key `s` for the rotary embedding, or there is none.
    A query that reads nothing gets zeros.
    """
    head_dim, groups = settings.head_dim, settings.num_attention_heads // settings.num_key_value_heads
    q, k, v = linear(weights, "q_proj", queries), linear(weights, "k_proj", keys), linear(weights, "v_proj", keys)
    rows = []
    for i in range(len(queries)):
        heads = []
        for h in range(settings.num_attention_heads):
            mine, theirs = slice(h * head_dim, (h + 1) * head_dim), h // groups * head_dim
            theirs = slice(theirs, theirs + head_dim)
            scores, values = [], []
            for s in reads(i):
                q_i, k_s = q[i, mine], k[s, theirs]
                if "q_norm.weight" in weights:  # with `qk_norm`, local attention has them
                    q_i, k_s = norm(weights, "q_norm", q_i, settings), norm(weights, "k_norm", k_s, settings)
                if position is not None:
                    q_position, k_position = position(i, s)
                    rope = settings.rope_parameters
                    q_i, k_s = rotate(q_i, q_position, rope), rotate(k_s, k_position, rope)
                scores.append(q_i @ k_s / head_dim**0.5)
                values.append(v[s, theirs])
            if scores:
                heads.append(torch.softmax(torch.stack(scores), 0) @ torch.stack(values))
            else:
                heads.append(torch.zeros(head_dim, dtype=queries.dtype))
        rows.append(torch.cat(heads))
    return linear(weights, "o_proj", torch.stack(rows))


def with_predecessors(weights: dict, u, kernel: int):
    """`u + silu(conv(u))`, a causal depthwise convolution over the last `kernel` tokens, zeros before the first."""
    if kernel == 0:
        return u
    rows = []
    for t in range(len(u)):
        row = weights["token_conv.bias"]
        for j in range(kernel):
            if t - j >= 0:
                row = row + weights["token_conv.weight"][:, 0, kernel - 1 - j] * u[t - j]
        rows.append(row)
    return u + torch.nn.functional.silu(torch.stack(rows))


def latent_attention(weights: dict, h, settings):
    """The three steps: compression, refinement, retrieval, with the residual connections."""
    length, chunk = len(h), settings.chunk_size
    u = norm(weights, "token_norm", h, settings)
    w = with_predecessors(weights, u, settings.conv_kernel_size)
    z0 = weights["latents"]
    rows = []
    for n in range((length + chunk - 1) // chunk):
        known = range(n * chunk) if settings.is_causal else range(length)
        latent = norm(weights, "latent_norm", z0, settings)
        z1 = z0 + attend(below(weights, "input_to_latent"), latent, w, settings, lambda i, known=known: known)
        r = norm(weights, "refine_norm", z1, settings)
        z2 = z1 + attend(below(weights, "latent_self"), r, r, settings, lambda i: range(len(z0)))
        memory = norm(weights, "readout_norm", z2, settings)
        mine = u[n * chunk : (n + 1) * chunk]
        rows.append(attend(below(weights, "latent_to_input"), mine, memory, settings, lambda i: range(len(z0))))
    return h + torch.cat(rows)


def local_attention(weights: dict, x, settings):
    """
    A token of chunk `n` reads chunk `n - 1` and, causally, chunk `n`; bidirectional: chunks `n - 1 ... n + 1`. From
    chunk 2 on it also reads the sinks, the first tokens of the sequence, which stand in the slots before the window.
    """
    length, chunk, sinks = len(x), settings.chunk_size, settings.num_sink_tokens

    def reads(t):
        n = t // chunk
        first = max(0, (n - 1) * chunk)
        if not settings.is_causal:
            return list(range(first, min(length, (n + 2) * chunk)))
        return [s for s in range(sinks) if n >= 2] + list(range(first, t + 1))

    def position(t, s):
        window = (t // chunk - 1) * chunk
        has_left_the_window = s < window
        return t - window, s - sinks if has_left_the_window else s - window

    return attend(weights, x, x, settings, reads, position)


def mlp(weights: dict, x, settings):
    x = with_predecessors(weights, x, settings.mlp_conv_kernel_size)
    gate = torch.nn.functional.silu(linear(weights, "gate_proj", x))
    return linear(weights, "down_proj", gate * linear(weights, "up_proj", x))


def layer_kind(i: int, settings) -> str:
    """The pattern repeats over the layers."""
    return settings.layer_pattern[i % len(settings.layer_pattern)]


def hidden_states(weights: dict, x, settings):
    """The base model on embeddings `x`: `(T, D) -> (T, D)`, after the last norm."""
    for i in range(settings.num_hidden_layers):
        layer, kind = below(weights, f"layers.{i}"), layer_kind(i, settings)
        if kind in ("local", "both"):
            normed = norm(layer, "local_norm", x, settings)
            x = x + local_attention(below(layer, "local_attention"), normed, settings)
        if kind in ("latent", "both"):
            x = latent_attention(below(layer, "latent_attention"), x, settings)
        x = x + mlp(below(layer, "mlp"), norm(layer, "mlp_norm", x, settings), settings)
    return norm(weights, "norm", x, settings)


def logits(weights: dict, input_ids, settings):
    """Logits `(T, V)` of one sequence `(T,)`, from the state dict of a causal language model."""
    x = weights["model.embed_tokens.weight"][input_ids]
    return hidden_states(below(weights, "model"), x, settings) @ weights["lm_head.weight"].T
