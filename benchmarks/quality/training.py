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
"""One training loop for every model and table, which can stop at any step and go on later."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch import nn
from transformers import get_cosine_schedule_with_warmup


WEIGHT_DECAY, BETAS, MAX_GRAD_NORM, WARMUP = 0.1, (0.9, 0.95), 1.0, 0.1


@dataclass(frozen=True)
class Job:
    """Where a unit of work runs, until when (seconds since the epoch), and the file in which it is laid aside."""

    device: str
    deadline: float
    checkpoint: Path


def make_optimizer(model: nn.Module, learning_rate: float, steps: int):
    """AdamW with weight decay on matrices only, and a cosine schedule after a warmup over a tenth of the steps."""
    groups: dict[float, list] = {}
    for parameter in model.parameters():
        groups.setdefault(WEIGHT_DECAY * (parameter.ndim >= 2), []).append(parameter)
    optimizer = torch.optim.AdamW(
        [{"params": group, "weight_decay": decay} for decay, group in groups.items()], learning_rate, betas=BETAS
    )
    return optimizer, get_cosine_schedule_with_warmup(optimizer, math.ceil(WARMUP * steps), steps)


def precision(device: str, bfloat16: bool = False):
    """A context that computes in bfloat16 on a GPU, and on a CPU in float32 unless `bfloat16`."""
    return torch.autocast(device, torch.bfloat16, enabled=bfloat16 or device == "cuda")


def train(
    model: nn.Module,
    loss_at: Callable[[int], torch.Tensor],
    steps: int,
    learning_rate: float,
    job: Job,
    is_solved: Callable[[], bool] | None = None,
    check_every: int = 0,
    bfloat16: bool = False,
) -> dict | None:
    """
    Train until the last step, the deadline or the moment when the task is solved.

    Args:
        loss_at: the loss of a step, from the step's number alone, so that an interrupted unit sees the same data.
        is_solved: looked at every `check_every` steps; ends the training.

    Returns:
        `trained_steps`, the median `ms_per_step` since the last interruption and the last `loss`; `None` at the
        deadline, when the state is in the checkpoint.
    """
    parts = model, *make_optimizer(model, learning_rate, steps)
    step, seconds, loss = restore(parts, job), [], float("nan")
    while step < steps:
        if time.time() >= job.deadline:
            save(parts, step, job)
            return None
        start = time.perf_counter()
        loss = train_step(*parts, lambda at=step: loss_at(at), precision(job.device, bfloat16))
        seconds.append(time.perf_counter() - start)
        step += 1
        if is_solved is not None and step % check_every == 0 and is_solved():
            break
    job.checkpoint.unlink(missing_ok=True)
    return {"trained_steps": step, "ms_per_step": 1000 * median(seconds) if seconds else None, "loss": loss}


def train_step(model: nn.Module, optimizer, scheduler, make_loss: Callable[[], torch.Tensor], context) -> float:
    """One step, with the loss computed in `context`; returns the loss."""
    model.train()
    with context:
        loss = make_loss()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()
    return loss.item()


def save(parts: tuple, step: int, job: Job) -> None:
    """Write the checkpoint through a temporary file, so that an interruption never leaves half of one."""
    job.checkpoint.parent.mkdir(parents=True, exist_ok=True)
    temporary = job.checkpoint.with_suffix(".tmp")
    torch.save({"step": step, "parts": [part.state_dict() for part in parts]}, temporary)
    temporary.replace(job.checkpoint)


def restore(parts: tuple, job: Job) -> int:
    """Load the checkpoint, if there is one, and return the step to go on from."""
    if not job.checkpoint.exists():
        return 0
    saved = torch.load(job.checkpoint, map_location=job.device)
    for part, state in zip(parts, saved["parts"], strict=True):
        part.load_state_dict(state)
    return saved["step"]
