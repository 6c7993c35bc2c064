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
"""`hub_upload.py`: what goes into an export, how that is verified and shown, and the card in it."""

import contextlib
import json
import re
from pathlib import Path

import pytest
import torch

import common
from hub.card import make_card
from hub.checkpoint import Checkpoint
from hub.request import Request
from hub_command import (
    EXPORT_FILES,
    OPTIMIZER_STEPS,
    REPO_FILES,
    REPO_ID,
    TOKENIZER_FILES,
    change_export,
    make_trainer,
    no_sockets,
    printed,
    tiny_model,
)


pytest_plugins = ["hub_command"]


# Verification


def append(file: Path, line: str) -> None:
    file.write_text(f"{file.read_text()}{line}\n")


def wrong_logits():
    """A sabotage: the export is compared with logits of another model."""
    return change_export(lambda export, reference: reference["logits"].add_(1))


def logits_that_are_no_numbers():
    """A sabotage: the logits are as of a checkpoint whose training has failed, from which no number differs."""
    return change_export(lambda export, reference: reference["logits"].fill_(torch.nan))


def code_that_needs_the_package():
    """A sabotage: a code file imports from the package, which a reader does not have."""
    line = "import modeling_latent.cache_latent"
    return change_export(lambda export, reference: append(export / "attention.py", line))


def missing_class():
    """A sabotage: a code file lacks a class that the config names."""
    line = "del LatentAttentionForMaskedLM"
    return change_export(lambda export, reference: append(export / "modeling_latent.py", line))


@pytest.mark.parametrize(
    "sabotage, reason",
    [
        (wrong_logits, "logits differ"),
        (logits_that_are_no_numbers, "relative error nan"),
        (code_that_needs_the_package, "modeling_latent"),
        (missing_class, "LatentAttentionForMaskedLM"),
    ],
)
def test_failed_verification_stops(upload, hub, saved, sabotage, reason):
    last_line = upload(saved, sabotage=sabotage, code=1).err.strip().splitlines()[-1]
    assert "verification failed, nothing was uploaded" in last_line and reason in last_line
    assert not hub.requests


# Dry run


def train(folder: Path) -> None:
    """Leave a checkpoint folder of the Trainer."""
    make_trainer(folder).train()


@contextlib.contextmanager
def alone():
    """
    A sabotage: no connection can be opened, and in the fresh process a code file does not load if it finds a token,
    the network allowed, or Python not isolated.
    """
    code = """
import os, sys
assert not [name for name in os.environ if "TOKEN" in name], "a token"
assert os.environ["HF_HUB_OFFLINE"] == "1" and sys.flags.isolated, "not alone"
"""
    with no_sockets(), change_export(lambda export, reference: append(export / "attention.py", code)):
        yield


def test_dry_run_of_a_trainer_checkpoint_needs_no_network_and_no_token(upload, worker, hub, tmp_path):
    worker(train, tmp_path)
    folder = tmp_path / f"checkpoint-{OPTIMIZER_STEPS}"
    assert {"optimizer.pt", "trainer_state.json", "training_args.bin"} < {path.name for path in folder.iterdir()}
    result = upload(folder, "--dry-run", token="", sabotage=alone)
    assert not hub.requests
    listed = re.findall(r"^ +([\d,]+) bytes  (\w+) +(\S+)$", result.out, re.MULTILINE)
    assert {name for _, _, name in listed} == EXPORT_FILES
    assert {name for _, kind, name in listed if kind == "LFS"} == {"model.safetensors"}
    total = sum(int(size.replace(",", "")) for size, _, _ in listed)
    assert f"{total:,} bytes  in {len(EXPORT_FILES)} files" in result.out
    assert (printed(result, "repository"), printed(result, "revision")) == (REPO_ID, "main")
    assert printed(result, "visibility") == "private"
    assert f"| optimizer steps | {OPTIMIZER_STEPS} |" in result.out and "| last training loss |" in result.out


def test_dry_run_without_verification_is_no_success(upload, saved):
    result = upload(saved, "--dry-run", "--skip-verify", code=1)
    assert "NOT VERIFIED: --skip-verify" in result.out
    assert "Not loaded or run before the upload" in result.out


# What goes in


def test_only_the_list_and_what_is_named_goes_in(upload, hub, checkpoint):
    for name in (".env", "id_rsa", "optimizer.pt", "analysis.ipynb", "train.log", "plots/loss.png", "plots/.key"):
        (checkpoint / name).parent.mkdir(exist_ok=True)
        (checkpoint / name).write_text("private")
    upload(checkpoint, "--skip-verify")
    assert set(hub.repos[REPO_ID].files()) == REPO_FILES
    upload(checkpoint, "--skip-verify", "--include", "plots/*", "--include", "*.log")
    assert set(hub.repos[REPO_ID].files()) == REPO_FILES | {"plots/loss.png", "train.log"}


def test_include_does_not_replace_what_the_export_made(upload, hub, checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "auto_map": {}}))
    result = upload(checkpoint, "--skip-verify", "--include", "*.json")
    assert json.loads(hub.repos[REPO_ID].files()["config.json"])["auto_map"]
    assert "note        config.json is made anew by the export" in result.out


def test_a_tokenizer_replaces_the_whole_tokenizer_of_an_earlier_upload(upload, hub, checkpoint):
    """A template that stayed would be loaded as that of the new tokenizer."""
    upload(checkpoint, "--skip-verify")
    (checkpoint / "chat_template.jinja").unlink()
    upload(checkpoint, "--skip-verify")
    assert set(hub.repos[REPO_ID].files()) == REPO_FILES - {"chat_template.jinja"}


def test_a_checkpoint_without_a_tokenizer_leaves_that_of_an_earlier_upload(upload, hub, checkpoint):
    upload(checkpoint, "--skip-verify")
    for name in TOKENIZER_FILES:
        (checkpoint / name).unlink()
    result = upload(checkpoint)
    assert set(hub.repos[REPO_ID].files()) == REPO_FILES
    assert len(json.loads(printed(result, "generated"))) == 20
    assert "AutoTokenizer" not in hub.repos[REPO_ID].files()["README.md"].decode()
    assert f"note        {checkpoint} holds no tokenizer_config.json, so no tokenizer is uploaded" in result.out


# The card


def state_bytes() -> int:
    """Compute what the configuration states about the cache in the checkpoint's dtype."""
    return tiny_model().config.state_bytes(1, torch.float32)


def test_card(upload, worker, hub, checkpoint):
    history = [{"loss": 9.0}, {"eval_loss": 7.5}, {"loss": 5.4321}, {"eval_loss": 5.5}]
    state = {"global_step": 123, "epoch": 1.5, "best_metric": None, "log_history": history}
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    evaluation = {"tool": "examples/train.py", "results": {"bits per byte": 1.23}}
    (checkpoint / "evaluation.json").write_text(json.dumps(evaluation))
    (checkpoint / "LICENSE").write_text("MIT License")
    flags = ("--license", "mit", "--language", "en", "--language", "de", "--dataset", "me/text")
    upload(checkpoint, "--skip-verify", *flags)
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
    assert "| optimizer steps | 123 |" in card and "best metric" not in card
    assert "| last training loss | 5.4321 |" in card and "| last validation loss | 5.5 |" in card
    assert "| bits per byte | 1.23 |" in card
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
def test_the_card_says_what_is_remembered_and_where(overrides, sentence, tmp_path):
    model = common.tiny_model(num_hidden_layers=5, **overrides)
    request = Request(checkpoint=tmp_path, repo_id=REPO_ID)
    card = str(make_card(request, Checkpoint(tmp_path), model, has_tokenizer=False))
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
    assert "the license is apache-2.0" not in result.out
    metadata, body = hub.repos[REPO_ID].files()["README.md"].decode().split("---\n", 2)[1:]
    assert body == "# My words\n\nAll of them.\n"
    own = {"license: cc-by-4.0", "extra: kept", "base_model: some/llama", "- mine", "- '3'", "- fr"}
    assert own | {"- custom_code", "- en"} <= set(metadata.splitlines())
    assert "- base_model:" not in metadata  # the Hub makes those tags itself


def test_a_license_that_nothing_names_is_this_projects_own(upload, hub, saved):
    result = upload(saved, "--skip-verify")
    assert "note        the license is apache-2.0" in result.out
    files = hub.repos[REPO_ID].files()
    assert "license: apache-2.0" in files["README.md"].decode() and b"Apache License" in files["LICENSE"]
