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
What context parallel sends: bytes per layer, step and rank, counted, beside what full attention has to send.

    python -m benchmarks.communication            # counts, and writes the table into docs/scaling.md
    python -m benchmarks.communication --time     # on two processes the share of time that goes to messages

Bytes are counted where PyTorch is asked for a collective, in the forward and the backward of a training step of one
row. No message leaves: tensors are PyTorch's fake ones, which have shapes and no values, so that a million tokens cost
nothing. A test holds the count to what two real processes send.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch
from torch import distributed
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM

from modeling_latent import LatentAttentionConfig, LatentAttentionForCausalLM

from . import record, report


ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "scaling.md"
CONFIGURATION = ROOT / "configuration" / "latent-135m"
PLANNED, PLANNED_SIZE = ROOT / "configuration" / "latent-1b", 64
KINDS = ("local", "both")
LENGTHS = (4_096, 16_384, 65_536, 262_144, 1_048_576)
SIZES = (2, 4, 8)
SENDING = torch.ops._c10d_functional.all_to_all_single.default
WAITING = torch.ops._c10d_functional.wait_tensor.default


class Messages(TorchDispatchMode):
    """Counts the bytes that a rank sends to others by the model's one collective, and the seconds that it takes."""

    def __init__(self, rank: int):
        super().__init__()
        self.rank, self.bytes, self.seconds = rank, 0, 0.0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func not in (SENDING, WAITING):
            return func(*args, **(kwargs or {}))
        if func is SENDING:
            tensor, _, receivers = args[:3]
            self.bytes += (sum(receivers) - receivers[self.rank]) * tensor.element_size()
        start = time.perf_counter()
        result = func(*args, **(kwargs or {}))
        self.seconds += time.perf_counter() - start
        return result


def one_layer(kind: str, **overrides) -> LatentAttentionConfig:
    settings = {"layer_pattern": [kind], "num_hidden_layers": 1, "num_sink_tokens": 4, **overrides}
    return AutoConfig.from_pretrained(CONFIGURATION, **settings)


def step(model: LatentAttentionForCausalLM, input_ids: torch.Tensor) -> None:
    """Forward and backward of all layers. The head and the loss send one number, whatever there is."""
    model.model(input_ids, use_cache=False).last_hidden_state.sum().backward()


def sent(config: LatentAttentionConfig, length: int, size: int, rank: int) -> int:
    """Bytes that one of `size` ranks sends in a training step of a row of `length` tokens, in bfloat16."""
    distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=size)
    try:
        mesh = init_device_mesh("cpu", (size,))
        with FakeTensorMode(), Messages(rank) as messages:
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).train()
            model.enable_context_parallel(mesh)
            model.model.rank_group.check_same = lambda tokens: None  # there are no values to compare
            step(model, torch.zeros(1, length, dtype=torch.long))
        return messages.bytes
    finally:
        distributed.destroy_process_group()


def ring_attention(config: LatentAttentionConfig, length: int, size: int) -> int:
    """
    Bytes that a rank sends per layer and step where every token attends to all earlier ones, in bfloat16.

    Ring attention (Liu et al. 2023, arXiv:2310.01889) passes the keys and values of a rank's tokens on to the next
    rank until all have seen them, `size - 1` times; and in the backward again, with their gradients.
    """
    keys_values = 2 * length // size * config.num_key_value_heads * config.head_dim * torch.bfloat16.itemsize
    return 3 * (size - 1) * keys_values


def all_gather(config: LatentAttentionConfig, length: int, size: int) -> int:
    """
    The same by an all-gather of keys and values, as Llama 3 was trained (2024, arXiv:2407.21783), and in the backward
    a reduce-scatter of their gradients: `size - 1` parts each, where the gathered keys are kept for the backward.
    """
    return ring_attention(config, length, size) * 2 // 3


def count() -> dict:
    """The greatest count of any rank, for each kind of layer, number of ranks and length; and both formulas."""
    counts = {}
    for size in SIZES:
        for kind in KINDS:
            config = one_layer(kind)
            for length in LENGTHS:
                counts[f"{kind}, {size} ranks, {length} tokens"] = max(
                    sent(config, length, size, rank)
                    for rank in (0, size // 2)  # at the end as at the start
                )
    config = one_layer("both")
    formulas = {
        f"{formula.__name__}, {size} ranks, {length} tokens": formula(config, length, size)
        for formula in (ring_attention, all_gather)
        for size in SIZES
        for length in LENGTHS
    }
    return {"configuration": CONFIGURATION.name, "bytes": counts | formulas}


def plan() -> dict[str, float]:
    """Bytes of one rank, in bfloat16, where 64 train latent-1b on a row of the longest length, and FSDP2 shards it."""
    config, length = AutoConfig.from_pretrained(PLANNED), LENGTHS[-1]
    tokens, layers = length // PLANNED_SIZE, config.num_hidden_layers
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())
    summary = 4 * config.num_attention_heads * config.num_latents * (config.head_dim + 2)
    pattern = config.layer_pattern
    of_pattern = AutoConfig.from_pretrained(PLANNED, num_hidden_layers=len(pattern))
    return {
        "tokens of a rank": tokens,
        "parameters": parameters,
        "context parallel sends": sent(of_pattern, length, PLANNED_SIZE, PLANNED_SIZE // 2) * layers // len(pattern),
        "ring attention would send": ring_attention(config, length, PLANNED_SIZE) * layers,
        # Gathered in the forward and again in the backward, and the gradients reduced and scattered.
        "FSDP2 sends": 3 * 2 * parameters * (PLANNED_SIZE - 1) // PLANNED_SIZE,
        # Weights, gradients and two moments of AdamW, in float32.
        "weights, gradients, optimizer": 16 * parameters // PLANNED_SIZE,
        "inputs of all layers, checkpointed": 2 * tokens * config.hidden_size * layers,
        "statistics of the other ranks, in one layer": summary * (PLANNED_SIZE - 1),
        "logits, in float32": 4 * tokens * config.vocab_size,
    }


def kibibytes(value: float) -> str:
    return f"{value / 1024:,.0f}"


def table(result: dict) -> str:
    names = {
        "local": "this model, a layer `local`",
        "both": "this model, a layer `both`",
        "all_gather": "all-gather of keys and values",
        "ring_attention": "ring attention",
    }
    rows = [["KiB per layer, step and rank", "ranks", *(f"{length:,}" for length in LENGTHS)]]
    for name, title in names.items():
        for size in SIZES:
            values = [result["bytes"][f"{name}, {size} ranks, {length} tokens"] for length in LENGTHS]
            rows.append([title, str(size), *map(kibibytes, values)])
    return report.markdown(rows)


def plan_table(result: dict) -> str:
    rows = [["of one of 64 ranks", ""]]
    for name, value in result["plan"].items():
        is_count = name in ("tokens of a rank", "parameters")
        rows.append([name, f"{value:,}" if is_count else f"{value / 2**20:,.0f} MiB"])
    return report.markdown(rows)


def share_text(result: dict) -> str:
    return "".join(f"- {name}: {share:.0%}\n" for name, share in result["share_of_time"].items())


def texts(result: dict) -> dict[str, str]:
    """What stands between the page's comments of these names, of what has been measured."""
    made = {"plan": plan_table, "share_of_time": share_text}
    return {"bytes": table(result)} | {mark: make(result) for mark, make in made.items() if mark in result}


def time_step(rank: int, size: int, folder: str, results) -> None:
    """One of the processes: the share of a step's time that goes to messages and to waiting for them."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/meeting", world_size=size, rank=rank)
    config = one_layer("both", num_hidden_layers=2, vocab_size=256)
    torch.manual_seed(0)
    model = LatentAttentionForCausalLM(config).train()
    model.enable_context_parallel(init_device_mesh("cpu", (size,)))
    for length in LENGTHS[:2]:
        shares, input_ids = [], torch.randint(config.vocab_size, (1, length))
        for _ in range(4):
            distributed.barrier()
            start = time.perf_counter()
            with Messages(rank) as messages:
                step(model, input_ids)
            shares.append(messages.seconds / (time.perf_counter() - start))
        results[length, rank] = sorted(shares[1:])[1]  # the median of three, after one that warms up
    distributed.destroy_process_group()


def time_steps(size: int = 2) -> dict:
    with tempfile.TemporaryDirectory() as folder, torch.multiprocessing.Manager() as manager:
        results = manager.dict()
        torch.multiprocessing.spawn(time_step, (size, folder, results), nprocs=size)
        shares = {length: max(results[length, rank] for rank in range(size)) for length in LENGTHS[:2]}
    return {f"{size} ranks, {length} tokens": round(share, 3) for length, share in shares.items()}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--time", action="store_true", help="measure the share of time instead of counting bytes")
    args = parser.parse_args(argv)
    result = record.read("communication") or {}
    result |= {"share_of_time": time_steps()} if args.time else {**count(), "plan": plan()}
    result["time" if args.time else "count"] = record.environment("cpu")
    record.write("communication", result)
    page = PAGE.read_text(encoding="utf-8")
    for mark, text in texts(result).items():
        page = report.fill_in(page, mark, text)
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
