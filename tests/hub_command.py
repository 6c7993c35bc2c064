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
Runs `hub_upload.py` against a Hub on loopback, with the real huggingface_hub and transformers.

huggingface_hub reads `HF_ENDPOINT` when it is imported, and other tests may have imported it before. So the command,
and everything else that speaks to the Hub, runs in one worker process, started with an environment of its own. It
lasts as long as a file's tests, because importing transformers takes longer than most of them.

A test file asks for the fixtures below with `pytest_plugins = ["hub_command"]`.
"""

import contextlib
import io
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest
import safetensors.torch
import torch
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

import common
import hub_upload
from hub_server import READ_TOKEN, WRITE_TOKEN, HubServer


PROJECT = Path(__file__).resolve().parents[1]
REPO_ID = "me/latent"
CODE_FILES = {path.name for path in (PROJECT / "modeling_latent").glob("*.py")} - {"__init__.py"}
MODEL_FILES = {"config.json", "generation_config.json", "model.safetensors"} | CODE_FILES
TOKENIZER_FILES = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
EXPORT_FILES = MODEL_FILES | TOKENIZER_FILES | {"README.md", "LICENSE"}
REPO_FILES = EXPORT_FILES | {".gitattributes"}
OPTIMIZER_STEPS = 2


# What runs in the worker


@dataclass
class Result:
    """What a run of the command left."""

    code: int
    out: str
    err: str


def run_command(argv: list[str], environment: dict[str, str], sabotage: Callable) -> Result:
    """Run the command as from a shell, except that nothing pauses before it is tried again."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        stack.enter_context(mock.patch.dict(os.environ, environment))
        stack.enter_context(mock.patch("hub.upload.RETRY_PAUSES_S", (0, 0)))
        stack.enter_context(mock.patch("huggingface_hub.utils._http.time"))
        stack.enter_context(sabotage())
        code = hub_upload.main(argv)
    return Result(code, out.getvalue(), err.getvalue())


def no_sockets():
    """A sabotage: any attempt to open a connection raises."""
    return mock.patch("socket.socket", side_effect=AssertionError("a socket was opened"))


def change_export(change: Callable[[Path, dict], None]):
    """A sabotage: `change(export, reference)` comes between the assembly and the verification."""

    def assemble(request, checkpoint, export):
        reference = original(request, checkpoint, export)
        change(export, reference)
        return reference

    original = hub_upload.assemble
    return mock.patch.object(hub_upload, "assemble", assemble)


def tiny_model():
    """A model for the tokens of `byte_tokenizer`."""
    return common.tiny_model(vocab_size=258, eos_token_id=256, hidden_size=32, intermediate_size=48, chunk_size=8)


def save_checkpoint(folder: Path) -> None:
    """Save a model and a tokenizer with `save_pretrained`."""
    tiny_model().save_pretrained(folder)
    common.byte_tokenizer().save_pretrained(folder)


def make_trainer(folder: Path, **arguments) -> Trainer:
    """Make the library's Trainer for a short run, after which it saves a checkpoint."""
    examples = [{"input_ids": ids, "labels": ids} for ids in torch.arange(64).reshape(4, 16)]
    training = TrainingArguments(
        folder,
        max_steps=OPTIMIZER_STEPS,
        save_steps=OPTIMIZER_STEPS,
        logging_steps=1,
        per_device_train_batch_size=2,
        report_to=[],
        use_cpu=True,
        **arguments,
    )
    return Trainer(tiny_model(), training, train_dataset=examples, processing_class=common.byte_tokenizer())


def save_bin(file: Path, pickle: str) -> None:
    """Replace a file of weights with a pickle of the same, as older versions of the libraries wrote them."""
    torch.save(safetensors.torch.load_file(file), file.with_name(pickle))
    file.unlink()


def logits_of(folder: Path) -> list[float]:
    """Compute the last logits over a few chunks."""
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder)(torch.arange(30)[None]).logits[0, -1].tolist()


# What runs in a reader's process, which knows neither the project nor the worker's cache

READER = """
import json, sys
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, pipeline

load_line, repo_id, revision = sys.argv[1:]
if "PeftModel" in load_line:
    from peft import PeftModel
else:
    AutoConfig.from_pretrained(repo_id, revision=revision, trust_remote_code=True)
    AutoModel.from_pretrained(repo_id, revision=revision, trust_remote_code=True)
    generator = pipeline("text-generation", model=repo_id, revision=revision, trust_remote_code=True)
    assert generator("latent", max_new_tokens=5, min_new_tokens=5)[0]["generated_text"].startswith("latent")
with torch.no_grad():
    logits = eval(load_line)(torch.arange(30)[None]).logits[0, -1]
print("LOGITS" + json.dumps(logits.tolist()))
"""


def read(hub: HubServer, folder: Path, load_line: str, revision: str = "main") -> list[float]:
    """Load from the Hub in a fresh process whose home is `folder`; return the last logits over a few chunks."""
    folder.mkdir(exist_ok=True)
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(folder), "HF_TOKEN": READ_TOKEN}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_MODULES_CACHE": str(folder / "modules")}
    command = [sys.executable, "-I", "-c", READER, load_line, REPO_ID, revision]
    process = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.split("LOGITS")[1])


# What tests do with a result and with the Hub


def printed(result: Result, label: str) -> str:
    """Return the rest of the output's line that begins with `label`."""
    return re.search(rf"^{label} +(.*)$", result.out, re.MULTILINE)[1]


def run_as_told(line: str) -> None:
    """Run the command that an error message gives."""
    code = re.search(r'python -c "(.*)"', line)[1]
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True, capture_output=True)


def copy_files(hub: HubServer, repo_id: str, folder: Path) -> Path:
    """Copy a repository's files into the new `folder`, which is returned."""
    folder.mkdir(parents=True)
    for name, content in hub.repos[repo_id].files().items():
        (folder / name).write_bytes(content)
    return folder


@contextlib.contextmanager
def unchanged(hub: HubServer):
    """Check that the repository is as it was before."""
    repo = hub.repos[REPO_ID]
    before = dict(repo.branches), list(repo.messages), list(repo.pull_requests)
    yield
    assert (repo.branches, repo.messages, repo.pull_requests) == before


# Fixtures


@pytest.fixture(scope="module")
def server():
    with HubServer() as running:
        yield running


@pytest.fixture
def hub(server):
    """The Hub, without repositories."""
    server.clear()
    return server


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    """The folder where the worker makes its temporary folders."""
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture(scope="module")
def worker(server, scratch, tmp_path_factory):
    """`worker(function, *arguments)` calls it in the worker process, which finds what it imports as the tests do."""
    environment = {"HF_ENDPOINT": server.url, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": WRITE_TOKEN}
    environment |= {"HF_HOME": str(tmp_path_factory.mktemp("home")), "TMPDIR": str(scratch)}
    environment["HF_HUB_DISABLE_PROGRESS_BARS"] = "0"
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        with mock.patch.dict(os.environ, environment):
            executor.submit(os.getpid).result()
        yield lambda function, *arguments: executor.submit(function, *arguments).result()


@pytest.fixture
def upload(worker, hub, scratch):
    """Runs the command, and checks the exit code and what holds after each run, however it ended."""

    def run(checkpoint, *argv, repo_id=REPO_ID, token=WRITE_TOKEN, sabotage=contextlib.nullcontext, code=0) -> Result:
        argv = [str(argument) for argument in (checkpoint, "--repo-id", repo_id, *argv)]
        result = worker(run_command, argv, {"HF_TOKEN": token}, sabotage)
        assert result.code == code, result.err
        assert WRITE_TOKEN not in result.out + result.err and "Traceback" not in result.out
        assert not list(scratch.glob("hub_upload_*"))
        return result

    return run


@pytest.fixture
def refused(upload, hub):
    """Runs the command, which must refuse its input on one line of its own without a request; returns that line."""

    def run(*arguments, **settings) -> str:
        requests = len(hub.requests)
        lines = upload(*arguments, code=2, **settings).err.splitlines()
        (line,) = [line for line in lines if line.startswith("hub_upload.py: ")]
        assert len(hub.requests) == requests
        return line

    return run


@pytest.fixture(scope="module")
def saved(worker, tmp_path_factory):
    """The folder of a checkpoint that no test changes."""
    folder = tmp_path_factory.mktemp("saved")
    worker(save_checkpoint, folder)
    return folder


@pytest.fixture
def checkpoint(saved, tmp_path):
    """A copy of it that the test may change."""
    return Path(shutil.copytree(saved, tmp_path / "checkpoint"))
