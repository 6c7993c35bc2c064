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

import statistics
import time
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from copy import deepcopy
from functools import partial

import torch
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel

from benchmarks.peers import cache_name_of, cache_tensors
from modeling_latent import LatentAttentionConfig, LatentAttentionForCausalLM

from .bench import Bench, make_model, random_ids
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


PIECE = 2048  # tokens of a prefill in pieces
WARM_UP_STEPS = 16
# What decoding uses once per chunk, not once per token.
ONCE_PER_CHUNK = ("latents", "latent_norm", "refine_norm", "readout_norm", "latent_self", "input_to_latent.q_proj")
ONCE_PER_CHUNK += ("input_to_latent.o_proj", "latent_to_input.k_proj", "latent_to_input.v_proj")


@torch.no_grad()
def forward(model: PreTrainedModel, input_ids: torch.Tensor, cache=None, **kwargs):
    """Run the model on `(B, T)` tokens; returns the logits of the last one, and the cache."""
    name = cache_name_of(model)
    outputs = model(input_ids, **{name: cache}, use_cache=True, logits_to_keep=1, **kwargs)
    return outputs.logits, outputs[name]


def training_step(model: PreTrainedModel) -> Callable:
    """A function of `input_ids` that takes one step of AdamW and leaves no gradients."""
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-5)

    def step(input_ids: torch.Tensor):
        model(input_ids=input_ids, labels=input_ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def greedy_step(model: PreTrainedModel, cache, seen: int, batch: int) -> Callable:
    """A function that decodes one more token, calling the model as `generate()` does, after `seen` tokens."""
    tokens = torch.zeros(batch, 1, dtype=torch.long, device=model.device)

    def step():
        nonlocal tokens, seen
        chunks = {}
        if isinstance(model, LatentAttentionForCausalLM):
            enters = seen % model.config.chunk_size == 0
            chunks["new_chunk_rows"] = torch.arange(batch if enters else 0, device=model.device)
        logits, _ = forward(model, tokens, cache, **chunks)
        tokens, seen = logits[:, -1:].argmax(-1), seen + 1

    return step


def random_cache(config: PreTrainedConfig, context: int, batch: int, device: str, dtype: torch.dtype) -> DynamicCache:
    """Keys and values of full attention as after `context` tokens, without computing them."""
    cache = DynamicCache(config=config)
    for layer in range(config.num_hidden_layers):
        shape = (batch, config.num_key_value_heads, context, config.head_dim)
        cache.update(*(torch.randn(shape, device=device, dtype=dtype) for _ in range(2)), layer)
    return cache


def prefill_in_pieces(model: PreTrainedModel, cache, input_ids: torch.Tensor, piece: int = PIECE):
    for part in input_ids.split(piece, dim=1):
        _, cache = forward(model, part, cache)
    return cache


def cache_bytes(cache) -> int:
    """Bytes of all tensors of a cache but those without a dimension, such as a length that the host counts."""
    return sum(tensor.nbytes for tensor in cache_tensors(cache) if tensor.ndim)


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
    model = bench.model(OURS)
    calls = {length: partial(forward, model, bench.token_ids(1, length)) for length in lengths}
    for length, point in interleaved(calls, bench.device, bench.seconds).items():
        bench.note("prefill growth", length, {OURS: point})


def training(bench: Bench, lengths: tuple[int, ...], few: tuple[int, ...] = ()) -> None:
    by_length(bench, "training", lengths, few, lambda model, input_ids: partial(training_step(model), input_ids))


def decode(bench: Bench, contexts: tuple[int, ...], few: tuple[int, ...] = ()) -> None:
    """Time a token, over one whole chunk, and count the bytes of the caches. Models take turns at every token."""
    models, caches, chunk_size = {}, {}, bench.configs[OURS].chunk_size
    for context in contexts:
        names = bench.names_at("decode", context, few)
        for name in names:
            if name not in models:
                models[name], caches[name] = bench.model(name), (None, 0)
            caches[name] = cache_at(bench, models[name], name, context, *caches[name])
        bench.note("cache", context, {name: {"bytes": cache_bytes(caches[name][0])} for name in names})
        steps = {name: greedy_step(models[name], caches[name][0], context, batch=1) for name in names}
        bench.note("decode", context, decode_times(steps, context, chunk_size, bench.device))
        caches = {name: (cache, context + WARM_UP_STEPS + chunk_size) for name, (cache, _) in caches.items()}


def decode_growth(bench: Bench, contexts: tuple[int, ...]) -> None:
    """Time a token of ours alone. Contexts, whole chunks each, take turns, as in `prefill_growth`."""
    model, chunk_size = bench.model(OURS), bench.configs[OURS].chunk_size
    steps = {}
    for context in contexts:
        cache, _ = cache_at(bench, model, OURS, context, None, 0)
        steps[context] = greedy_step(model, cache, context, batch=1)
    for context, point in decode_times(steps, contexts[0], chunk_size, bench.device).items():
        bench.note("decode growth", context, {OURS: point})


def cache_at(bench: Bench, model: PreTrainedModel, name: str, context: int, cache, seen: int) -> tuple:
    """A cache of `context` tokens and their number: Llama's filled at random, the others' going on from `cache`."""
    if name == FULL:
        return random_cache(model.config, context, 1, bench.device, bench.dtype), context
    return prefill_in_pieces(model, cache, bench.token_ids(1, context - seen)), context


def decode_times(steps: dict[str, Callable], context: int, chunk_size: int, device: str) -> dict[str, dict]:
    """Time all `steps` over a chunk. A token takes the median of ordinary ones and a share of the one that enters."""
    runs = [{name: timed(step, device) for name, step in steps.items()} for _ in range(WARM_UP_STEPS + chunk_size)]
    points = {}
    for name in steps:
        times = [run[name] for run in runs[WARM_UP_STEPS:]]
        entering = times.pop(-(context + WARM_UP_STEPS) % chunk_size)
        ordinary = statistics.median(times)
        seconds = (ordinary * (chunk_size - 1) + entering) / chunk_size
        points[name] = {"seconds": seconds, "ordinary": ordinary, "entering": entering, "runs": chunk_size}
    return points


def decode_throughput(bench: Bench, context: int, batches: tuple[int, ...]) -> None:
    """Count tokens per second of ours and Llama, each at the largest of `batches` that fits, alone on the device."""
    for name in (OURS, FULL):
        point = largest_batch(bench, name, context, batches)
        if point is not None:
            bench.note("throughput", context, {name: point})


def largest_batch(bench: Bench, name: str, context: int, batches: tuple[int, ...]) -> dict | None:
    """
    Time a step of one model at the largest of `batches` that fits; `None` where none fits. This is a function of its
    own so that what a batch held is free for the next one.
    """
    model = bench.model(name)
    one, _ = cache_at(bench, model, name, context, None, 0)
    for batch in sorted(batches, reverse=True):
        if bench.device == "cuda":
            torch.cuda.empty_cache()
        try:
            times = batch_times(bench, model, deepcopy(one), context, batch)
        except torch.OutOfMemoryError:
            continue
        return {"batch": batch, "tokens": batch / times["seconds"], **times}
    return None


def batch_times(bench: Bench, model: PreTrainedModel, cache, context: int, batch: int) -> dict:
    """Time a step with `batch` copies of the one row in `cache`."""
    cache.batch_repeat_interleave(batch)
    steps = {"": greedy_step(model, cache, context, batch)}
    return decode_times(steps, context, bench.configs[OURS].chunk_size, bench.device)[""]


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
    windows, memories = (sum(kind != other for kind in config.layer_kinds) for other in ("latent", "local"))
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
