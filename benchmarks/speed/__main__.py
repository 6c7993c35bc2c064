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

    python -m benchmarks.speed --plan cpu --part 1     # two cores, results/speed-cpu.json
    python -m benchmarks.speed --plan cuda --part 1    # a GPU, results/speed-cuda.json: see benchmarks/on_gpu.sh

The result is written after every measure. What was left out, and why, stands beside what was measured.
"""

import argparse
import time
from pathlib import Path

from transformers import PreTrainedConfig

from benchmarks import record

from .bench import SEED, Bench, dtype_of
from .models import OURS, configs_of, count_parameters
from .plans import PLANS
from .timing import keep_freed_memory


def described(configs: dict[str, PreTrainedConfig], device: str) -> dict:
    """What the result says of the models beside their measures."""
    return {
        "configurations": {model: config.to_diff_dict() for model, config in configs.items()},
        "state_bytes": configs[OURS].state_bytes(1, dtype_of(device)),
        "parameters": {model: count_parameters(config) for model, config in configs.items()},
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", choices=list(PLANS), required=True, help="a device, or a rehearsal on the CPU")
    parser.add_argument("--output_dir", type=Path, help="for speed-PLAN.json; default: benchmarks/results")
    parser.add_argument("--part", type=int, default=1, help="of the plan; parts after the first add to its result")
    arguments = parser.parse_args(argv)
    name, plan, number = f"speed-{arguments.plan}", PLANS[arguments.plan], arguments.part
    if not 1 <= number <= len(plan.parts):
        parser.error(f"--part is {number} but must be from 1 to {len(plan.parts)}, the parts of {arguments.plan}.")
    result = {"seed": SEED, "seconds": plan.seconds, "limit": plan.limit, "parts": {}, "models": {}}
    if number > 1:
        result = record.read(name, arguments.output_dir)
        if result is None:
            parser.error(f"--part is {number} but adds to {name}.json, which is not there: run part 1 first.")
    if plan.device == "cpu":
        keep_freed_memory()
    part = result["parts"][str(number)] = record.environment(plan.device)
    begin = time.perf_counter()

    def save():
        part["seconds"] = round(time.perf_counter() - begin)
        record.write(name, result, arguments.output_dir)

    for config_name, measure in plan.parts[number - 1]:
        configs = configs_of(config_name, plan.peers)
        section = result["models"].setdefault(config_name, {})
        section |= described(configs, plan.device)
        measure(Bench(configs, plan.device, plan.seconds, plan.limit, section, save, plan.too_large))
    save()


if __name__ == "__main__":
    main()
