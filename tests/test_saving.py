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
"""Whatever wraps a model and saves it, the folder holds this package's code and loads where the package is not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin, PartialState
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import BitsAndBytesConfig, PreTrainedModel, Trainer, TrainingArguments
from transformers.distributed import DistributedConfig

from common import tiny_model
from modeling_latent import LatentAttentionForCausalLM
from ranks import run_ranks
from test_remote_code import CODE, ROOT, check_folder, run_alone


IDS = torch.arange(2, 25)[None]
# On a CPU, accelerate turns `TrainingArguments(fsdp=True)` into DDP; only a model that comes sharded stays so.
TRAINER_TAKES_SHARDED = hasattr(PreTrainedModel, "is_distributed_loading_by_transformers")


def model() -> LatentAttentionForCausalLM:
    return tiny_model(vocab_size=32, num_sink_tokens=2)


# Wrappers, each of which saves to a folder and returns the logits that it must give


def compiled(folder: Path) -> torch.Tensor:
    torch.compile(model(), backend="eager").save_pretrained(folder)
    return model()(IDS).logits


def merged_adapter(folder: Path) -> torch.Tensor:
    import peft  # slow, and the processes that share a model import this file, too

    settings = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], init_lora_weights=False)
    torch.manual_seed(0)
    adapted = peft.get_peft_model(model(), settings).merge_and_unload()
    adapted.save_pretrained(folder)
    assert not torch.equal(adapted(IDS).logits, model()(IDS).logits)
    return adapted(IDS).logits


def quantized(folder: Path) -> torch.Tensor:
    plain = folder.with_name("plain")
    model().save_pretrained(plain)
    config = BitsAndBytesConfig(load_in_8bit=True)
    loaded = LatentAttentionForCausalLM.from_pretrained(plain, quantization_config=config, dtype=torch.float32)
    loaded.save_pretrained(folder)
    return loaded(IDS).logits


def class_of_a_wrapper(folder: Path) -> torch.Tensor:
    """As FSDP2 does it, with another name."""
    wrapped = model()
    wrapped.__class__ = wrapper = type("Wrapped", (LatentAttentionForCausalLM,), {})
    wrapped.save_pretrained(folder)
    assert (wrapper.__module__, wrapper.__name__) == (__name__, "Wrapped")
    return wrapped(IDS).logits


# What each of two processes does that share a model, or its rows


def train_one_step(trained: PreTrainedModel, folder: Path) -> None:
    """With a learning rate of zero: the weights stay what they were."""
    settings = {"max_steps": 1, "save_steps": 1, "learning_rate": 0.0, "save_only_model": True}
    args = TrainingArguments(folder, **settings, use_cpu=True, report_to="none", disable_tqdm=True)
    Trainer(trained, args, train_dataset=[{"input_ids": IDS[0], "labels": IDS[0]}] * 16).train()


def save_sharded(folder: Path) -> None:
    by_hand, mesh = model(), init_device_mesh("cpu", (2,))
    for layer in by_hand.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(by_hand, mesh=mesh)
    whole = get_model_state_dict(by_hand, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    by_hand.save_pretrained(folder / "by_hand", is_main_process=mesh.get_rank() == 0, state_dict=whole)
    loaded = LatentAttentionForCausalLM.from_pretrained(
        folder / "plain", distributed_config=DistributedConfig(fsdp_size=2)
    )
    loaded.save_pretrained(folder / "by_configuration")
    if TRAINER_TAKES_SHARDED:
        train_one_step(loaded, folder / "trainer")


def save_split(folder: Path) -> None:
    split = LatentAttentionForCausalLM.from_pretrained(
        folder / "plain", distributed_config=DistributedConfig(tp_plan="auto")
    )
    assert isinstance(split.model.layers[0].mlp.up_proj.weight, DTensor)
    split.save_pretrained(folder / "tensor")


def save_shared(folder: Path) -> None:
    """Data parallel, and context parallel, which the `Trainer` takes for data parallel."""
    train_one_step(model(), folder / "ddp")
    sharing = model()
    sharing.enable_context_parallel(init_device_mesh("cpu", (2,)))
    train_one_step(sharing, folder / "context")


def save_by_accelerate(folder: Path) -> None:
    """accelerate shards on GPUs only; a process that takes itself for one of those shards on a CPU as well."""
    accelerator = Accelerator(cpu=True)
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", state_dict_type="FULL_STATE_DICT"
    )
    PartialState().distributed_type = accelerator.state.distributed_type = DistributedType.FSDP
    plain = model()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.0)
    sharded, optimizer = accelerator.prepare(plain, optimizer)
    accelerator.backward(sharded(IDS, labels=IDS).loss)
    optimizer.step()
    assert all(isinstance(parameter, DTensor) for parameter in sharded.parameters())
    accelerator.unwrap_model(sharded).save_pretrained(
        folder / "accelerate",
        is_main_process=accelerator.is_main_process,
        save_function=accelerator.save,
        state_dict=accelerator.get_state_dict(sharded),
    )


WRAPPERS = {wrapper.__name__: wrapper for wrapper in (compiled, merged_adapter, quantized, class_of_a_wrapper)}
IN_TWO_PROCESSES = {
    "FSDP2 by hand": "by_hand",
    "FSDP2 by configuration": "by_configuration",
    "FSDP2 by Trainer": "trainer/checkpoint-1",
    "FSDP2 by accelerate": "accelerate",
    "tensor parallel": "tensor",
    "data parallel": "ddp/checkpoint-1",
    "context parallel": "context/checkpoint-1",
}


def logits_alone(*folders):
    """Runs alone. Without the package, which an editable installation would find."""
    sys.modules["modeling_latent"] = None
    from transformers import AutoModelForCausalLM

    ids, found = torch.arange(2, 25)[None], {}
    for folder in folders:
        loaded = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
        found[folder] = (type(loaded).__name__, loaded(ids).logits.detach())
    return found


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> dict[str, tuple[Path, torch.Tensor]]:
    """The folder and the logits of each."""
    root = tmp_path_factory.mktemp("saved")
    folders = {name: (root / name, wrapper(root / name).detach()) for name, wrapper in WRAPPERS.items()}
    for save in (save_sharded, save_split, save_shared, save_by_accelerate):
        run_ranks(save, root, 2)
    logits = model()(IDS).logits.detach()
    return folders | {name: (root / path, logits) for name, path in IN_TWO_PROCESSES.items() if (root / path).exists()}


@pytest.fixture(scope="module")
def loaded(saved, tmp_path_factory) -> dict:
    """What one process without the package finds in all the folders."""
    folders = [str(folder) for folder, _ in saved.values()]
    found = run_alone(sys.executable, logits_alone, *folders, scratch=tmp_path_factory.mktemp("alone") / "scratch")
    return dict(zip(saved, found.values(), strict=True))


@pytest.mark.parametrize("name", [*WRAPPERS, *IN_TWO_PROCESSES])
def test_a_wrapped_model_saves_this_code_and_loads_without_the_package(name, saved, loaded):
    if name == "FSDP2 by Trainer" and not TRAINER_TAKES_SHARDED:
        pytest.skip("this version's Trainer does not take a model that comes sharded")
    folder, logits = saved[name]
    check_folder(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["LatentAttentionForCausalLM"]
    assert loaded[name][0] == "LatentAttentionForCausalLM"
    torch.testing.assert_close(loaded[name][1], logits, atol=1e-6, rtol=0)


def test_a_class_that_its_author_registers_is_saved_by_its_own_name(tmp_path):
    class Own(LatentAttentionForCausalLM):
        pass

    Own.register_for_auto_class("AutoModelForCausalLM")
    Own(model().config).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert config["auto_map"]["AutoModelForCausalLM"] == "test_saving.Own"
    assert (tmp_path / "test_saving.py").is_file()


# The folder above a checkpoint, which `Trainer(push_to_hub=True)` pushes


def code_in(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob("*.py")}


def test_a_checkpoint_s_code_is_in_the_folder_above_too(tmp_path):
    model().save_pretrained(tmp_path / "other")
    assert code_in(tmp_path) == {}
    model().save_pretrained(tmp_path / "checkpoint-3", is_main_process=False)
    assert code_in(tmp_path) == {}
    model().save_pretrained(tmp_path / "checkpoint-3")
    expected = {path.name: path.read_bytes() for path in CODE}
    assert code_in(tmp_path) == expected
    (tmp_path / "attention.py").write_text("# of an earlier version")
    model().save_pretrained(str(tmp_path / "checkpoint-4"))
    assert code_in(tmp_path) == expected


def test_someone_s_own_files_above_a_checkpoint_stay(tmp_path):
    (tmp_path / "attention.py").write_text("# my own")
    model().save_pretrained(tmp_path / "checkpoint-3")
    assert code_in(tmp_path) == {"attention.py": b"# my own"}


# Older versions of transformers

OLDER = """
import sys
import transformers
from transformers import AutoConfig, configuration_utils

folder, root, *versions = sys.argv[1:]
del configuration_utils.PreTrainedConfig
sys.modules["huggingface_hub.dataclasses"] = sys.modules["transformers.cache_utils"] = None
for transformers.__version__ in versions:
    try:
        AutoConfig.from_pretrained(folder, trust_remote_code=True)
    except ImportError as error:
        print(error)
    sys.path.insert(0, root)
    try:
        import modeling_latent
    except ImportError as error:
        print(error)
"""


def test_an_older_transformers_is_named_before_anything_else_fails(saved, tmp_path):
    versions = ["4.57.6", "5.16.0.dev0"]
    variables = {**os.environ, "HF_MODULES_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-I", "-c", OLDER, saved["compiled"][0], ROOT, *versions]
    ended = subprocess.run(command, env=variables, cwd=tmp_path, capture_output=True, text=True)
    assert ended.stdout.splitlines() == [
        f"transformers {version} is installed, but latent attention needs version 5.17 or later: "
        'upgrade it with `pip install --upgrade "transformers>=5.17"`.'
        for version in versions
        for _ in ("the folder", "the package")
    ]
