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
"""`hub_upload.py` with PEFT adapters: uploaded as they are, merged into their base, or refused."""

import json
import shutil
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from huggingface_hub import snapshot_download
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from hub_command import (
    REPO_FILES,
    REPO_ID,
    copy_files,
    logits_of,
    no_sockets,
    printed,
    read,
    run_as_told,
    save_bin,
)
from hub_server import Blob


pytest_plugins = ["hub_command"]


# What runs in the worker


def save_adapter(folder: Path, base: str) -> None:
    """Save a LoRA adapter, not zero as it starts, on a folder or on a repository that is in the cache afterwards."""
    model = AutoModelForCausalLM.from_pretrained(base if Path(base).is_dir() else snapshot_download(base))
    model.name_or_path = base
    adapter = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    torch.manual_seed(0)
    for name, parameter in adapter.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapter.save_pretrained(folder)


def save_prompts(folder: Path, base: str) -> None:
    """Save an adapter of learned prompts, which changes no weight."""
    model = AutoModelForCausalLM.from_pretrained(base)
    get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)).save_pretrained(folder)


def change_weights(folder: Path) -> None:
    """Change a checkpoint's weights in place."""
    weights = {name: 1.5 * tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def no_peft():
    """A sabotage: peft seems not to be installed."""
    return mock.patch.dict(sys.modules, {"peft": None})


# What the tests start from


def change_adapter_config(folder: Path, **values) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, **values}))


@pytest.fixture
def adapter(worker, saved, tmp_path):
    """The folder of an adapter whose base is a folder."""
    worker(save_adapter, tmp_path / "adapter", str(saved))
    return tmp_path / "adapter"


@pytest.fixture
def hub_adapter(upload, worker, saved, tmp_path):
    """The folder of an adapter whose base is `me/base` on the Hub."""
    upload(saved, "--skip-verify", repo_id="me/base")
    worker(save_adapter, tmp_path / "adapter", "me/base")
    return tmp_path / "adapter"


# The tests


def test_adapter(upload, worker, hub, hub_adapter, saved, tmp_path):
    requests = len(hub.requests)
    own_card = (hub_adapter / "README.md").rename(tmp_path / "own_card.md")
    shown = upload(hub_adapter, "--dry-run", sabotage=no_sockets)
    assert len(hub.requests) == requests
    assert "base_model: me/base" in shown.out and "model = PeftModel.from_pretrained(" in shown.out
    own_card.rename(hub_adapter / "README.md")
    repo = hub.create(REPO_ID)
    tree = dict(repo.commits[repo.branches["main"]])
    repo.commit("main", tree | {"config.json": Blob(b"{}"), "model.safetensors": Blob(b"")}, "a whole model")
    result = upload(hub_adapter, "--skip-verify")
    files = repo.files()
    assert set(files) == {"adapter_config.json", "adapter_model.safetensors", "README.md", "LICENSE", ".gitattributes"}
    assert "base_model: me/base" in files["README.md"].decode()
    line = printed(result, "load it")
    assert hub.repos["me/base"].branches["main"] in line and repo.branches["main"] in line
    adapted = read(hub, tmp_path / "reader", line)
    assert adapted != worker(logits_of, saved)
    assert adapted == pytest.approx(worker(logits_of, hub_adapter), abs=1e-5)


def test_adapter_merged(upload, refused, worker, hub, adapter, saved, tmp_path):
    line = refused(adapter)
    assert "base_model_name_or_path" in line and "--merge" in line
    result = upload(adapter, "--merge", "--include", "*")
    assert "adapter_config.json is of the adapter" in result.out
    files = hub.repos[REPO_ID].files()
    assert set(files) == REPO_FILES
    assert str(saved) not in files["README.md"].decode()
    merged = copy_files(hub, REPO_ID, tmp_path / "merged")
    expected = worker(logits_of, adapter)
    assert worker(logits_of, merged) == pytest.approx(expected, abs=1e-3)
    assert expected != pytest.approx(worker(logits_of, saved), abs=1e-3)


def test_an_adapter_goes_on_the_revision_that_it_was_trained_on(
    upload, refused, worker, hub, hub_adapter, saved, tmp_path
):
    expected = worker(logits_of, hub_adapter)
    trained_on = hub.repos["me/base"].branches["main"]
    change_adapter_config(hub_adapter, revision=trained_on)
    for file in saved.glob("*token*"):  # as `Trainer` leaves them beside an adapter
        shutil.copy(file, hub_adapter)
    newer = Path(shutil.copytree(saved, tmp_path / "newer"))
    worker(change_weights, newer)
    upload(newer, "--skip-verify", repo_id="me/base")
    worker(snapshot_download, "me/base")
    assert hub.repos["me/base"].branches["main"] != trained_on

    assert f'revision="{trained_on}"' in printed(upload(hub_adapter), "load it")
    upload(hub_adapter, "--merge", "--skip-verify", repo_id="me/merged")
    merged = copy_files(hub, "me/merged", tmp_path / "merged")
    assert worker(logits_of, merged) == pytest.approx(expected, abs=1e-3)

    change_adapter_config(hub_adapter, revision="f" * 40)
    assert f"hf download me/base --revision {'f' * 40}" in refused(hub_adapter, "--dry-run")


def test_an_adapter_is_one_file(refused, hub_adapter):
    assert "an adapter is one file" in refused(hub_adapter, "--max-shard-size", "1MB")


def test_an_adapter_that_cannot_be_merged(refused, worker, saved, tmp_path):
    worker(save_prompts, tmp_path / "adapter", str(saved))
    assert "nothing to merge" in refused(tmp_path / "adapter", "--merge")


def test_pickled_adapter_is_refused_with_a_command_that_converts(upload, refused, worker, adapter):
    expected = worker(logits_of, adapter)
    worker(save_bin, adapter / "adapter_model.safetensors", "adapter_model.bin")
    line = refused(adapter, "--merge")
    assert "adapter_model.bin is a pickle" in line
    run_as_told(line)
    upload(adapter, "--merge", "--skip-verify")
    assert worker(logits_of, adapter) == expected


@pytest.mark.parametrize("base", ["me/never-downloaded", None])
def test_adapter_of_an_unknown_base(refused, adapter, base):
    change_adapter_config(adapter, base_model_name_or_path=base)
    assert "base_model_name_or_path" in refused(adapter)


def test_adapter_without_peft(refused, adapter):
    assert "pip install peft" in refused(adapter, "--merge", sabotage=no_peft)
