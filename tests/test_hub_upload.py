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
"""`hub_upload.py`: what reaches the Hub and loads from there, failures on the way, and input that is refused."""

import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from unittest import mock

import pytest

import common
from hub_command import (
    CODE_FILES,
    EXPORT_FILES,
    MODEL_FILES,
    PROJECT,
    REPO_FILES,
    REPO_ID,
    TOKENIZER_FILES,
    copy_files,
    logits_of,
    make_trainer,
    printed,
    read,
    run_as_told,
    save_bin,
    tiny_model,
    unchanged,
)
from hub_server import CUT, LOST, READ_TOKEN, WRITE_TOKEN, Blob


pytest_plugins = ["hub_command"]


def test_what_is_uploaded_is_what_was_shown_and_loads_back(upload, worker, hub, saved, tmp_path):
    result = upload(saved)
    repo = hub.repos[REPO_ID]
    head = repo.branches["main"]
    assert repo.private and len(repo.messages) == 2
    assert set(repo.files()) == REPO_FILES
    for name in EXPORT_FILES:
        blob = repo.commits[head][name]
        assert str(saved).encode() not in blob.content and b"hub_upload_" not in blob.content, name
        kind = "LFS" if blob.is_lfs else "regular"
        assert re.search(rf"^ *{len(blob.content):,} bytes  {kind} +{re.escape(name)}$", result.out, re.MULTILINE)
    assert "relative error 0.0e+00" in printed(result, "verified")
    assert "model.safetensors: 100%" in result.err
    assert printed(result, "uploaded") == f"{REPO_ID}, commit {head}"
    line = printed(result, "load it")
    assert f'revision="{head}"' in line and "trust_remote_code=True" in line
    assert read(hub, tmp_path, line, head) == worker(logits_of, saved)


def test_upload_again_with_fewer_shards(upload, hub, saved):
    upload(saved, "--skip-verify", "--max-shard-size", "50KB")
    repo = hub.repos[REPO_ID]
    assert len([name for name in repo.files() if name.endswith(".safetensors")]) > 1
    tree = dict(repo.commits[repo.branches["main"]])
    stale = ["old_code.py", "pytorch_model.bin", "adapter_config.json", "adapter_model.safetensors"]
    stale += ["added_tokens.json", "special_tokens_map.json", "vocab.json", "merges.txt", "tokenizer.model"]
    for name in (*stale, "notes.txt", "tools/plot.py"):
        tree[name] = Blob(b"by hand")
    repo.commit("main", tree, "by hand")
    upload(saved, "--skip-verify")
    assert set(repo.files()) == REPO_FILES | {"notes.txt", "tools/plot.py"}
    assert len(repo.messages) == 4


def test_uploading_the_same_again_makes_no_commit(upload, hub, saved):
    upload(saved, "--skip-verify")
    with unchanged(hub):
        result = upload(saved, "--skip-verify")
    assert hub.repos[REPO_ID].branches["main"] in printed(result, "uploaded")


def test_create_pr(upload, hub, saved):
    repo = hub.create(REPO_ID)
    main = repo.branches["main"]
    result = upload(saved, "--skip-verify", "--create-pr", "--commit-message", "A better model")
    assert repo.branches["main"] == main and repo.pull_requests == ["A better model"]
    assert set(repo.files("refs/pr/1")) == REPO_FILES
    assert printed(result, "review it") == f"{hub.url}/{REPO_ID}/discussions/1"


def test_revision(upload, hub, saved):
    repo = hub.create(REPO_ID)
    with unchanged(hub):
        result = upload(saved, "--skip-verify", "--revision", "dev", code=1)
    assert f"check both names, and make a new branch with `hf repos branch create {REPO_ID} dev`" in result.err
    main = repo.branches["dev"] = repo.branches["main"]
    upload(saved, "--skip-verify", "--revision", "dev")
    assert repo.branches["main"] == main and set(repo.files("dev")) == REPO_FILES


def test_public_only_on_request(upload, hub, saved):
    upload(saved, "--skip-verify", "--public")
    assert not hub.repos[REPO_ID].private
    with unchanged(hub):
        assert "exists and is public" in upload(saved, "--skip-verify", code=2).err


def test_an_existing_private_repository_stays_private(upload, hub, saved):
    hub.create(REPO_ID)
    assert "stays private" in upload(saved, "--skip-verify", "--public").out
    assert hub.repos[REPO_ID].private


def test_the_command_is_a_program_that_takes_no_other_package_named_hub(tmp_path):
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "__init__.py").touch()
    command = [sys.executable, PROJECT / "hub_upload.py", "--help"]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": str(tmp_path)}, check=True, capture_output=True)


# What the library uploads by itself


def train_and_push(folder: Path) -> None:
    """Train with `Trainer(push_to_hub=True)`."""
    trainer = make_trainer(folder, push_to_hub=True, hub_model_id=REPO_ID)
    trainer.train()
    trainer.push_to_hub()


def push_model(repo_id: str) -> None:
    """Push a model, an instance of the package's class, and its tokenizer."""
    tiny_model().push_to_hub(repo_id)
    common.byte_tokenizer().push_to_hub(repo_id)


def auto_map_of(files: dict[str, bytes]) -> dict[str, str]:
    return json.loads(files["config.json"])["auto_map"]


def test_trainer_and_model_push_to_hub(worker, hub, tmp_path):
    worker(train_and_push, tmp_path / "trainer")
    trained = hub.repos[REPO_ID]
    commits = zip(trained.messages, trained.commits.values(), strict=True)
    in_progress = [set(tree) for message, tree in commits if message.startswith("Training in progress")]
    assert in_progress and all(MODEL_FILES | TOKENIZER_FILES <= files for files in in_progress)
    expected = worker(logits_of, copy_files(hub, REPO_ID, tmp_path / "expected"))
    line = f'AutoModelForCausalLM.from_pretrained("{REPO_ID}", trust_remote_code=True)'
    assert read(hub, tmp_path / "reader", line) == expected
    worker(push_model, "me/pushed")
    pushed = hub.repos["me/pushed"].files()
    assert MODEL_FILES | TOKENIZER_FILES <= set(pushed)
    # So it loads as the Trainer's repository has just done: the code is the same, and so are the classes to load.
    assert {name: pushed[name] for name in CODE_FILES} == {name: trained.files()[name] for name in CODE_FILES}
    assert auto_map_of(pushed) == auto_map_of(trained.files())


# Failures on the way


def impatient():
    """A sabotage: the command soon gives up on an answer."""
    return mock.patch("hub.upload.REQUEST_TIMEOUT_S", 0.3)


def client_that_quotes_the_token():
    """A sabotage: the client raises an error of its own that quotes the token."""
    error = ValueError(f"illegal header value 'Bearer {WRITE_TOKEN}'")
    return mock.patch("hub.upload.prepare_repository", side_effect=error)


@pytest.mark.parametrize("status, advice", [(409, "wait until it is done"), (500, "run this again later")])
def test_an_error_says_what_to_do(upload, hub, saved, status, advice):
    hub.create(REPO_ID)
    hub.fail("POST .*/commit/", status, times=100)
    with unchanged(hub):
        result = upload(saved, "--skip-verify", code=1)
    assert advice in result.err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    "token, gated, advice",
    [
        (READ_TOKEN, False, "write access"),
        (WRITE_TOKEN, True, "ask its owner for access"),
        ("hf_unknown", False, "hf auth login"),
    ],
    ids=["read token", "gated", "unknown token"],
)
def test_who_may_not_write_is_told_what_to_do(upload, hub, saved, token, gated, advice):
    hub.create(REPO_ID).gated = gated
    with unchanged(hub):
        result = upload(saved, "--skip-verify", token=token, code=1)
    assert advice in result.err and token not in result.err


def test_a_token_that_an_error_quotes_is_not_shown(upload, hub, saved):
    assert "Bearer ***" in upload(saved, "--skip-verify", sabotage=client_that_quotes_the_token, code=1).err


def test_requests_that_fail_for_a_while_are_made_again(upload, hub, saved):
    hub.fail("POST /api/repos/create", 500)
    hub.fail("GET /api/models/", 503)
    hub.fail("PUT /lfs/", 500, times=2)
    hub.fail("POST .*/commit/", 408)
    hub.fail("POST .*/commit/", 429)
    result = upload(saved, "--skip-verify")
    assert set(hub.repos[REPO_ID].files()) == REPO_FILES
    assert result.out.count("a request failed (HfHubHTTPError)") == 4


def test_connection_cut_in_the_middle_of_a_shard(upload, hub, saved):
    hub.create(REPO_ID)
    hub.fail("PUT /lfs/", CUT, times=1000)
    with unchanged(hub):
        result = upload(saved, "--skip-verify", "--max-shard-size", "50KB", code=1)
    assert "run this again later" in result.err and not hub.lfs
    hub.failures.clear()
    hub.fail("PUT /lfs/", CUT, times=1)
    upload(saved, "--skip-verify", "--max-shard-size", "50KB")


def test_commit_race(upload, hub, saved):
    repo = hub.create(REPO_ID)
    hub.fail("POST .*/preupload/", lambda: repo.commit("main", {"theirs.txt": Blob(b"theirs")}, "theirs"))
    assert "somebody committed" in upload(saved, "--skip-verify", code=1).err
    assert repo.messages == ["initial", "theirs"] and repo.files() == {"theirs.txt": b"theirs"}


def test_a_commit_whose_answer_is_lost_is_not_made_twice(upload, hub, saved):
    repo = hub.create(REPO_ID)
    repo.commit("main", {"old_code.py": Blob(b"")}, "by hand")
    hub.fail("POST .*/commit/", LOST)
    result = upload(saved, "--skip-verify")
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
    assert "a request failed (ReadTimeout)" in printed(result, "retrying")


# A checkpoint that cannot be used


def change_config(folder: Path, **values) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


def cut_shard(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def name_missing_shard(folder: Path) -> None:
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


@pytest.mark.parametrize("case", BAD_CHECKPOINTS)
def test_bad_checkpoint(refused, checkpoint, case):
    damage, words = BAD_CHECKPOINTS[case]
    damage(checkpoint)
    assert words in refused(checkpoint)


def test_no_folder(refused, tmp_path):
    assert "nowhere" in refused(tmp_path / "nowhere")


def test_pickle_is_refused_with_a_command_that_converts(upload, refused, worker, checkpoint, saved):
    worker(save_bin, checkpoint / "model.safetensors", "pytorch_model.bin")
    line = refused(checkpoint)
    assert "pytorch_model.bin is a pickle" in line
    run_as_told(line)
    upload(checkpoint, "--skip-verify")
    assert worker(logits_of, checkpoint) == worker(logits_of, saved)


# A command line that cannot be used


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
def test_bad_argument(refused, saved, argv, words):
    assert words in refused(saved, *argv)


@pytest.mark.parametrize("repo_id", ["model", "a/b/c", "me/has space", "me/two--dashes", "https://example.org/me/x"])
def test_bad_repo_id(refused, saved, repo_id):
    assert "NAME/MODEL" in refused(saved, repo_id=repo_id)


@pytest.mark.parametrize("token, words", [("", "no token"), ("hf_wrong\x01character", "characters that no token has")])
def test_bad_token(refused, saved, token, words):
    line = refused(saved, token=token)
    assert words in line and "hf_wrong" not in line


@pytest.mark.parametrize("argv", [("--token", "hf_secret"), ("--token=hf_secret",)])
def test_a_token_on_the_command_line_is_not_repeated(refused, saved, argv):
    line = refused(saved, *argv)
    assert "HF_TOKEN" in line and "hf_secret" not in line
