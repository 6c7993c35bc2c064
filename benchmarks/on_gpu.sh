#!/usr/bin/env bash
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
#
# All that there is to ask of one GPU, in less than nine minutes: the tests that need one, then which kernels attention runs
# on, and time and memory beside a Llama and a windowed one of equal size, first of latent-135m, and of latent-1b if there is
# time. torch and transformers are all it needs (and pytest, for the tests); nothing is fetched.
#
#     benchmarks/on_gpu.sh              # writes speed-cuda.json to $OUT, by default benchmarks/results
#     benchmarks/on_gpu.sh rehearsal    # the same steps on a CPU, so small that they take a minute: speed-rehearsal.json
#
# Results are kept after every measure, so what a time limit cuts off is only what came behind it. The tables are made from
# them where matplotlib is, by `python -m benchmarks.speed.tables`.
set -u
plan=${1:-cuda}
python=${PYTHON:-python3}
export OUT=${OUT:-benchmarks/results}
export PYTHONPATH=.:examples:tests${PYTHONPATH:+:$PYTHONPATH}
cd "$(dirname "$0")/.."

run() {  # SECONDS COMMAND...: says how it ended, and goes on
    echo "== ${*:2}"
    timeout "$@"
    echo "== ended with $?"
}

run 100 "$python" -m pytest -q -p no:cacheprovider tests/test_cuda.py
run 280 "$python" -m benchmarks.speed --plan "$plan" --part 1 --output_dir "$OUT"
if [ "$plan" = cuda ]; then
    run 140 "$python" -m benchmarks.speed --plan cuda --part 2 --output_dir "$OUT"
fi
test -f "$OUT/speed-$plan.json"
