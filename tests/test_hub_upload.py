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
`hub_upload.py` against a Hub on loopback, with the real huggingface_hub and transformers.

huggingface_hub reads `HF_ENDPOINT` when it is imported, and other tests may have imported it before. So the command,
and everything else that speaks to the Hub, runs in one worker process, started with an environment of its own. It
lasts as long as this file's tests, because importing transformers takes longer than most of them.
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
import threading
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest

from hub_server import CUT, LOST, READ_TOKEN, WRITE_TOKEN, Blob, HubServer


PROJECT = Path(__file__).resolve().parents[1]
REPO_ID = "me/latent"
CODE_FILES = {path.name for path in (PROJECT / "modeling_latent").glob("*.py")} - {"__init__.py"}
MODEL_FILES = {"config.json", "generation_config.json", "model.safetensors"} | CODE_FILES
TOKENIZER_FILES = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
EXPORT_FILES = MODEL_FILES | TOKENIZER_FILES | {"README.md", "LICENSE"}
OPTIMIZER_STEPS = 2
TRAINING_LOSS = 5.4321


# What runs in the worker


def start_worker():
    """The command and the package are found in the project, installed or not."""
    sys.path.insert(0, str(PROJECT))


@dataclass
class Result:
    """What a run of the command left."""

    code: int
    out: str
    err: str


def run_command(argv: list[str], environment: dict[str, str], sabotage) -> Result:
    """The command, as from a shell, except that it does not pause before it tries again."""
    import hub.upload
    import hub_upload

    out, err = io.StringIO(), io.StringIO()
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        stack.enter_context(mock.patch.dict(os.environ, environment))
        stack.enter_context(mock.patch.object(hub.upload, "RETRY_PAUSES_S", (0, 0)))
        stack.enter_context(mock.patch("huggingface_hub.utils._http.time"))
        stack.enter_context(sabotage())
        code = hub_upload.main(argv)
    return Result(code, out.getvalue(), err.getvalue())


def no_sockets():
    """Any attempt to open a connection raises."""
    return mock.patch("socket.socket", side_effect=AssertionError("a socket was opened"))


def wrong_logits():
    """The export is compared with logits of another model."""
    import hub.export

    def shifted(model, merge):
        reference = original(model, merge)
        return {**reference, "logits": reference["logits"] + 1}

    original = hub.export.reference_logits
    return mock.patch.object(hub.export, "reference_logits", shifted)


def logits_that_are_no_numbers():
    """As of a checkpoint whose training has failed, and which no comparison finds different."""
    import hub.export

    def broken(model, merge):
        reference = original(model, merge)
        return {**reference, "logits": reference["logits"] * float("nan")}

    original = hub.export.reference_logits
    return mock.patch.object(hub.export, "reference_logits", broken)


def change_export(change):
    """`change(export)` comes between the assembly and the verification."""
    import hub_upload

    def assemble(args, checkpoint, export):
        reference = original(args, checkpoint, export)
        change(export)
        return reference

    original = hub_upload.assemble
    return mock.patch.object(hub_upload, "assemble", assemble)


def missing_code():
    """A code file does not reach the export."""
    return change_export(lambda export: (export / "cache_latent.py").unlink())


def code_that_needs_the_package():
    """A code file imports from the package, which a reader does not have."""
    line = "import modeling_latent.cache_latent\n"
    return change_export(lambda export: (export / "attention.py").open("a").write(line))


def missing_class():
    """A code file lacks a class that the config names."""
    line = "del LatentAttentionForMaskedLM\n"
    return change_export(lambda export: (export / "modeling_latent.py").open("a").write(line))


def code_that_looks_around():
    """A code file that finds a token, the network allowed, or Python not isolated does not load."""
    lines = [
        "import os, sys",
        "assert not [name for name in os.environ if 'TOKEN' in name], 'a token'",
        "assert os.environ['HF_HUB_OFFLINE'] == '1' and sys.flags.isolated, 'not alone'",
    ]
    return change_export(lambda export: (export / "attention.py").open("a").write("\n".join(lines) + "\n"))


def impatient():
    """Gives up on an answer soon."""
    import hub.upload

    return mock.patch.object(hub.upload, "REQUEST_TIMEOUT_S", 0.3)


def client_that_quotes_the_token():
    """In an error of its own."""
    import hub.upload

    error = ValueError(f"illegal header value 'Bearer {WRITE_TOKEN}'")
    return mock.patch.object(hub.upload, "prepare_repository", side_effect=error)


def no_peft():
    """As where peft is not installed."""
    return mock.patch.dict(sys.modules, {"peft": None})


def tiny_model():
    """Weights of visible size, so that no part of the model could be left out unseen."""
    import torch

    from modeling_latent import LatentAttentionConfig, LatentAttentionForCausalLM

    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LatentAttentionConfig(vocab_size=258, num_latents=4, chunk_size=8, eos_token_id=256, **shape)
    model = LatentAttentionForCausalLM(config)
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def byte_tokenizer():
    """One token per byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={byte: number for number, byte in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>")
    fast.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    return fast


def save_checkpoint(folder: Path):
    """A folder as `save_pretrained` leaves it."""
    tiny_model().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)


def make_trainer(folder: Path, **arguments):
    """The library's Trainer, for a short run."""
    import torch
    from transformers import Trainer, TrainingArguments

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
    return Trainer(tiny_model(), training, train_dataset=examples, processing_class=byte_tokenizer())


def train(folder: Path):
    """Leaves a checkpoint folder."""
    make_trainer(folder).train()


def train_and_push(folder: Path, repo_id: str):
    """`Trainer(push_to_hub=True)`."""
    trainer = make_trainer(folder, push_to_hub=True, hub_model_id=repo_id)
    trainer.train()
    trainer.push_to_hub()


def push_model(repo_id: str):
    """`model.push_to_hub`, from an instance of the package's class."""
    tiny_model().push_to_hub(repo_id)
    byte_tokenizer().push_to_hub(repo_id)


def save_adapter(folder: Path, base: str, repo_id: str | None = None):
    """A LoRA adapter, not zero as it starts, on a local folder or on a repository that is in the cache afterwards."""
    import torch
    from huggingface_hub import snapshot_download
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    import modeling_latent  # noqa: F401

    model = AutoModelForCausalLM.from_pretrained(snapshot_download(repo_id) if repo_id else base)
    model.name_or_path = base
    adapter = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    for name, parameter in adapter.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapter.save_pretrained(folder)


def change_weights(folder: Path):
    """Of a checkpoint, in place."""
    from safetensors.torch import load_file, save_file

    weights = {name: 1.5 * tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def copy_files(hub: HubServer, repo_id: str, folder: Path):
    """A repository's files, into a new folder."""
    folder.mkdir(parents=True)
    for name, content in hub.repos[repo_id].files().items():
        (folder / name).write_bytes(content)


def download(repo_id: str):
    """What `hf download` leaves in the cache."""
    from huggingface_hub import snapshot_download

    snapshot_download(repo_id)


def save_prompts(folder: Path, base: str):
    """An adapter of learned prompts, which changes no weight."""
    from peft import PromptTuningConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    import modeling_latent  # noqa: F401

    model = AutoModelForCausalLM.from_pretrained(base)
    get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)).save_pretrained(folder)


def save_bin(file: Path, pickle: str):
    """The same weights as a pickle, as older versions of the libraries wrote them."""
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(file), file.with_name(pickle))
    file.unlink()


def logits_of(folder: Path) -> list[float]:
    """The last logits over a few chunks."""
    import torch
    from transformers import AutoModelForCausalLM

    import modeling_latent  # noqa: F401

    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder)(torch.arange(30)[None]).logits[0, -1].tolist()


def state_bytes() -> int:
    """What the configuration states about the cache in the checkpoint's dtype."""
    import torch

    return tiny_model().config.state_bytes(1, torch.float32)


def card_of(folder: Path, overrides: dict) -> str:
    """The card of a model with five layers, chunks of 4 tokens and 3 latents."""
    from argparse import Namespace

    from hub.card import make_card
    from hub.checkpoint import Checkpoint
    from modeling_latent import LatentAttentionConfig, LatentAttentionForCausalLM

    shape = {"vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 5, "num_attention_heads": 2, "chunk_size": 4}
    model = LatentAttentionForCausalLM(LatentAttentionConfig(num_latents=3, **shape, **overrides))
    names = ("license", "language", "dataset", "skip_verify")
    args = Namespace(checkpoint=folder, repo_id=REPO_ID, **dict.fromkeys(names))
    return str(make_card(args, Checkpoint(folder), model, has_tokenizer=False))


def list_pull_requests(repo_id: str) -> list[str]:
    """As the client lists them."""
    from huggingface_hub import HfApi

    return [discussion.title for discussion in HfApi().get_repo_discussions(repo_id) if discussion.is_pull_request]


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


def read(hub: HubServer, folder: Path, load_line: str, repo_id: str = REPO_ID, revision: str = "main") -> list[float]:
    """Loads from the Hub in a fresh process; returns the last logits over a few chunks."""
    folder.mkdir(exist_ok=True)
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(folder), "HF_TOKEN": READ_TOKEN}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_MODULES_CACHE": str(folder / "modules")}
    command = [sys.executable, "-I", "-c", READER, load_line, repo_id, revision]
    process = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.split("LOGITS")[1])


def printed(result: Result, label: str) -> str:
    """The rest of the output's line that begins with `label`."""
    return re.search(rf"^{label} +(.*)$", result.out, re.MULTILINE)[1]


# Fixtures


@pytest.fixture(scope="module")
def server():
    with HubServer() as hub:
        yield hub


@pytest.fixture
def hub(server):
    server.clear()
    return server


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    """Where the worker makes its temporary folders."""
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture(scope="module")
def worker(server, scratch, tmp_path_factory):
    environment = {"HF_ENDPOINT": server.url, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": WRITE_TOKEN}
    environment |= {"HF_HOME": str(tmp_path_factory.mktemp("home")), "TMPDIR": str(scratch)}
    environment["HF_HUB_DISABLE_PROGRESS_BARS"] = "0"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=spawn, initializer=start_worker) as executor:
            executor.submit(os.getpid).result()
            yield lambda function, *arguments: executor.submit(function, *arguments).result()


@pytest.fixture
def upload(worker, hub, scratch):
    """Runs the command, and checks what holds after each run, however it ended."""

    def run(checkpoint, *argv, repo_id=REPO_ID, token=WRITE_TOKEN, sabotage=contextlib.nullcontext):
        argv = [str(argument) for argument in (checkpoint, "--repo-id", repo_id, *argv)]
        result = worker(run_command, argv, {"HF_TOKEN": token}, sabotage)
        assert WRITE_TOKEN not in result.out + result.err and "Traceback" not in result.out
        assert not list(scratch.glob("hub_upload_*"))
        return result

    return run


@pytest.fixture(scope="module")
def saved(worker, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    worker(save_checkpoint, folder)
    return folder


@pytest.fixture
def checkpoint(saved, tmp_path):
    """A copy that the test may change."""
    return Path(shutil.copytree(saved, tmp_path / "checkpoint"))


@contextlib.contextmanager
def unchanged(hub: HubServer, repo_id: str = REPO_ID):
    """The repository is as it was."""
    repo = hub.repos[repo_id]
    before = dict(repo.branches), list(repo.messages), list(repo.pull_requests)
    yield
    assert (repo.branches, repo.messages, repo.pull_requests) == before


# Upload and load back


def test_upload_loads_back(upload, worker, hub, saved, tmp_path):
    result = upload(saved)
    assert result.code == 0, result.err
    repo = hub.repos[REPO_ID]
    assert repo.private and len(repo.messages) == 2
    assert set(repo.files()) == EXPORT_FILES | {".gitattributes"}
    assert printed(result, "uploaded") == f"{REPO_ID}, commit {repo.branches['main']}"
    assert "relative error 0.0e+00" in printed(result, "verified")
    assert "model.safetensors: 100%" in result.err
    line = printed(result, "load it")
    assert f'revision="{repo.branches["main"]}"' in line and "trust_remote_code=True" in line
    assert read(hub, tmp_path, line, revision=repo.branches["main"]) == worker(logits_of, saved)


def test_every_class_is_in_the_auto_map(upload, hub, saved):
    assert upload(saved, "--skip-verify").code == 0
    files = hub.repos[REPO_ID].files()
    auto_map = json.loads(files["config.json"])["auto_map"]
    assert {"AutoConfig", "AutoModel", "AutoModelForCausalLM"} <= set(auto_map)
    for reference in auto_map.values():
        module, class_name = reference.split(".")
        assert f"class {class_name}(" in files[f"{module}.py"].decode()


def test_upload_again_with_fewer_shards(upload, hub, saved):
    assert upload(saved, "--skip-verify", "--max-shard-size", "100KB").code == 0
    repo = hub.repos[REPO_ID]
    assert len([name for name in repo.files() if name.endswith(".safetensors")]) > 1
    tree = dict(repo.commits[repo.branches["main"]])
    stale = ["old_code.py", "pytorch_model.bin", "adapter_config.json", "adapter_model.safetensors"]
    stale += ["added_tokens.json", "special_tokens_map.json", "vocab.json", "merges.txt", "tokenizer.model"]
    for name in (*stale, "notes.txt", "tools/plot.py"):
        tree[name] = Blob(b"by hand")
    repo.commit("main", tree, "by hand")
    assert upload(saved, "--skip-verify").code == 0
    assert set(repo.files()) == EXPORT_FILES | {".gitattributes", "notes.txt", "tools/plot.py"}
    assert len(repo.messages) == 4


def test_uploading_the_same_again_makes_no_commit(upload, hub, saved):
    upload(saved, "--skip-verify")
    with unchanged(hub):
        result = upload(saved, "--skip-verify")
    assert result.code == 0 and hub.repos[REPO_ID].branches["main"] in printed(result, "uploaded")


def test_create_pr(upload, worker, hub, saved):
    main = hub.create(REPO_ID).branches["main"]
    result = upload(saved, "--skip-verify", "--create-pr", "--commit-message", "A better model")
    assert result.code == 0, result.err
    assert hub.repos[REPO_ID].branches["main"] == main
    assert set(hub.repos[REPO_ID].files("refs/pr/1")) == EXPORT_FILES | {".gitattributes"}
    assert printed(result, "review it") == f"{hub.url}/{REPO_ID}/discussions/1"
    assert worker(list_pull_requests, REPO_ID) == ["A better model"]


def test_revision(upload, hub, saved):
    repo = hub.create(REPO_ID)
    main = repo.branches["dev"] = repo.branches["main"]
    assert upload(saved, "--skip-verify", "--revision", "dev").code == 0
    assert repo.branches["main"] == main and set(repo.files("dev")) > EXPORT_FILES


def test_public_only_on_request(upload, hub, saved):
    assert upload(saved, "--skip-verify", "--public").code == 0
    assert not hub.repos[REPO_ID].private
    with unchanged(hub):
        result = upload(saved, "--skip-verify")
    assert result.code == 2 and "exists and is public" in result.err


def test_an_existing_private_repository_stays_private(upload, hub, saved):
    hub.create(REPO_ID)
    assert "stays private" in upload(saved, "--skip-verify", "--public").out
    assert hub.repos[REPO_ID].private


def test_trainer_and_model_push_to_hub(worker, hub, tmp_path):
    worker(train_and_push, tmp_path / "trainer", REPO_ID)
    commits = zip(hub.repos[REPO_ID].messages, hub.repos[REPO_ID].commits.values(), strict=True)
    in_progress = [set(tree) for message, tree in commits if message.startswith("Training in progress")]
    assert in_progress and all(MODEL_FILES | TOKENIZER_FILES <= files for files in in_progress)
    worker(push_model, "me/pushed")
    for repo_id in (REPO_ID, "me/pushed"):
        assert MODEL_FILES | TOKENIZER_FILES <= set(hub.repos[repo_id].files())
        line = f'AutoModelForCausalLM.from_pretrained("{repo_id}", trust_remote_code=True)'
        expected = tmp_path / repo_id
        copy_files(hub, repo_id, expected)
        assert read(hub, tmp_path / f"home-{repo_id[3:]}", line, repo_id) == worker(logits_of, expected)


# Dry run


def test_dry_run_of_a_trainer_checkpoint_needs_no_network(upload, worker, hub, tmp_path):
    worker(train, tmp_path)
    folder = tmp_path / f"checkpoint-{OPTIMIZER_STEPS}"
    assert {"optimizer.pt", "trainer_state.json", "training_args.bin"} < {path.name for path in folder.iterdir()}
    result = upload(folder, "--dry-run", token="", sabotage=no_sockets)
    assert result.code == 0, result.err
    assert not hub.requests
    listed = re.findall(r"^ +([\d,]+) bytes  (\w+) +(\S+)$", result.out, re.MULTILINE)
    assert {name for _, _, name in listed} == EXPORT_FILES
    assert {name for _, kind, name in listed if kind == "LFS"} == {"model.safetensors"}
    total = sum(int(size.replace(",", "")) for size, _, _ in listed)
    assert f"{total:,} bytes  in {len(EXPORT_FILES)} files" in result.out
    assert (printed(result, "repository"), printed(result, "revision")) == (REPO_ID, "main")
    assert printed(result, "visibility") == "private"
    assert f"| optimizer steps | {OPTIMIZER_STEPS} |" in result.out and "| last training loss |" in result.out


def test_dry_run_agrees_with_the_hub_about_lfs(upload, hub, saved):
    shown = upload(saved, "--dry-run", "--skip-verify").out
    assert "note        the license is apache-2.0" in shown
    upload(saved, "--skip-verify")
    repo = hub.repos[REPO_ID]
    for name, blob in repo.commits[repo.branches["main"]].items():
        if name in EXPORT_FILES:
            kind = "LFS" if blob.is_lfs else "regular"
            assert re.search(rf"^ *{len(blob.content):,} bytes  {kind} +{re.escape(name)}$", shown, re.MULTILINE)


def test_dry_run_without_verification_is_no_success(upload, hub, saved):
    result = upload(saved, "--dry-run", "--skip-verify")
    assert result.code == 1 and "NOT VERIFIED: --skip-verify" in result.out
    assert "Not loaded or run before the upload" in result.out


@pytest.mark.parametrize(
    "sabotage, reason",
    [
        (wrong_logits, "logits differ"),
        (logits_that_are_no_numbers, "relative error nan"),
        (missing_code, "cache_latent.py"),
        (code_that_needs_the_package, "modeling_latent"),
        (missing_class, "LatentAttentionForMaskedLM"),
    ],
)
def test_failed_verification_stops(upload, hub, saved, sabotage, reason):
    result = upload(saved, sabotage=sabotage)
    assert result.code == 1 and not hub.requests
    last_line = result.err.strip().splitlines()[-1]
    assert "verification failed, nothing was uploaded" in last_line and reason in last_line


def test_what_is_uploaded_runs_alone_first(upload, hub, saved):
    """Without the token, and without the network."""
    result = upload(saved, "--dry-run", sabotage=code_that_looks_around)
    assert result.code == 0, result.err


# What goes in


def test_only_the_list_and_what_is_named_goes_in(upload, hub, checkpoint):
    for name in (".env", "id_rsa", "optimizer.pt", "analysis.ipynb", "train.log", "plots/loss.png", "plots/.key"):
        (checkpoint / name).parent.mkdir(exist_ok=True)
        (checkpoint / name).write_text("private")
    upload(checkpoint, "--skip-verify")
    assert set(hub.repos[REPO_ID].files()) == EXPORT_FILES | {".gitattributes"}
    result = upload(checkpoint, "--skip-verify", "--include", "plots/*", "--include", "*.log")
    assert result.code == 0, result.err
    named = {"plots/loss.png", "train.log"}
    assert set(hub.repos[REPO_ID].files()) == EXPORT_FILES | named | {".gitattributes"}


def test_a_tokenizer_replaces_the_whole_tokenizer_of_an_earlier_upload(upload, hub, checkpoint):
    """A template that stayed would be loaded as that of the new tokenizer."""
    upload(checkpoint, "--skip-verify")
    (checkpoint / "chat_template.jinja").unlink()
    assert upload(checkpoint, "--skip-verify").code == 0
    assert set(hub.repos[REPO_ID].files()) == EXPORT_FILES - {"chat_template.jinja"} | {".gitattributes"}


def test_an_upload_without_a_tokenizer_leaves_that_of_an_earlier_one(upload, hub, checkpoint):
    upload(checkpoint, "--skip-verify")
    for name in TOKENIZER_FILES:
        (checkpoint / name).unlink()
    assert upload(checkpoint, "--skip-verify").code == 0
    assert set(hub.repos[REPO_ID].files()) == EXPORT_FILES | {".gitattributes"}


def test_include_does_not_replace_what_the_export_made(upload, hub, checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "auto_map": {}}))
    result = upload(checkpoint, "--skip-verify", "--include", "*.json")
    assert json.loads(hub.repos[REPO_ID].files()["config.json"])["auto_map"]
    assert "note        config.json is made anew by the export" in result.out


def test_nothing_uploaded_names_a_local_path(upload, hub, saved):
    upload(saved, "--skip-verify")
    for name, content in hub.repos[REPO_ID].files().items():
        assert str(saved).encode() not in content and b"hub_upload_" not in content, name


def test_a_checkpoint_without_a_tokenizer(upload, hub, checkpoint):
    for name in TOKENIZER_FILES:
        (checkpoint / name).unlink()
    result = upload(checkpoint, "--dry-run")
    assert result.code == 0, result.err
    assert len(json.loads(printed(result, "generated"))) == 20
    assert "AutoTokenizer" not in result.out
    assert f"note        {checkpoint} holds no tokenizer_config.json, so no tokenizer is uploaded" in result.out


# The card


def test_card(upload, worker, hub, checkpoint):
    history = [{"loss": 9.0}, {"eval_loss": 7.5}, {"loss": TRAINING_LOSS}]
    history.append({"eval_loss": 5.5})
    state = {"global_step": 123, "epoch": 1.5, "best_metric": None, "log_history": history}
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    (checkpoint / "evaluation.json").write_text(
        json.dumps({"tool": "examples/train.py", "results": {"bits per byte": 1.23}})
    )
    flags = ("--license", "mit", "--language", "en", "--language", "de", "--dataset", "me/text")
    (checkpoint / "LICENSE").write_text("MIT License")
    assert upload(checkpoint, "--skip-verify", *flags).code == 0
    files = hub.repos[REPO_ID].files()
    metadata, card = files["README.md"].decode().split("---\n", 2)[1:]
    assert files["LICENSE"] == b"MIT License"
    for line in ("license: mit", "library_name: transformers", "pipeline_tag: text-generation", "- custom_code"):
        assert line in metadata.splitlines()
    assert {"- latent-attention", "- en", "- de", "- me/text"} <= set(metadata.splitlines())
    config = json.loads(files["config.json"])
    for name in ("num_latents", "chunk_size", "hidden_size", "conv_kernel_size", "mlp_conv_kernel_size"):
        assert f"| `{name}` | {config[name]} |" in card
    llama = 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"] * 4
    assert f"| 32,768 | {worker(state_bytes):,} | {llama * 32768:,} |" in card
    assert "| optimizer steps | 123 |" in card and f"| last training loss | {TRAINING_LOSS} |" in card
    assert "| last validation loss | 5.5 |" in card
    assert "| bits per byte | 1.23 |" in card and "best metric" not in card
    assert f'from_pretrained("{REPO_ID}", revision="COMMIT_HASH", trust_remote_code=True)' in card
    assert "transformers " in card.split("## Versions")[1]


WINDOW = "What left the window of the last 4 to 7 tokens"


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({}, f"{WINDOW} is known only as far as the 3 latents in layers 0, 2, 4 (counted from 0) hold it."),
        (
            {"layer_pattern": ["both"], "num_sink_tokens": 2},
            f"{WINDOW}, apart from the text's first tokens (`num_sink_tokens`), is known only as far as the 3 latents "
            "in every layer hold it.",
        ),
        (
            {"layer_pattern": ["latent"]},
            "What it has read is known only as far as the 3 latents in every layer hold it.",
        ),
        ({"layer_pattern": ["local"]}, f"{WINDOW} is lost."),
    ],
    ids=["default", "both", "latent", "local"],
)
def test_the_card_says_what_is_remembered_and_where(overrides, sentence, worker, tmp_path):
    card = worker(card_of, tmp_path, overrides)
    assert f"- It does not remember every token. {sentence}\n" in card
    pattern = overrides.get("layer_pattern", ["both", "local"])
    assert f"| `layer_pattern` | {pattern} |" in card
    assert f"| `num_sink_tokens` | {overrides.get('num_sink_tokens', 0)} |" in card
    assert "| `max_chunk_repeats` | 1 |" in card
    assert ("It has no latents" in card) == (pattern == ["local"])


def test_a_card_of_ones_own_is_kept(upload, hub, checkpoint):
    metadata = "license: cc-by-4.0\nlanguage: fr\ntags:\n- mine\n- 3\n- base_model:some/llama\nextra: kept\n"
    metadata += "base_model: some/llama\n"
    (checkpoint / "README.md").write_text(f"---\n{metadata}---\n# My words\n\nAll of them.\n")
    (checkpoint / "LICENSE").write_text("CC-BY")
    result = upload(checkpoint, "--skip-verify", "--language", "en")
    assert result.code == 0 and "the license is apache-2.0" not in result.out
    metadata, body = hub.repos[REPO_ID].files()["README.md"].decode().split("---\n", 2)[1:]
    assert body == "# My words\n\nAll of them.\n"
    own = {"license: cc-by-4.0", "extra: kept", "base_model: some/llama", "- mine", "- '3'", "- fr"}
    assert own | {"- custom_code", "- en"} <= set(metadata.splitlines())
    assert "- base_model:" not in metadata  # the Hub makes those tags itself


# Adapters


def test_adapter(upload, worker, hub, saved, tmp_path):
    pytest.importorskip("peft")
    upload(saved, "--skip-verify", repo_id="me/base")
    worker(save_adapter, tmp_path / "adapter", "me/base", "me/base")
    requests = len(hub.requests)
    own_card = (tmp_path / "adapter" / "README.md").rename(tmp_path / "own_card.md")
    shown = upload(tmp_path / "adapter", "--dry-run", sabotage=no_sockets)
    assert shown.code == 0, shown.err
    assert len(hub.requests) == requests
    assert "base_model: me/base" in shown.out and "model = PeftModel.from_pretrained(" in shown.out
    own_card.rename(tmp_path / "adapter" / "README.md")
    refused = upload(tmp_path / "adapter", "--max-shard-size", "1MB")
    assert refused.code == 2 and "an adapter is one file" in refused.err
    repo = hub.create(REPO_ID)
    tree = dict(repo.commits[repo.branches["main"]])
    repo.commit("main", tree | {"config.json": Blob(b"{}"), "model.safetensors": Blob(b"")}, "a whole model")
    result = upload(tmp_path / "adapter", "--skip-verify")
    files = hub.repos[REPO_ID].files()
    assert set(files) == {"adapter_config.json", "adapter_model.safetensors", "README.md", "LICENSE", ".gitattributes"}
    assert "base_model: me/base" in files["README.md"].decode()
    line = printed(result, "load it")
    assert hub.repos["me/base"].branches["main"] in line and hub.repos[REPO_ID].branches["main"] in line
    adapted = read(hub, tmp_path / "reader", line)
    assert adapted != worker(logits_of, saved)
    assert adapted == pytest.approx(worker(logits_of, tmp_path / "adapter"), abs=1e-5)


def test_adapter_merged(upload, worker, hub, saved, tmp_path):
    pytest.importorskip("peft")
    worker(save_adapter, tmp_path / "adapter", str(saved))
    refused = upload(tmp_path / "adapter")
    assert refused.code == 2 and "base_model_name_or_path" in refused.err and "--merge" in refused.err
    result = upload(tmp_path / "adapter", "--merge")
    assert result.code == 0, result.err
    files = hub.repos[REPO_ID].files()
    assert set(files) == EXPORT_FILES | {".gitattributes"}
    assert str(saved) not in files["README.md"].decode()
    copy_files(hub, REPO_ID, tmp_path / "merged")
    again = upload(tmp_path / "adapter", "--merge", "--include", "*", repo_id="me/again")
    assert again.code == 0 and "adapter_config.json is of the adapter" in again.out
    assert set(hub.repos["me/again"].files()) == set(files)
    expected = worker(logits_of, tmp_path / "adapter")
    assert worker(logits_of, tmp_path / "merged") == pytest.approx(expected, abs=1e-3)
    assert expected != pytest.approx(worker(logits_of, saved), abs=1e-3)


def test_an_adapter_goes_on_the_revision_that_it_was_trained_on(upload, worker, hub, saved, tmp_path):
    pytest.importorskip("peft")
    upload(saved, "--skip-verify", repo_id="me/base")
    worker(save_adapter, tmp_path / "adapter", "me/base", "me/base")
    expected = worker(logits_of, tmp_path / "adapter")
    trained_on = hub.repos["me/base"].branches["main"]
    config_file = tmp_path / "adapter" / "adapter_config.json"
    config_file.write_text(json.dumps({**json.loads(config_file.read_text()), "revision": trained_on}))
    for file in saved.glob("*token*"):  # as `Trainer` leaves them beside an adapter
        shutil.copy(file, tmp_path / "adapter")
    newer = Path(shutil.copytree(saved, tmp_path / "newer"))
    worker(change_weights, newer)
    upload(newer, "--skip-verify", repo_id="me/base")
    worker(download, "me/base")
    assert hub.repos["me/base"].branches["main"] != trained_on

    result = upload(tmp_path / "adapter")
    assert result.code == 0, result.err
    assert f'revision="{trained_on}"' in printed(result, "load it")
    assert upload(tmp_path / "adapter", "--merge", repo_id="me/merged").code == 0
    copy_files(hub, "me/merged", tmp_path / "merged")
    assert worker(logits_of, tmp_path / "merged") == pytest.approx(expected, abs=1e-3)

    config_file.write_text(json.dumps({**json.loads(config_file.read_text()), "revision": "f" * 40}))
    refused = upload(tmp_path / "adapter", "--dry-run")
    assert refused.code == 2 and f"hf download me/base --revision {'f' * 40}" in refused.err


def test_an_adapter_that_cannot_be_merged(upload, worker, hub, saved, tmp_path):
    pytest.importorskip("peft")
    worker(save_prompts, tmp_path / "adapter", str(saved))
    assert_refused(upload(tmp_path / "adapter", "--merge"), hub, "nothing to merge")


# Failures on the way


@pytest.mark.parametrize(
    "status, advice",
    [
        (401, "hf auth login"),
        (403, "write access"),
        (404, "check both names"),
        (409, "wait until it is done"),
        (412, "somebody committed"),
        (500, "run this again later"),
    ],
)
def test_an_error_says_what_to_do(upload, hub, saved, status, advice):
    hub.create(REPO_ID)
    hub.fail("POST .*/commit/", status, times=100)
    with unchanged(hub):
        result = upload(saved, "--skip-verify")
    assert result.code == 1 and advice in result.err.strip().splitlines()[-1]


def test_gated(upload, hub, saved):
    hub.create(REPO_ID).gated = True
    with unchanged(hub):
        result = upload(saved, "--skip-verify")
    assert result.code == 1 and "gated" in result.err and "write access" in result.err


def test_tokens_that_may_not_write(upload, hub, saved):
    hub.create(REPO_ID)
    with unchanged(hub):
        for token, advice in ((READ_TOKEN, "write access"), ("hf_unknown", "hf auth login")):
            result = upload(saved, "--skip-verify", token=token)
            assert result.code == 1 and advice in result.err and token not in result.err


def test_a_token_that_an_error_quotes_is_not_shown(upload, hub, saved):
    result = upload(saved, "--skip-verify", sabotage=client_that_quotes_the_token)
    assert result.code == 1 and "Bearer ***" in result.err


def test_missing_branch(upload, hub, saved):
    hub.create(REPO_ID)
    with unchanged(hub):
        result = upload(saved, "--skip-verify", "--revision", "dev")
    assert result.code == 1 and f"hf repos branch create {REPO_ID} dev" in result.err


@pytest.mark.parametrize("request_", ["POST /api/repos/create", "GET /api/models/", "PUT /lfs/", "POST .*/commit/"])
def test_two_server_errors_then_success(upload, hub, saved, request_):
    hub.fail(request_, 500, times=2)
    result = upload(saved, "--skip-verify")
    assert result.code == 0, result.err
    assert set(hub.repos[REPO_ID].files()) > EXPORT_FILES


@pytest.mark.parametrize("status", [408, 429])
def test_a_hub_that_asks_to_wait_is_asked_again(upload, hub, saved, status):
    hub.fail("POST .*/commit/", status, times=2)
    result = upload(saved, "--skip-verify")
    assert result.code == 0, result.err
    assert result.out.count("a request failed (HfHubHTTPError)") == 2


def test_connection_cut_in_the_middle_of_a_shard(upload, hub, saved):
    hub.create(REPO_ID)
    hub.fail("PUT /lfs/", CUT, times=1000)
    with unchanged(hub):
        result = upload(saved, "--skip-verify", "--max-shard-size", "100KB")
    assert result.code == 1 and "run this again later" in result.err
    assert not hub.lfs
    hub.failures.clear()
    hub.fail("PUT /lfs/", CUT, times=1)
    assert upload(saved, "--skip-verify", "--max-shard-size", "100KB").code == 0


def test_commit_race(upload, hub, saved):
    repo = hub.create(REPO_ID)
    hub.fail("POST .*/preupload/", lambda: repo.commit("main", {"theirs.txt": Blob(b"theirs")}, "theirs"))
    result = upload(saved, "--skip-verify")
    assert result.code == 1 and "somebody committed" in result.err
    assert repo.messages == ["initial", "theirs"] and repo.files() == {"theirs.txt": b"theirs"}


def test_a_commit_whose_answer_is_lost_is_not_made_twice(upload, hub, saved):
    repo = hub.create(REPO_ID)
    repo.commit("main", {"old_code.py": Blob(b"")}, "by hand")
    hub.fail("POST .*/commit/", LOST)
    result = upload(saved, "--skip-verify")
    assert result.code == 0, result.err
    assert len(repo.messages) == 3 and set(repo.files()) == EXPORT_FILES
    assert repo.branches["main"] in printed(result, "uploaded")


def test_timeout(upload, hub, saved):
    stuck = threading.Event()

    def hang():
        stuck.wait()
        raise ConnectionAbortedError  # so that this request, given up long ago, does nothing in the next test

    hub.create(REPO_ID)
    hub.fail("POST .*/commit/", hang)
    try:
        result = upload(saved, "--skip-verify", sabotage=impatient)
    finally:
        stuck.set()
    assert result.code == 0, result.err
    assert "a request failed (ReadTimeout)" in printed(result, "retrying")


# Bad input


def change_config(folder: Path, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


def cut_shard(folder: Path):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def name_missing_shard(folder: Path):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    weight_map = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


BAD_CHECKPOINTS = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json"),
    "config is not JSON": (lambda folder: (folder / "config.json").write_text("{"), "cannot be read as JSON"),
    "config is a list": (lambda folder: (folder / "config.json").write_text("[]"), "holds a list"),
    "other model": (lambda folder: change_config(folder, model_type="llama"), "model_type"),
    "masked language model": (
        lambda folder: change_config(folder, architectures=["LatentAttentionForMaskedLM"], is_causal=False),
        "only ['LatentAttentionForCausalLM'] is allowed",
    ),
    "bidirectional": (lambda folder: change_config(folder, is_causal=False), "is_causal"),
    "quantized": (
        lambda folder: change_config(folder, quantization_config={"quant_method": "bitsandbytes"}),
        "quantization_config",
    ),
    "bad value": (lambda folder: change_config(folder, chunk_size=0), "chunk_size"),
    "other shape": (lambda folder: change_config(folder, num_latents=5), "does not load"),
    "too many layers": (lambda folder: change_config(folder, num_hidden_layers=3), "missing_keys"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing"),
    "shard missing": (name_missing_shard, "model-00002-of-00002.safetensors is missing"),
    "shard cut": (cut_shard, "cut short"),
    "tokenizer cut": (lambda folder: (folder / "tokenizer.json").write_text("{"), "does not load"),
    "card metadata": (lambda folder: (folder / "README.md").write_text("---\na: [\n---\n"), "README.md"),
    "evaluation": (lambda folder: (folder / "evaluation.json").write_text('{"tool": "mine.py"}'), "mine.py"),
    "evaluation without results": (
        lambda folder: (folder / "evaluation.json").write_text('{"tool": "examples/train.py"}'),
        "the card shows only results",
    ),
    "adapter config": (lambda folder: (folder / "adapter_config.json").write_text("{}"), "adapter_model.safetensors"),
    "adapter of a classifier": (
        lambda folder: (folder / "adapter_config.json").write_text('{"task_type": "SEQ_CLS"}'),
        "only 'CAUSAL_LM' is allowed",
    ),
}


def assert_refused(result: Result, hub: HubServer, words: str):
    """Exit code 2, one line that the command itself wrote, and no request."""
    assert result.code == 2, result.err
    assert re.fullmatch(
        r"hub_upload\.py: .+\n", re.sub(r"^(?!hub_upload\.py).*\n", "", result.err, flags=re.MULTILINE)
    )
    assert words in result.err and not hub.requests


@pytest.mark.parametrize("case", BAD_CHECKPOINTS)
def test_bad_checkpoint(upload, hub, checkpoint, case):
    damage, words = BAD_CHECKPOINTS[case]
    damage(checkpoint)
    assert_refused(upload(checkpoint), hub, words)


@pytest.mark.parametrize(
    "argv, words",
    [
        (("--revision", "dev", "--create-pr"), "--create-pr"),
        (("--max-shard-size", "5XB"), "5XB"),
        (("--max-shard-size", "0GB"), "0GB"),
        (("--max-shard-size", "5GiB"), "a whole number and KB, MB, GB or TB"),
        (("--max-shard-size", "0.5GB"), "a whole number and KB, MB, GB or TB"),
        (("--include", "no-such-file"), "no-such-file"),
        (("--include", "../*"), "../*"),
        (("--merge",), "--merge"),
        (("--license", "mit"), "LICENSE"),
    ],
)
def test_bad_argument(upload, hub, saved, argv, words):
    assert_refused(upload(saved, *argv), hub, words)


@pytest.mark.parametrize("repo_id", ["model", "a/b/c", "me/has space", "me/two--dashes", "https://example.org/me/x"])
def test_bad_repo_id(upload, hub, saved, repo_id):
    assert_refused(upload(saved, repo_id=repo_id), hub, "NAME/MODEL")


def test_no_folder(upload, hub, tmp_path):
    assert_refused(upload(tmp_path / "nowhere"), hub, "nowhere")


@pytest.mark.parametrize("token, words", [("", "no token"), ("hf_wrong\x01character", "characters that no token has")])
def test_bad_token(upload, hub, saved, token, words):
    result = upload(saved, token=token)
    assert_refused(result, hub, words)
    assert "hf_wrong" not in result.err


def test_a_token_on_the_command_line_is_not_repeated(upload, hub, saved):
    for argv in (("--token", "hf_secret"), ("--token=hf_secret",)):
        result = upload(saved, *argv)
        assert_refused(result, hub, "HF_TOKEN")
        assert "hf_secret" not in result.err


def convert_as_told(result: Result):
    """Runs the command that an error message gives."""
    code = re.search(r'python -c "(.*)"', result.err)[1]
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True, capture_output=True)


def test_pickle_is_refused_with_a_command_that_converts(upload, worker, hub, checkpoint, saved):
    worker(save_bin, checkpoint / "model.safetensors", "pytorch_model.bin")
    result = upload(checkpoint)
    assert_refused(result, hub, "pytorch_model.bin is a pickle")
    convert_as_told(result)
    assert upload(checkpoint, "--skip-verify").code == 0
    assert worker(logits_of, checkpoint) == worker(logits_of, saved)


def test_pickled_adapter_is_refused_with_a_command_that_converts(upload, worker, hub, saved, tmp_path):
    pytest.importorskip("peft")
    worker(save_adapter, tmp_path, str(saved))
    expected = worker(logits_of, tmp_path)
    worker(save_bin, tmp_path / "adapter_model.safetensors", "adapter_model.bin")
    result = upload(tmp_path, "--merge")
    assert_refused(result, hub, "adapter_model.bin is a pickle")
    convert_as_told(result)
    assert upload(tmp_path, "--merge", "--skip-verify").code == 0
    assert worker(logits_of, tmp_path) == expected


def test_adapter_of_an_unknown_base(upload, worker, hub, saved, tmp_path):
    pytest.importorskip("peft")
    worker(save_adapter, tmp_path, str(saved))
    for base in ("me/never-downloaded", None):
        config = json.loads((tmp_path / "adapter_config.json").read_text())
        (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": base}))
        assert_refused(upload(tmp_path), hub, "base_model_name_or_path")


def test_adapter_without_peft(upload, worker, hub, saved, tmp_path):
    pytest.importorskip("peft")
    worker(save_adapter, tmp_path, str(saved))
    assert_refused(upload(tmp_path, "--merge", sabotage=no_peft), hub, "pip install peft")


def test_another_package_named_hub_is_not_taken(tmp_path):
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "__init__.py").touch()
    command = [sys.executable, PROJECT / "hub_upload.py", "--help"]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": str(tmp_path)}, check=True, capture_output=True)
