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
"""Units of work: one model, setting, learning rate and seed. Each finished one is a line in a file and never repeated.

A unit is a dictionary of everything that decides its result, its recipe included, so a changed recipe is another unit.
"""

import hashlib
import json
import multiprocessing
import os
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch

from benchmarks import record

from .training import Job


CHECKPOINTS = Path(__file__).parents[2] / "out" / "quality"


def parse_arguments(description: str, forms: dict, argv: list[str] | None = None) -> Namespace:
    parser = ArgumentParser(description=description)
    parser.add_argument("--form", choices=list(forms), default="reduced", help="how much is measured")
    parser.add_argument("--jobs", type=int, default=2, help="units at a time")
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="stop after so long; the same command goes on from there"
    )
    args = parser.parse_args(argv)
    args.device = "cuda" if torch.cuda.is_available() else "cpu"
    args.deadline = time.time() + 60 * args.minutes
    return args


def key_of(unit: dict) -> str:
    return json.dumps(unit, sort_keys=True)


def read_finished(file: Path) -> dict[str, dict]:
    """The results in a file, with the machine and the code that they come from, by the `key_of` their unit."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return {key_of(line.pop("unit")): {**line.pop("result"), **line} for line in map(json.loads, lines)}


def finished_units(file: Path, units: list[dict]) -> list[dict]:
    """Those of `units` that have a line in the file, in order, each with its result, `revision` and `machine`."""
    finished = read_finished(file)
    return [{**unit, **finished[key]} for unit in units if (key := key_of(unit)) in finished]


def set_threads(jobs: int) -> None:
    """Give each of `jobs` units its share of the cores, as small models do not get faster with more."""
    torch.set_num_threads(max(1, os.cpu_count() // jobs))


def run_units(file: Path, units: list[dict], run_unit: Callable[[dict, Job], dict | None], args: Namespace) -> None:
    """Run the units that have no line in the file yet, until the deadline. Each that finishes gets its line."""
    file.parent.mkdir(parents=True, exist_ok=True)
    finished = read_finished(file)
    waiting = [unit for unit in units if key_of(unit) not in finished]
    origin = {"revision": record.revision(), "machine": record.machine(args.device, args.jobs)}
    # From the end, where the slow models are: left to the end they would run alone.
    for unit, result in run_all(waiting[::-1], run_unit, args):
        if result is not None:
            with file.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps({"unit": unit, "result": result, **origin}) + "\n")
            print(json.dumps({**unit, **result}), flush=True)


def run_all(units: list[dict], run_unit: Callable, args: Namespace):
    """Run `args.jobs` units at a time; each comes with its result, or with `None` where the deadline stopped it."""
    jobs = [Job(args.device, args.deadline, CHECKPOINTS / f"{digest(unit)}.pt") for unit in units]
    if args.jobs == 1:
        yield from ((unit, start(run_unit, unit, job)) for unit, job in zip(units, jobs, strict=True))
        return
    spawn = multiprocessing.get_context("spawn")  # a forked process can't use CUDA
    with ProcessPoolExecutor(args.jobs, spawn, initializer=set_threads, initargs=(args.jobs,)) as pool:
        futures = {pool.submit(start, run_unit, unit, job): unit for unit, job in zip(units, jobs, strict=True)}
        yield from ((futures[future], future.result()) for future in as_completed(futures))


def start(run_unit: Callable, unit: dict, job: Job) -> dict | None:
    """Run a unit. Its result says in `seconds` how long that took, tests and all, since it was last interrupted."""
    begin = time.time()
    result = run_unit(unit, job) if begin < job.deadline else None
    return result and {**result, "seconds": time.time() - begin}


def digest(unit: dict) -> str:
    return hashlib.sha256(key_of(unit).encode()).hexdigest()[:16]
