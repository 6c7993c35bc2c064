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
import time

from transformers import PreTrainedConfig
from transformers.utils import is_flash_linear_attention_available

from benchmarks import record

from .bench import SEED, Bench, dtype_of
from .models import GSA, OURS, PEERS, configs_of, count_parameters
from .plans import LIMIT, PLANS, SECONDS
from .timing import keep_freed_memory


def gsa_or_why_not(device: str) -> tuple[tuple[str, ...], str]:
    if device != "cuda":
        return (), "GSA needs a CUDA device"
    if not is_flash_linear_attention_available():
        return (), "GSA needs the package flash-linear-attention, which is not installed"
    return (GSA,), "GSA is measured"


def described(configs: dict[str, PreTrainedConfig], device: str) -> dict:
    """What the result says of the models beside their measures."""
    return {
        "configurations": {model: config.to_diff_dict() for model, config in configs.items()},
        "state_bytes": configs[OURS].state_bytes(1, dtype_of(device)),
        "parameters": {model: count_parameters(config) for model, config in configs.items()},
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=list(PLANS), required=True)
    parser.add_argument("--part", type=int, default=1, help="of the plan; parts after the first add to its result")
    arguments = parser.parse_args(argv)
    device, number = arguments.device, arguments.part
    name, plan = f"speed-{device}", PLANS[device]
    if not 1 <= number <= len(plan):
        parser.error(f"--part is {number} but must be from 1 to {len(plan)}, the parts for {device}.")
    gsa, why = gsa_or_why_not(device)
    result = {"seed": SEED, "seconds": SECONDS, "limit": LIMIT, "GSA": why, "parts": {}, "models": {}}
    if number > 1:
        result = record.read(name)
        if result is None:
            parser.error(f"--part is {number} but adds to results/{name}.json, which is not there: run part 1 first.")
    if device == "cpu":
        keep_freed_memory()
    part = result["parts"][str(number)] = record.environment(device)
    begin = time.perf_counter()

    def save():
        part["seconds"] = round(time.perf_counter() - begin)
        record.write(name, result)

    for config_name, measure in plan[number - 1]:
        configs = configs_of(config_name, (*PEERS, *gsa))
        section = result["models"].setdefault(config_name, {})
        section |= described(configs, device)
        measure(Bench(configs, device, SECONDS[device], LIMIT[device], section, save))
    save()


if __name__ == "__main__":
    main()
