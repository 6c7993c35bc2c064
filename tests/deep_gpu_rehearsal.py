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
"""What is asked of a GPU, rehearsed on a CPU: the script runs to its end, and writes a number for every measure."""

import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.speed.models import FULL, OURS


ROOT = Path(__file__).parents[1]
OF_LLAMA_TOO = ("decode", "decode compiled", "prefill", "training", "training memory", "throughput", "kernels")


def test_the_script_for_a_gpu_runs_on_a_cpu(tmp_path):
    variables = {**os.environ, "PYTHON": sys.executable, "OUT": str(tmp_path)}
    command = ["bash", ROOT / "benchmarks" / "on_gpu.sh", "rehearsal"]
    printed = subprocess.run(command, env=variables, capture_output=True, text=True, check=True).stdout
    assert printed.count("== ended with 0") == 2, printed
    points = json.loads((tmp_path / "speed-rehearsal.json").read_text())["models"]["latent-tiny"]
    assert all({OURS, FULL} <= points[measure].keys() for measure in OF_LLAMA_TOO)
    assert all(points[measure][OURS] for measure in ("limits", "prefill growth", "decode growth", "longest context"))
