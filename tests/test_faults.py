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
"""What is killed while it saves, trains or uploads leaves the last complete state; what is damaged is named."""

import ast
import json
import os
import shutil
import signal
import sys
import tempfile
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModelForCausalLM

import dying
import train
from common import byte_tokenizer, random_ids, tiny_config, tiny_model
from hub_command import REPO_FILES, REPO_ID
from hub_server import WRITE_TOKEN, HubServer
from modeling_latent import LatentAttentionConfig
from test_examples import TEXTS, flags


ROOT = Path(__file__).parents[1]
IDS = random_ids(1, 30)
# Large enough that a limit on the size of files cuts those with tensors, and no others.
SIZES = {"hidden_size": 64, "intermediate_size": 96, "layer_pattern": ["local", "both"]}


def logits_of(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder)(IDS).logits


# `save_pretrained` over an existing folder


def save(folder: Path, seed: int, chunk_size: int, max_shard_size: str) -> None:
    """Weights that fit into each other's configuration, so that a mixture would load."""
    tiny_model(seed, chunk_size=chunk_size, **SIZES).save_pretrained(folder, max_shard_size=max_shard_size)


OLDER, NEWER = (0, 4, "5GB"), (1, 8, "300KB")  # one file, and several


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> tuple[Path, Path, int]:
    """What the older and the newer model are, each alone, and the number of changes from one to the other."""
    older, newer = tmp_path_factory.mktemp("older"), tmp_path_factory.mktemp("newer")
    save(older, *OLDER)
    save(newer, *NEWER)
    over = shutil.copytree(older, tmp_path_factory.mktemp("over") / "folder")
    changes = dying.count(save, (over, *NEWER), over)
    assert torch.equal(logits_of(over), logits_of(newer))
    return older, newer, changes


def check_killed_save(saved, moment: int, limit: int | None, folder: Path) -> None:
    """The older model loads, or the newer one; or an error says where the newer one is, and it is there."""
    older, newer, _ = saved
    shutil.copytree(older, folder)
    dying.kill(save, (folder, *NEWER), folder, moment, limit)
    try:
        found = logits_of(folder)
    except ValueError as error:
        assert f"move all files from {folder / '.saving'} to {folder}" in str(error)
        for file in (folder / ".saving").iterdir():
            file.replace(folder / file.name)
        assert torch.equal(logits_of(folder), logits_of(newer))
    else:
        assert torch.equal(found, logits_of(older)) or torch.equal(found, logits_of(newer))
    save(folder, *NEWER)
    assert torch.equal(logits_of(folder), logits_of(newer)) and not (folder / ".saving").exists()


@pytest.mark.parametrize("share, limit", [(0.5, 100_000), (0.75, None), (0.8, None)])
def test_a_save_that_is_killed_leaves_the_older_model_or_says_where_the_newer_one_is(share, limit, saved, tmp_path):
    check_killed_save(saved, int(share * saved[2]), limit, tmp_path / "folder")


@pytest.mark.parametrize("first, second", [("5GB", "300KB"), ("300KB", "5GB"), ("300KB", "200KB")])
def test_of_two_saves_into_a_folder_the_second_loads_however_both_are_sharded(first, second, tmp_path):
    save(tmp_path, 0, 4, first)
    save(tmp_path, 1, 4, second)
    assert torch.equal(logits_of(tmp_path), tiny_model(1, chunk_size=4, **SIZES)(IDS).logits)


def test_what_else_is_in_a_folder_stays_and_so_does_all_of_it_where_a_save_fails(tmp_path):
    save(tmp_path, *OLDER)
    before = logits_of(tmp_path)
    for name in ("notes.md", "adapter_model.safetensors", "model.fp16.safetensors"):
        shutil.copy(tmp_path / "model.safetensors", tmp_path / name)
    names = {file.name for file in tmp_path.iterdir()}
    model = tiny_model(1, chunk_size=4, **SIZES)
    model.generation_config.temperature = 0.5  # without sampling, which the library refuses to save
    with pytest.raises(ValueError, match="[Gg]eneration"):
        model.save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == names and torch.equal(logits_of(tmp_path), before)
    save(tmp_path, 1, 4, "5GB")
    assert {file.name for file in tmp_path.iterdir()} == names


# The Trainer's checkpoints, through examples/train.py


@pytest.fixture(scope="module")
def training(tmp_path_factory) -> tuple[list[str], Path, int]:
    """Flags, what an uninterrupted training leaves, and how many changes it makes to its folder."""
    root = tmp_path_factory.mktemp("training")
    (root / "texts").mkdir()
    for i, text in enumerate(TEXTS[:12]):
        (root / "texts" / f"{i}.txt").write_text(text, encoding="utf-8")
    config = tiny_config(vocab_size=300, bos_token_id=0, eos_token_id=0, pad_token_id=1, **SIZES).to_dict()
    config.pop("auto_map")  # a configuration's folder has no code
    (root / "config.json").write_text(json.dumps(config))
    short = ["--save_steps", "3", "--save_total_limit", "2", "--eval_strategy", "no", "--config", str(root)]
    argv = flags(root / "texts", root / "whole", *short)
    return argv, root / "whole", dying.count(train.main, (argv,), root / "whole")


def check_killed_training(training, moment: int, limit: int | None, output_dir: Path) -> None:
    """`--resume` ends where an uninterrupted training does."""
    argv, whole, _ = training
    argv = [str(output_dir) if word == str(whole) else word for word in argv]
    dying.kill(train.main, (argv,), output_dir, moment, limit)
    complete = [folder for folder in output_dir.glob("checkpoint-*") if train.fault_of(folder) is None]
    for folder in complete:
        logits_of(folder)
    dying.count(train.main, ([*argv, "--resume"] if complete else argv,), output_dir)
    torch.testing.assert_close(logits_of(output_dir), logits_of(whole), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("share, limit", [(0.45, 100_000), (0.7, None)])
def test_a_training_that_is_killed_is_resumed_to_the_same_end(share, limit, training, tmp_path):
    check_killed_training(training, int(share * training[2]), limit, tmp_path / "out")


# The upload


def upload(checkpoint: Path, url: str, scratch: Path) -> None:
    """The command, in a child, whose libraries are set as the environment would set them."""
    import huggingface_hub

    import hub_upload

    os.environ["HF_TOKEN"] = WRITE_TOKEN
    huggingface_hub.constants.ENDPOINT, huggingface_hub.constants.HF_HUB_DISABLE_XET = url, True
    tempfile.tempdir = str(scratch)
    assert hub_upload.main([str(checkpoint), "--repo-id", REPO_ID, "--skip-verify"]) == 0


@pytest.fixture(scope="module")
def server():
    with HubServer() as hub:
        yield hub


@pytest.fixture(scope="module")
def uploaded(server, tmp_path_factory) -> tuple[HubServer, Path, int, int]:
    """The Hub, a checkpoint, and how many changes to its folder and requests an upload makes."""
    checkpoint, scratch = tmp_path_factory.mktemp("checkpoint"), tmp_path_factory.mktemp("scratch")
    tiny_model(vocab_size=258, eos_token_id=256, **SIZES).save_pretrained(checkpoint)
    byte_tokenizer().save_pretrained(checkpoint)
    changes = dying.count(upload, (checkpoint, server.url, scratch), scratch)
    return server, checkpoint, changes, len(server.requests)


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def check_killed_upload(uploaded, kill, scratch: Path) -> None:
    """The Hub has all files or none, the checkpoint is as it was, and the next upload is whole."""
    hub, checkpoint, _, _ = uploaded
    hub.clear()
    hub.create(REPO_ID)
    before = content(checkpoint)
    kill(hub, (checkpoint, hub.url, scratch))
    with hub.lock:
        found = set(hub.repos[REPO_ID].files())
    assert found in ({".gitattributes"}, REPO_FILES)
    hub.failures.clear()
    dying.count(upload, (checkpoint, hub.url, scratch), scratch)
    files = hub.repos[REPO_ID].files()
    assert set(files) == REPO_FILES and content(checkpoint) == before
    assert files["model.safetensors"] == before["model.safetensors"]


def kill_at_change(moment: int, limit: int | None, scratch: Path):
    return lambda hub, arguments: dying.kill(upload, arguments, scratch, moment, limit)


def kill_at_request(number: int, scratch: Path):
    """The child is killed when its request of this number has arrived, before it is answered."""

    def kill(hub: HubServer, arguments: tuple) -> None:
        pid, requests = Future(), []

        def arrived() -> None:
            requests.append(True)
            if len(requests) == number + 1:
                os.kill(pid.result(), signal.SIGKILL)

        hub.fail(".*", arrived, times=dying.NEVER)
        process, _ = dying.start(upload, arguments, scratch)
        pid.set_result(process.pid)
        process.join()
        assert process.exitcode == -signal.SIGKILL

    return kill


def test_an_upload_that_is_killed_leaves_all_or_nothing_and_the_next_one_is_whole(uploaded, tmp_path):
    *_, changes, requests = uploaded
    check_killed_upload(uploaded, kill_at_change(changes // 2, 100, tmp_path), tmp_path)
    check_killed_upload(uploaded, kill_at_request(requests - 1, tmp_path), tmp_path)


# Damaged files


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4665a5ea423c2713d436b5ee50593a96\nsize 30\n"
INDEX = "model.safetensors.index.json"
SECOND = "model-00002-of-00004.safetensors"
DAMAGES = {
    "no index": (INDEX, lambda content: None, "no file named model.safetensors"),
    "index cut": (INDEX, lambda content: content[:50], f"{INDEX} can't be read .*cut off"),
    "index is a pointer": (INDEX, lambda content: POINTER, f"{INDEX} can't be read .*git lfs pull"),
    "no shard": (SECOND, lambda content: None, SECOND),
    "shard cut": (SECOND, lambda content: content[:-1], f"{SECOND} can't be read .*cut off"),
    "shard is a pointer": (SECOND, lambda content: POINTER, f"{SECOND} can't be read .*git lfs pull"),
    "length of the header": (SECOND, lambda content: b"\xff" * 8 + content[8:], f"{SECOND} can't be read"),
    "no config": ("config.json", lambda content: None, "model_type"),
    "config cut": ("config.json", lambda content: content[:200], "config.json' is not a valid JSON"),
    "config is a pointer": ("config.json", lambda content: POINTER, "config.json' is not a valid JSON"),
}


@pytest.fixture(scope="module")
def sharded(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    tiny_model().save_pretrained(folder, max_shard_size="10KB")
    assert (folder / SECOND).is_file()
    return folder


@pytest.mark.parametrize("case", DAMAGES)
def test_a_file_that_is_damaged_or_missing_is_named(case, sharded, tmp_path):
    name, damage, words = DAMAGES[case]
    folder = Path(shutil.copytree(sharded, tmp_path / "folder"))
    damaged = damage((folder / name).read_bytes())
    (folder / name).unlink() if damaged is None else (folder / name).write_bytes(damaged)
    with pytest.raises((ValueError, OSError), match=words):
        AutoModelForCausalLM.from_pretrained(folder)


def flip(file: Path, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


def length_of_header(file: Path) -> int:
    return 8 + int.from_bytes(file.read_bytes()[:8], "little")


def is_noticed(folder: Path, expected: torch.Tensor) -> bool:
    """An error; or the names of what is missing, of which the library warns; or it made no difference."""
    try:
        model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    except (ValueError, OSError, RuntimeError):
        return True
    return bool(report["missing_keys"]) or torch.equal(model(IDS).logits, expected)


def check_flipped_bits(sharded: Path, number: int, tmp_path: Path) -> None:
    """In the header of a shard, at random places."""
    folder = Path(shutil.copytree(sharded, tmp_path / "folder"))
    file, expected = folder / SECOND, logits_of(sharded)
    bits = torch.randint(8 * length_of_header(file), (number,), generator=torch.Generator().manual_seed(0))
    for bit in bits.tolist():
        flip(file, bit)
        assert is_noticed(folder, expected), f"bit {bit}"
        flip(file, bit)


def test_a_flipped_bit_in_the_header_of_weights_is_noticed(sharded, tmp_path):
    check_flipped_bits(sharded, 40, tmp_path)


@pytest.mark.parametrize("field", ["num_latents", "chunk_size", "hidden_size", "vocab_size", "num_hidden_layers"])
@pytest.mark.parametrize("value", [10**12, 10**9, 0])
def test_a_size_that_no_model_has_is_refused_with_the_configuration(field, value):
    with pytest.raises(
        (ValueError, StrictDataclassError), match=f"`{field}` is {value} but must be .* at most 16,777,216"
    ):
        LatentAttentionConfig(**{"head_dim": 8, field: value})


# No pickle


OURS = [*(ROOT / "modeling_latent").glob("*.py"), *(ROOT / "hub").glob("*.py"), *(ROOT / "examples").glob("*.py")]
PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}


@pytest.mark.parametrize("file", [*OURS, ROOT / "hub_upload.py"], ids=lambda file: file.name)
def test_no_code_of_the_package_and_its_programs_reads_or_writes_a_pickle(file):
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert not PICKLES & {name.name.split(".")[0] for name in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.module is None or node.module.split(".")[0] not in PICKLES
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "torch":
            assert node.attr not in ("load", "save")


def unpickle_nothing(folder: Path) -> None:
    """Runs in a child: saves, loads, and dies of any pickle on the way."""

    def hook(event: str, arguments: tuple) -> None:
        if event == "pickle.find_class":
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    torch.save = torch.load = None
    save(folder, *OLDER)
    save(folder, *NEWER)
    logits_of(folder)


def test_saving_and_loading_need_no_pickle_and_what_is_uploaded_has_none(uploaded, tmp_path):
    """In a checkpoint of `Trainer`, optimizer.pt, scheduler.pt and their like are the library's, for it to resume."""
    dying.count(unpickle_nothing, (tmp_path,), tmp_path)
    hub, checkpoint, _, _ = uploaded
    hub.clear()
    dying.count(upload, (checkpoint, hub.url, tmp_path), tmp_path)
    for name, data in hub.repos[REPO_ID].files().items():
        assert Path(name).suffix in (".py", ".json", ".safetensors", ".md", ".jinja", "")
        assert not data.startswith((b"PK", b"\x80")), name  # how torch and pickle begin
