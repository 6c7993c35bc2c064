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
"""The measures: each is a function of a `Bench`, and of the lengths at which time or memory is taken."""

import time
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from functools import partial

import torch
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedConfig, PreTrainedModel

from modeling_latent import LatentAttentionConfig
from modeling_latent.configuration_latent import LAYER_KINDS

from .bench import Bench, forward, make_model, random_ids
from .decoding import greedy_step, prefill_in_pieces
from .models import FULL, OURS, WINDOWED
from .timing import (
    attention_operators,
    copy_bandwidth,
    in_fresh_process,
    interleaved,
    matmul_peak,
    memory_now,
    memory_peak,
    timed,
)


# What decoding uses once per chunk, not once per token.
ONCE_PER_CHUNK = ("latents", "latent_norm", "refine_norm", "readout_norm", "latent_self", "input_to_latent.q_proj")
ONCE_PER_CHUNK += ("input_to_latent.o_proj", "latent_to_input.k_proj", "latent_to_input.v_proj")


def training_step(model: PreTrainedModel) -> Callable:
    """A function of `input_ids` that takes one step of AdamW and leaves no gradients."""
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-5)

    def step(input_ids: torch.Tensor, **packing):
        model(input_ids=input_ids, labels=input_ids, use_cache=False, **packing).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def by_length(bench: Bench, measure: str, lengths: tuple[int, ...], few: tuple[int, ...], make_call: Callable) -> None:
    """Time `make_call(model, input_ids)()` of all models, which are made anew at each length, to hold less memory."""
    for length in lengths:
        input_ids = bench.token_ids(1, length)
        names = bench.names_at(measure, length, few)
        calls = {name: make_call(bench.model(name), input_ids) for name in names}
        points = interleaved(calls, bench.device, bench.seconds)
        for name in set(names) - points.keys():
            bench.leave_out(measure, length, name, "out of memory")
        bench.note(measure, length, points)


def prefill(bench: Bench, lengths: tuple[int, ...], few: tuple[int, ...] = ()) -> None:
    by_length(bench, "prefill", lengths, few, lambda model, input_ids: partial(forward, model, input_ids))


def prefill_growth(bench: Bench, lengths: tuple[int, ...]) -> None:
    """Time prefill of ours alone. Lengths take turns, so that a drift of the machine meets all of them."""
    points = times_of_prefill(bench.configs[OURS], bench.device, bench.dtype, lengths, bench.seconds)
    for length, point in points.items():
        bench.note("prefill growth", length, {OURS: point})


def prefill_growth_in_a_plain_process(bench: Bench, lengths: tuple[int, ...]) -> None:
    """As `prefill_growth`, but the C library gives freed memory back to the system, as it does unless told not to."""
    arguments = (bench.configs[OURS], bench.device, bench.dtype, lengths, bench.seconds)
    for length, point in in_fresh_process(times_of_prefill, *arguments).items():
        bench.note("prefill growth, plain process", length, {OURS: point})


def times_of_prefill(config: PreTrainedConfig, device: str, dtype, lengths: tuple[int, ...], seconds: float) -> dict:
    """The times of prefill by length; the lengths take turns."""
    model = make_model(config, device, dtype)
    calls = {length: partial(forward, model, random_ids(config, device, 1, length)) for length in lengths}
    return interleaved(calls, device, seconds)


def packed_training(bench: Bench, length: int, documents: tuple[int, ...]) -> None:
    """Time a step on one row of packed documents of so many tokens each; the longest is the row as one document."""
    step, input_ids = training_step(bench.model(OURS)), bench.token_ids(1, length)
    places = torch.arange(length, device=bench.device)[None]
    calls = {size: partial(step, input_ids, position_ids=places % size) for size in (*documents, length)}
    for size, point in interleaved(calls, bench.device, bench.seconds).items():
        bench.note("packed training", size, {OURS: point})


def training(bench: Bench, lengths: tuple[int, ...], few: tuple[int, ...] = ()) -> None:
    by_length(bench, "training", lengths, few, lambda model, input_ids: partial(training_step(model), input_ids))


def training_peak(config: PreTrainedConfig, device: str, dtype: torch.dtype, length: int) -> dict:
    """Bytes that a training step adds to the weights and to the optimizer's state, which a short step has made.

    These two are counted and not measured: after the short step the process still holds what that step gave back.
    """
    start = memory_now(device)
    model = make_model(config, device, dtype)
    step = training_step(model)
    step(random_ids(config, device, 1, 64))
    seconds = timed(partial(step, random_ids(config, device, 1, length)), device)
    kept = 3 * sum(parameter.nbytes for parameter in model.parameters())  # weights, and AdamW's two averages
    return {"bytes": memory_peak(device) - start - kept, "seconds": seconds}


def training_memory(bench: Bench, lengths: tuple[int, ...], names: tuple[str, ...] = (OURS, FULL)) -> None:
    for length in lengths:
        for name in names:
            arguments = (bench.configs[name], bench.device, bench.dtype, length)
            note_fresh(bench, "training memory", length, name, training_peak, *arguments)


def note_fresh(bench: Bench, measure: str, length: int, name: str, function: Callable, *arguments) -> None:
    """Note what `function(*arguments)` finds in a process of its own, unless memory runs out there."""
    try:
        bench.note(measure, length, {name: in_fresh_process(function, *arguments)})
    except (torch.OutOfMemoryError, BrokenProcessPool):  # the latter: the system stopped the process
        bench.leave_out(measure, length, name, "out of memory")


def read_and_decode(config: LatentAttentionConfig, device: str, dtype, tokens: int, piece: int, batch: int) -> dict:
    """Read tokens in pieces, and decode 100 more. The memory is that of the whole process."""
    model = make_model(config, device, dtype)
    cache, start = None, time.perf_counter()
    for done in range(0, tokens, piece):
        _, cache = forward(model, random_ids(config, device, batch, min(piece, tokens - done)), cache)
    if device == "cuda":
        torch.cuda.synchronize()
    context, read = cache.get_seq_length(), time.perf_counter()
    step = greedy_step(model, cache, context, batch)
    for _ in range(100):
        step()
    leaves = tree_leaves([layer.state for layer in cache.layers])  # `None` of what a kind of layer does not keep
    assert all(torch.isfinite(leaf).all() for leaf in leaves if leaf is not None)
    return {
        "tokens": context,
        "batch": batch,
        "seconds": read - start,
        "decode_seconds": time.perf_counter() - read,
        "bytes": memory_peak(device),
    }


def peak_of_a_prompt(config: LatentAttentionConfig, device: str, dtype, tokens: int) -> dict:
    """The most memory of a process in which `generate()` reads a prompt, with no word on pieces, and adds a token."""
    model = make_model(config, device, dtype)
    begin = time.perf_counter()
    model.generate(random_ids(config, device, 1, tokens), max_new_tokens=1, do_sample=False, pad_token_id=0)
    return {"seconds": time.perf_counter() - begin, "bytes": memory_peak(device)}


def long_prompt(bench: Bench, tokens: int) -> None:
    arguments = (bench.configs[OURS], bench.device, bench.dtype, tokens)
    note_fresh(bench, "long prompt", tokens, OURS, peak_of_a_prompt, *arguments)


def longest_context(bench: Bench, tokens: int, piece: int, batch: int) -> None:
    arguments = (bench.configs[OURS], bench.device, bench.dtype, tokens, piece, batch)
    note_fresh(bench, "longest context", tokens, OURS, read_and_decode, *arguments)


def decode_bytes(model: PreTrainedModel) -> float:
    """Bytes that a token must move at least: the weights that it uses, and the keys and values that it attends to."""
    config = model.config
    weights = 0
    for name, parameter in model.named_parameters():
        per_chunk = ".latent_attention." in name and any(f".{part}" in name for part in ONCE_PER_CHUNK)
        weights += parameter.nbytes / (config.chunk_size if per_chunk else 1)
    # On average over a chunk, in all layers.
    attentions = [attention for kind in config.layer_kinds for attention in LAYER_KINDS[kind]]
    windows, memories = attentions.count("local_attention"), attentions.count("latent_attention")
    attended = windows * (1.5 * config.chunk_size + config.num_sink_tokens) + memories * config.num_latents
    pair = 2 * config.num_key_value_heads * config.head_dim * model.dtype.itemsize
    return weights + attended * pair


def limits(bench: Bench, length: int, context: int, matmul_size: int, copied: int) -> None:
    """Note what the machine can do, and the share of it that ours got, training at `length`, decoding at `context`."""
    model = bench.model(OURS)
    with FlopCounterMode(display=False) as counter:
        training_step(model)(bench.token_ids(1, length))
    peak = matmul_peak(bench.device, bench.dtype, matmul_size)
    bandwidth = copy_bandwidth(bench.device, copied)
    points = {measure: bench.result[measure][OURS] for measure in ("training", "decode")}
    flops = counter.get_total_flops()
    moved = decode_bytes(model)
    share = {
        "peak_flops_per_second": peak,
        "bandwidth_bytes_per_second": bandwidth,
        "training_flops": flops,
        "training_share": flops / points["training"][str(length)]["seconds"] / peak,
        "decode_bytes": moved,
        "decode_share": moved / points["decode"][str(context)]["seconds"] / bandwidth,
    }
    bench.note("limits", length, {OURS: share})


def attention_kernels(bench: Bench, lengths: tuple[int, ...], names: tuple[str, ...] = (OURS, FULL, WINDOWED)) -> None:
    """Note which operators and kernels attention ran on in prefill, training and decoding."""
    for name in names:
        model = bench.model(name)
        for length in lengths:
            input_ids = bench.token_ids(1, length)
            prefilled = attention_operators(partial(forward, model, input_ids), bench.device)
            trained = attention_operators(partial(training_step(model), input_ids), bench.device)
            model.eval()
            cache = prefill_in_pieces(model, None, input_ids)
            decoded = attention_operators(greedy_step(model, cache, length, 1), bench.device)
            bench.note("kernels", length, {name: {"prefill": prefilled, "training": trained, "decode": decoded}})
