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
"""Several threads on one model, and what the code that a checkpoint carries may do to the machine it runs on."""

import ast
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import dying
from common import random_ids, tiny_model


CODE = sorted(path for path in (Path(__file__).parents[1] / "modeling_latent").glob("*.py"))
READS_AND_WRITES = "checkpoint_files.py"  # the one that may, and where its functions are called: saving and loading
LIBRARIES = {"torch", "transformers"}
STANDARD = {"collections", "contextlib", "dataclasses", "difflib", "functools", "math", "re", "typing", "warnings"}
# Where a module is part of what may be imported, but not all of it.
PARTS = {"huggingface_hub": {"huggingface_hub.dataclasses"}, "pathlib": {"pathlib"}}
BUILTINS = {"__import__", "breakpoint", "compile", "eval", "exec", "input", "open", "print"}
METHODS = {"hub", "load", "load_state_dict", "mkdir", "open", "rmtree", "save", "touch", "unlink", "write_bytes"}
METHODS |= {"write_text", "read_bytes", "read_text", "rename", "rmdir", "share_memory_", "spawn", "start", "system"}
EVENTS = ("open", "os.", "shutil.", "socket.", "subprocess.", "urllib.", "tempfile.", "import", "exec")


def generate(model, seed: int) -> torch.Tensor:
    """Tokens after prompts of several lengths, without sampling, in one of four ways."""
    ids = random_ids(2, 5 + seed % 4, seed=seed)
    settings = ({}, {"num_beams": 2}, {"prompt_lookup_num_tokens": 3}, {"cache_implementation": "static"})[seed % 4]
    ids = ids[:1] if "prompt_lookup_num_tokens" in settings else ids
    output = model.generate(ids, max_new_tokens=16, do_sample=False, **settings)
    return torch.cat([output.flatten(), model(ids).logits.argmax(-1).flatten()])


def check_threads(threads: int, calls: int) -> None:
    """One model, without a copy, called from all threads at once."""
    model = tiny_model(layer_pattern=["local", "both"], num_sink_tokens=2)
    alone = [generate(model, seed) for seed in range(calls)]
    with ThreadPoolExecutor(threads) as pool:
        together = list(pool.map(lambda seed: generate(model, seed), range(calls)))
    assert all(map(torch.equal, alone, together))


def test_eight_threads_on_one_model_give_the_numbers_of_one():
    check_threads(threads=8, calls=8)


def imported(tree: ast.AST) -> set[str]:
    """Modules by their full names, without those of the same folder."""
    nodes = list(ast.walk(tree))
    names = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    return names | {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}


@pytest.mark.parametrize("path", CODE, ids=lambda path: path.name)
def test_a_checkpoint_s_code_imports_the_two_libraries_and_starts_reads_and_writes_nothing(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if path.name == READS_AND_WRITES:  # it copies code, names unreadable weights, replaces older ones by new ones
        assert {name.split(".")[0] for name in imported(tree)} <= LIBRARIES | STANDARD | {"json", "pathlib", "shutil"}
        return
    for name in imported(tree):
        package = name.split(".")[0]
        assert package in LIBRARIES | STANDARD or name in PARTS.get(package, ()), name
    for call in (node.func for node in ast.walk(tree) if isinstance(node, ast.Call)):
        assert not (isinstance(call, ast.Name) and call.id in BUILTINS), ast.unparse(call)
        assert not (isinstance(call, ast.Attribute) and call.attr in METHODS), ast.unparse(call)


def run_watched() -> None:
    """Runs in a child: a forward, a backward and generation, which touch nothing outside of the process."""
    model, ids = tiny_model(layer_pattern=["local", "both"]), random_ids(2, 30)

    def run() -> None:
        model(ids, labels=ids).loss.backward()
        model.generate(ids, max_new_tokens=12, do_sample=False)

    run()  # what the library imports when it is first needed
    seen = []
    sys.addaudithook(lambda event, arguments: seen.append((event, arguments)) if event.startswith(EVENTS) else None)
    run()
    assert not seen, seen


def test_running_a_model_touches_no_file_no_network_and_no_process(tmp_path):
    dying.count(run_watched, (), tmp_path)
