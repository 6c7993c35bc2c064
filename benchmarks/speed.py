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
Speed and memory of latent attention beside its peers.

    python -m benchmarks.speed --device cpu --part 1       # two cores, results/speed-cpu.json
    python -m benchmarks.speed --device cuda --part 1      # parts under nine minutes each, results/speed-cuda.json

The result is written after every measure. What was left out, and why, stands beside what was measured.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from copy import deepcopy
from dataclasses import dataclass
from functools import partial

import torch
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.utils import is_flash_linear_attention_available

from modeling_latent import LatentAttentionConfig, LatentAttentionForCausalLM

from . import record
from .peers import FULL, GSA, OURS, PEERS, WINDOWED, build, cache_name_of, configs_of, count_parameters
from .timing import (
    attention_operators,
    copy_bandwidth,
    in_fresh_process,
    interleaved,
    keep_freed_memory,
    matmul_peak,
    memory_now,
    memory_peak,
    timed,
)


SEED = 0
PIECE = 2048  # tokens of a prefill in pieces
WARM_UP_STEPS = 16
# What decoding uses once per chunk, not once per token.
ONCE_PER_CHUNK = ("latents", "latent_norm", "refine_norm", "readout_norm", "latent_self", "input_to_latent.q_proj")
ONCE_PER_CHUNK += ("input_to_latent.o_proj", "latent_to_input.k_proj", "latent_to_input.v_proj")


@dataclass
class Bench:
    """
    One configuration and its peers on one device.

    Args:
        configs: of the models, by name.
        seconds: that all rounds of one measure at one length may take, beyond which no further round starts.
        limit: seconds of one run, above which a model is left out at greater lengths.
        result: what the measures fill.
        save: called after every point.
    """

    configs: dict[str, PreTrainedConfig]
    device: str
    seconds: float
    limit: float
    result: dict
    save: Callable = lambda: None

    @property
    def dtype(self) -> torch.dtype:
        return dtype_of(self.device)

    def model(self, name: str) -> PreTrainedModel:
        return make_model(name, self.configs[name], self.device, self.dtype)

    def token_ids(self, *shape: int) -> torch.Tensor:
        return random_ids(self.configs[OURS], self.device, *shape)

    def note(self, measure: str, length: int, points: dict[str, dict]) -> None:
        for name, point in points.items():
            self.result.setdefault(measure, {}).setdefault(name, {})[str(length)] = point
            self.forget_left_out(measure, length, name)
            print(f"{measure}, {name}, {length}: {json.dumps(point)}", flush=True)
        self.save()

    def forget_left_out(self, measure: str, length: int, name: str) -> None:
        """What an earlier run of the same part said."""
        place = {"measure": measure, "model": name, "length": length}
        left_out = self.result.get("left_out", [])
        self.result["left_out"] = [entry for entry in left_out if not place.items() <= entry.items()]

    def leave_out(self, measure: str, length: int, name: str, why: str) -> None:
        self.forget_left_out(measure, length, name)
        self.result["left_out"].append({"measure": measure, "model": name, "length": length, "why": why})

    def names_at(self, measure: str, length: int, few: tuple[int, ...]) -> list[str]:
        """Ours and Llama at every length, the other peers at `few`, and none for which the limit is exceeded."""
        names = []
        for name in self.configs:
            points = self.result.get(measure, {}).get(name, {}).items()
            slowest = max((point["seconds"] for at, point in points if int(at) < length), default=0)
            if name not in (OURS, FULL) and length not in few:
                self.leave_out(measure, length, name, "only Llama is measured at every length")
            elif slowest > self.limit:
                why = f"{slowest:.0f} s at a smaller length, above the limit of {self.limit:.0f} s"
                self.leave_out(measure, length, name, why)
            else:
                names.append(name)
        return names


def dtype_of(device: str) -> torch.dtype:
    return torch.bfloat16 if device == "cuda" else torch.float32


def make_model(name: str, config: PreTrainedConfig, device: str, dtype: torch.dtype) -> PreTrainedModel:
    torch.manual_seed(SEED)
    with torch.device(device):
        return build(name, config).to(dtype).eval()


def random_ids(config: LatentAttentionConfig, device: str, *shape: int) -> torch.Tensor:
    return torch.randint(config.vocab_size, shape, generator=torch.Generator().manual_seed(SEED)).to(device)


@torch.no_grad()
def forward(model: PreTrainedModel, input_ids: torch.Tensor, cache=None, **kwargs):
    """Logits of the last token, and the cache."""
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
    """All that its tensors hold, but for numbers without a dimension, such as a length that the host counts."""
    tensors = (leaf for layer in cache.layers for leaf in tree_leaves(vars(layer)))
    return sum(leaf.nbytes for leaf in tensors if isinstance(leaf, torch.Tensor) and leaf.ndim)


def by_length(bench: Bench, measure: str, lengths: tuple[int, ...], few: tuple[int, ...], make_call: Callable) -> None:
    """Times `make_call(model, input_ids)()` of all models, which are made anew at each length, to hold less memory."""
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
    """Prefill of ours alone. Lengths take turns, so that a drift of the machine meets all of them."""
    model = bench.model(OURS)
    calls = {length: partial(forward, model, bench.token_ids(1, length)) for length in lengths}
    for length, point in interleaved(calls, bench.device, bench.seconds).items():
        bench.note("prefill growth", length, {OURS: point})


def training(bench: Bench, lengths: tuple[int, ...], few: tuple[int, ...] = ()) -> None:
    by_length(bench, "training", lengths, few, lambda model, input_ids: partial(training_step(model), input_ids))


def decode(bench: Bench, contexts: tuple[int, ...], few: tuple[int, ...] = ()) -> None:
    """Time per token over one whole chunk, and the bytes of the caches. Models take turns at every token."""
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
    """Time per token of ours alone. Contexts, whole chunks each, take turns, as in `prefill_growth`."""
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
    """Per token: the median of ordinary steps and, once per chunk, the step that enters a new chunk."""
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
    """Tokens per second of ours and Llama, each at the largest of `batches` that fits, with the device to itself."""
    for name in (OURS, FULL):
        point = largest_batch(bench, name, context, batches)
        if point is not None:
            bench.note("throughput", context, {name: point})


def largest_batch(bench: Bench, name: str, context: int, batches: tuple[int, ...]) -> dict | None:
    """Of one model; `None` where none fits. A function of its own, so that what one try held is free for the next."""
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
    """Of a step with `batch` copies of the one row in `cache`."""
    cache.batch_repeat_interleave(batch)
    steps = {"": greedy_step(model, cache, context, batch)}
    return decode_times(steps, context, bench.configs[OURS].chunk_size, bench.device)[""]


def training_peak(name: str, config: PreTrainedConfig, device: str, dtype: torch.dtype, length: int) -> dict:
    """Bytes that a training step adds to the weights and to the optimizer's state, which a short step has made.

    These two are counted and not measured: after the short step the process still holds what that step gave back.
    """
    start = memory_now(device)
    model = make_model(name, config, device, dtype)
    step = training_step(model)
    step(random_ids(config, device, 1, 64))
    seconds = timed(partial(step, random_ids(config, device, 1, length)), device)
    kept = 3 * sum(parameter.nbytes for parameter in model.parameters())  # weights, and AdamW's two averages
    return {"bytes": memory_peak(device) - start - kept, "seconds": seconds}


def training_memory(bench: Bench, lengths: tuple[int, ...], names: tuple[str, ...] = (OURS, FULL)) -> None:
    for length in lengths:
        for name in names:
            arguments = (name, bench.configs[name], bench.device, bench.dtype, length)
            note_fresh(bench, "training memory", length, name, training_peak, *arguments)


def note_fresh(bench: Bench, measure: str, length: int, name: str, function: Callable, *arguments) -> None:
    """What `function(*arguments)` finds in a process of its own, unless memory runs out there."""
    try:
        bench.note(measure, length, {name: in_fresh_process(function, *arguments)})
    except (torch.OutOfMemoryError, BrokenProcessPool):  # the latter: the system stopped the process
        bench.leave_out(measure, length, name, "out of memory")


def read_and_decode(config: LatentAttentionConfig, device: str, dtype, tokens: int, piece: int, batch: int) -> dict:
    """Prefill in pieces and 100 tokens decoded after it; memory is that of the whole process."""
    model = make_model(OURS, config, device, dtype)
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
    attended = 1.5 * config.chunk_size + config.num_latents  # on average, per layer
    pair = 2 * config.num_key_value_heads * config.head_dim * model.dtype.itemsize
    return weights + config.num_hidden_layers * attended * pair


def limits(bench: Bench, length: int, context: int, matmul_size: int, copied: int) -> None:
    """What the machine can do, and the share of it that ours got in training at `length` and decoding at `context`."""
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


def cpu_small(bench: Bench) -> None:
    prefill(bench, (1024, 4096, 16384), few=(1024, 4096))
    training(bench, (1024, 4096), few=(1024,))
    attention_kernels(bench, (1024,))


def cpu_growth(bench: Bench) -> None:
    """A part of its own: training on the longer row needs nearly all memory that is left beside this process."""
    prefill_growth(bench, (4096, 16384))
    training_memory(bench, (4096, 16384), names=(OURS,))
    training(bench, (16384,))  # last, as this process then keeps most of the memory


def cpu_decode(bench: Bench) -> None:
    decode(bench, (1024, 4096, 8192, 32768), few=(1024,))
    decode_growth(bench, (1024, 32768))
    limits(bench, length=1024, context=1024, matmul_size=4096, copied=2**29)


def cpu_tiny(bench: Bench) -> None:
    longest_context(bench, tokens=1_000_000, piece=8192, batch=1)


def cuda_prefill_decode(bench: Bench) -> None:
    few = (1024, 4096)
    prefill(bench, (1024, 4096, 16384, 65536), few)
    prefill_growth(bench, (4096, 16384))
    decode(bench, (1024, 8192, 32768), few=(1024,))
    decode_growth(bench, (1024, 32768))
    decode_throughput(bench, 32768, batches=(2048, 1536, 1024, 768, 512, 256, 128, 96, 64, 48, 32, 16, 8))


def cuda_training(bench: Bench) -> None:
    training(bench, (1024, 4096, 8192, 32768), few=(1024, 4096))
    training_memory(bench, (4096, 16384))
    attention_kernels(bench, (1024, 8192))


def cuda_limits(bench: Bench) -> None:
    training(bench, (8192,))
    limits(bench, length=8192, context=1024, matmul_size=8192, copied=2**32)
    longest_context(bench, tokens=1_000_000, piece=8192, batch=8)


# Name of the configuration and what is measured with it, by device and part.
PLANS = {
    "cpu": [
        [("latent-tiny", cpu_tiny), ("latent-60m", cpu_small)],
        [("latent-60m", cpu_growth)],
        [("latent-60m", cpu_decode)],
    ],
    "cuda": [[("latent-1b", cuda_prefill_decode)], [("latent-135m", cuda_training)], [("latent-1b", cuda_limits)]],
}
SECONDS, LIMIT = {"cpu": 60, "cuda": 10}, {"cpu": 60, "cuda": 20}


def gsa_or_why_not(device: str) -> tuple[tuple[str, ...], str]:
    if device != "cuda":
        return (), "GSA needs a CUDA device"
    if not is_flash_linear_attention_available():
        return (), "GSA needs the package flash-linear-attention, which is not installed"
    return (GSA,), "GSA is measured"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=list(PLANS), required=True)
    parser.add_argument("--part", type=int, default=1, help="Of the plan. Parts after the first add to its result.")
    arguments = parser.parse_args(argv)
    name, plan = f"speed-{arguments.device}", PLANS[arguments.device]
    if not 1 <= arguments.part <= len(plan):
        parser.error(
            f"--part is {arguments.part} but must be from 1 to {len(plan)}, the parts for {arguments.device}."
        )
    if arguments.device == "cpu":
        keep_freed_memory()
    gsa, why = gsa_or_why_not(arguments.device)
    result = {"seed": SEED, "seconds": SECONDS, "limit": LIMIT, "GSA": why, "parts": {}, "models": {}}
    if arguments.part > 1:
        result = json.loads((record.RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    part = result["parts"][str(arguments.part)] = record.environment(arguments.device)
    begin = time.perf_counter()

    def save():
        part["seconds"] = round(time.perf_counter() - begin)
        record.write(name, result)

    for config_name, measure in plan[arguments.part - 1]:
        configs = configs_of(config_name, (*PEERS, *gsa))
        section = result["models"].setdefault(config_name, {})
        section["configurations"] = {model: config.to_diff_dict() for model, config in configs.items()}
        section["state_bytes"] = configs[OURS].state_bytes(1, dtype_of(arguments.device))
        section["parameters"] = {model: count_parameters(model, config) for model, config in configs.items()}
        device = arguments.device
        measure(Bench(configs, device, SECONDS[device], LIMIT[device], section, save))
    save()


if __name__ == "__main__":
    main()
