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
"""How time and memory are measured, on a CPU and on a CUDA device."""

import ctypes
import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile


MOST_ROUNDS = 7
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def timed(call: Callable, device: str) -> float:
    """Seconds of one call: wall clock, on a CUDA device between two of its events."""
    if device != "cuda":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000


def summary(runs: list[float]) -> dict:
    return {"seconds": statistics.median(runs), "fastest": min(runs), "slowest": max(runs), "runs": len(runs)}


def interleaved(calls: dict[str, Callable], device: str, seconds: float) -> dict[str, dict]:
    """
    Medians of calls that take turns (a b c a b c …), so that a drift of the machine meets all of them.

    The first round is warm-up, however long it takes: in it the first model alone would pay for memory that the system
    clears when it is asked for. Rounds go on until `seconds` are over, `MOST_ROUNDS` at most, and there are two after
    the warm-up in any case. A call that runs out of device memory is taken out of `calls`, which should hold all that
    the call holds, and is missing in the answer.
    """
    rounds, begin = [], time.perf_counter()
    while calls and len(rounds) <= MOST_ROUNDS and (len(rounds) < 3 or time.perf_counter() - begin < seconds):
        rounds.append({})
        for name in list(calls):
            try:
                rounds[-1][name] = timed(calls[name], device)
            except torch.OutOfMemoryError:
                del calls[name]
    return {name: summary([times[name] for times in rounds[1:]]) for name in calls}


def keep_freed_memory() -> None:
    """
    From now on the C library keeps what is freed, where it would give blocks above 32 MiB back to the system, which
    clears them page by page when they are asked for again: time that jumps with the size of a tensor.
    """
    mallopt = ctypes.CDLL(None).mallopt
    for parameter, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1)):
        if not mallopt(parameter, value):
            raise OSError(f"`mallopt({parameter}, {value})` failed: this needs glibc.")


def in_fresh_process(function: Callable, *arguments):
    """`function(*arguments)` where nothing has been allocated before, and this process keeps no more than it uses."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def process_status(field: str) -> int:
    """Bytes in Linux's account of this process; `ru_maxrss` would begin with that of the process that started it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"`field` is {field!r} but must be one of /proc/self/status, such as VmRSS or VmHWM.")


def memory_now(device: str) -> int:
    """Bytes that are in use."""
    return torch.cuda.memory_allocated() if device == "cuda" else process_status("VmRSS")


def memory_peak(device: str) -> int:
    """The most bytes that this process ever used."""
    return torch.cuda.max_memory_allocated() if device == "cuda" else process_status("VmHWM")


def attention_operators(call: Callable, device: str) -> dict[str, list[str]]:
    """What `scaled_dot_product_attention` picked: shapes of query and key to names of operators and kernels."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == "cuda")
    with profile(activities=activities, record_shapes=True) as profiler:
        call()
    picked: dict[str, set] = {}
    for event in profiler.events():
        if event.name == "aten::scaled_dot_product_attention":
            query, key = event.input_shapes[:2]
            picked.setdefault(f"query {query}, key {key}", set()).update(operators_of(event))
    return {shapes: sorted(names) for shapes, names in picked.items()}


def operators_of(event) -> list[str]:
    """Kernels that an operator started, and the attention operators, which name the backend, that it went through."""
    names = [kernel.name for kernel in event.kernels]
    names += [event.name] * event.name.startswith("aten::_scaled_dot_product")
    return names + [name for child in event.cpu_children for name in operators_of(child)]


def matmul_peak(device: str, dtype: torch.dtype, size: int) -> float:
    """Multiply-adds, counted as two, per second of a product of two square matrices."""
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / interleaved({"matmul": lambda: left @ right}, device, 10)["matmul"]["fastest"]


def copy_bandwidth(device: str, size: int) -> float:
    """Bytes read and written per second by a copy of `size` bytes."""
    source, target = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
    return 2 * size / interleaved({"copy": lambda: target.copy_(source)}, device, 10)["copy"]["fastest"]
