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
The suite's core under other versions of torch and transformers, and the table of it in docs/compatibility.md.

    make test-matrix
    PYTHONPATH=. python tests/matrix.py 5    # the fifth pair alone; what was measured of the others stays

Each pair of versions has an environment of its own under `.cache/venvs`. What can't be installed, or fails, is in the
table as well.
"""

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

from benchmarks.record import code_at, revision
from benchmarks.report import fill_in
from environments import ROOT, make_environment


PAGE = ROOT / "docs" / "compatibility.md"
RESULTS = ROOT / "docs" / "compatibility.json"
# transformers, torch: the oldest and the newest of both that setup.py admits, and releases of transformers between.
PAIRS = [("5.17.0", "2.11.0"), ("5.20.0", "2.13.0"), ("5.23.0", "2.13.0"), ("5.24.0", "2.11.0"), ("5.24.0", "2.14.1")]
# What differs between the pairs: the rest of constraints.txt holds for all of them.
OF_THE_PAIR = {"torch", "transformers", "huggingface_hub", "tokenizers", "safetensors", "setuptools"}
TEST_PACKAGES = ["accelerate", "bitsandbytes", "datasets", "matplotlib", "peft", "pytest"]
TESTS = [
    *("configuration", "configuration_refusals", "configuration_ready_made"),
    *("contract_mechanism", "contract_sequences", "contract_cache", "contract_numerics"),
    *("generation", "continuing", "static_cache", "assisted", "decoding_cost", "cache_errors", "input_errors"),
    *("heads", "saving", "user_errors", "document_masks"),
]
MINUTES = 20  # for the tests of a pair, which take about six


def constraints() -> str:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    return "".join(line for line in lines if line.split("==")[0] not in OF_THE_PAIR)


def count(report: Path) -> dict:
    """Tests by their end, and the names of those that failed, from pytest's report in JUnit's format."""
    suite = ElementTree.parse(report).getroot().find("testsuite")
    counts = {name: int(suite.get(name)) for name in ("tests", "failures", "errors", "skipped")}
    failed = [case.get("name") for case in suite if case.find("failure") is not None or case.find("error") is not None]
    passed = counts["tests"] - counts["failures"] - counts["errors"] - counts["skipped"]
    return {"passed": passed, "skipped": counts["skipped"], "failed": failed}


def run_pair(transformers: str, torch: str) -> dict:
    """What became of the tests under these two versions."""
    folder = ROOT / ".cache" / "venvs" / f"transformers-{transformers}-torch-{torch}"
    packages = [f"torch=={torch}"], [f"transformers=={transformers}", *TEST_PACKAGES]
    try:
        python = make_environment(folder, constraints(), *packages)
        report = folder / "report.xml"
        report.unlink(missing_ok=True)
        files = [f"tests/test_{name}.py" for name in TESTS]
        command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *files]
        variables = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        subprocess.run(command, cwd=ROOT, env=variables, timeout=60 * MINUTES)
        outcome = count(report)
    except subprocess.CalledProcessError:
        outcome = {"error": "could not be installed"}
    except (subprocess.TimeoutExpired, FileNotFoundError):
        outcome = {"error": "did not end"}
    return {
        "transformers": transformers,
        "torch": torch,
        "date": date.today().isoformat(),
        "revision": revision(),
        **outcome,
    }


def table(results: dict) -> str:
    days = ", ".join(sorted({pair["date"] for pair in results["pairs"]}))
    revisions = code_at(pair["revision"] for pair in results["pairs"])
    lines = [f"`make test-matrix`, {days}, {revisions}; Python {results['python']}.", ""]
    lines += ["| transformers | torch | passed | skipped | failed |", "|---|---|---:|---:|---|"]
    for pair in results["pairs"]:
        versions = f"| {pair['transformers']} | {pair['torch']} |"
        if "error" in pair:
            lines.append(f"{versions} | | {pair['error']} |")
        else:
            failed = ", ".join(f"`{name}`" for name in pair["failed"]) or "none"
            lines.append(f"{versions} {pair['passed']} | {pair['skipped']} | {failed} |")
    return "\n".join(lines) + "\n"


def main(numbers: list[str]) -> None:
    """Run the pairs of these numbers, counted from 1, or all."""
    chosen = [int(number) - 1 for number in numbers] or range(len(PAIRS))
    pairs = json.loads(RESULTS.read_text(encoding="utf-8"))["pairs"] if numbers else [{}] * len(PAIRS)
    with ThreadPoolExecutor(2) as pool:  # as many as there are cores, each with a thread
        for index, outcome in zip(chosen, pool.map(lambda index: run_pair(*PAIRS[index]), chosen), strict=True):
            pairs[index] = outcome
    results = {"python": ".".join(map(str, sys.version_info[:3])), "pairs": pairs}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(fill_in(PAGE.read_text(encoding="utf-8"), "matrix", table(results)), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
