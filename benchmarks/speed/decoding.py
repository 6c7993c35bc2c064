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
"""Decoding: the time of a token and the bytes of a cache, one row or many, eager or compiled."""

import statistics
from collections.abc import Callable
from copy import deepcopy

import torch
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel, StaticCache

from benchmarks.peers import cache_tensors
from modeling_latent import LatentAttentionForCausalLM

from .bench import Bench, forward
from .models import FULL, OURS
from .timing import timed


PIECE = 2048  # tokens of a prefill in pieces
WARM_UP_STEPS = 16


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


def decode_compiled(bench: Bench, context: int, names: tuple[str, ...] = (OURS, FULL)) -> None:
    """Time a token as in `decode`, by a step that is compiled for a static cache; to compile is not in the time."""
    chunk_size = bench.configs[OURS].chunk_size
    longest = context + WARM_UP_STEPS + 2 * chunk_size
    steps = {name: compiled_step(bench, name, context, longest) for name in names}
    for step in steps.values():
        for _ in range(chunk_size):  # of which one enters a chunk, so that this step and the others are compiled here
            step()
    bench.note("decode compiled", context, decode_times(steps, context + chunk_size, chunk_size, bench.device))


def compiled_step(bench: Bench, name: str, context: int, longest: int) -> Callable:
    """A compiled step behind `context` tokens of a static cache, which Llama's makes as long as the `longest` text."""
    model = bench.model(name)
    cache = StaticCache(config=model.config, max_cache_len=longest)
    prefill_in_pieces(model, cache, bench.token_ids(1, context))
    model.compile(fullgraph=True)
    return greedy_step(model, cache, context, batch=1)


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
