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
"""Distillation by the real `Trainer`: a tiny random Llama teaches what was converted from it."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import distill
import from_llama
from common import random_ids
from test_from_llama import CHUNK, SINKS, tiny_llama
from test_heads import word_tokenizer


FLAGS = ["--block_size", "32", "--per_device_train_batch_size", "4", "--lr_scheduler_type", "constant"]
FLAGS += ["--report_to", "none", "--use_cpu", "--disable_tqdm", "true"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """A Llama, what was converted from it, with latents and without, and texts."""
    folder = tmp_path_factory.mktemp("distill")
    tokenizer = word_tokenizer()
    tokenizer.eos_token = "found"
    llama = tiny_llama(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id).float()
    for part in (llama, tokenizer):
        part.save_pretrained(folder / "llama")
    for name, flags in {"converted": ["--latent_every", "2"], "window": ["--latent_every", "0"]}.items():
        sizes = ["--num_latents", "3", "--chunk_size", str(CHUNK), "--num_sink_tokens", str(SINKS)]
        from_llama.main([str(folder / "llama"), "--output_dir", str(folder / name), *sizes, *flags])
    (folder / "texts").mkdir()
    for name in ("a.txt", "b.txt"):
        (folder / "texts" / name).write_text("the latent reads every token\n" * 200, encoding="utf-8")
    return folder


def run(folders: Path, stage: str, model: str, output: Path, *flags: str) -> torch.nn.Module:
    paths = ["--teacher", str(folders / "llama"), "--model", str(folders / model), "--output_dir", str(output)]
    distill.main(["--stage", stage, *paths, "--dataset", str(folders / "texts"), *FLAGS, *flags])
    return AutoModelForCausalLM.from_pretrained(output)


def changed(before: torch.nn.Module, after: torch.nn.Module) -> set[str]:
    old = dict(before.named_parameters())
    return {name for name, weight in after.named_parameters() if not torch.equal(weight, old[name])}


def test_the_first_stage_teaches_the_memory_alone_what_the_window_misses(folders, tmp_path, capsys):
    flags = ["--max_steps", "40", "--learning_rate", "1e-2", "--gradient_checkpointing", "true"]
    model = run(folders, "attention", "converted", tmp_path, *flags)
    before = AutoModelForCausalLM.from_pretrained(folders / "converted")
    memory = {name for name, _ in before.named_parameters() if "latent_attention" in name}
    assert changed(before, model) == memory
    share = float(capsys.readouterr().out.split("validation: ")[1].split()[0])
    assert share < 0.8  # of what the window misses; an untrained memory leaves all of it


def test_an_untrained_memory_leaves_all_of_what_the_window_misses(folders):
    teacher, model = (AutoModelForCausalLM.from_pretrained(folders / name) for name in ("llama", "converted"))
    arguments = distill.DistillationArguments(folders / "unused", use_cpu=True, report_to="none")
    trainer = distill.AttentionTrainer(teacher, model, args=arguments)
    input_ids = random_ids(2, 5 * CHUNK + 1, vocab_size=model.config.vocab_size)
    assert trainer.distance(model, {"input_ids": input_ids}).item() == 1


@pytest.mark.parametrize("model", ["converted", "window"])
def test_the_second_stage_brings_the_model_closer_to_its_teacher(model, folders, tmp_path, capsys):
    distances = []
    for steps in ("1", "20"):
        rates = ["--learning_rate", "1e-9" if steps == "1" else "3e-3", "--attention_learning_rate", "3e-3"]
        tuned = run(folders, "logits", model, tmp_path / steps, "--max_steps", steps, *rates)
        distances.append(float(capsys.readouterr().out.split("validation: ")[1].split()[0]))
    assert distances[1] < 0.8 * distances[0]
    before = AutoModelForCausalLM.from_pretrained(folders / model)
    assert changed(before, tuned) == {name for name, _ in before.named_parameters()}


def test_a_stage_that_was_interrupted_ends_as_if_it_had_not_been(folders, tmp_path):
    flags = ["--window_dropout", "0.5", "--save_steps", "2", "--max_steps", "4"]
    whole = run(folders, "logits", "converted", tmp_path / "whole", *flags)
    run(folders, "logits", "converted", tmp_path / "resumed", *flags)
    for left in ("checkpoint-4", "model.safetensors"):  # what there was after two steps
        path = tmp_path / "resumed" / left
        path.unlink() if path.is_file() else path.rename(tmp_path / left)
    resumed = run(folders, "logits", "converted", tmp_path / "resumed", *flags, "--resume")
    assert changed(whole, resumed) == set()


def test_attentions_have_a_learning_rate_of_their_own(folders):
    teacher, model = (AutoModelForCausalLM.from_pretrained(folders / name) for name in ("llama", "converted"))
    arguments = distill.DistillationArguments(folders / "unused", stage="logits", use_cpu=True, report_to="none")
    optimizer = distill.LogitsTrainer(teacher, model, args=arguments).create_optimizer()
    rates = {weight: group["lr"] for group in optimizer.param_groups for weight in group["params"]}
    layer = model.model.layers[1]
    assert rates[layer.local_attention.q_proj.weight] == rates[layer.latent_attention.latents] == 1e-4
    assert rates[layer.mlp.up_proj.weight] == rates[model.model.embed_tokens.weight] == 1e-5


def test_a_cut_window_hides_the_chunk_before(folders):
    """In the first layer of the model without latents a cut row's last chunk depends on its own tokens and sinks."""
    teacher, model = (AutoModelForCausalLM.from_pretrained(folders / name) for name in ("llama", "window"))
    arguments = distill.DistillationArguments(folders / "unused", stage="logits", use_cpu=True, report_to="none")
    trainer = distill.LogitsTrainer(teacher, model, args=arguments)
    input_ids = random_ids(2, 4 * CHUNK, vocab_size=model.config.vocab_size)
    input_ids[1] = input_ids[0]
    other = input_ids.clone()
    other[:, 2 * CHUNK : 3 * CHUNK] = 5
    trainer.cut_rows = torch.tensor([True, False])
    with torch.no_grad():
        states = [model.model(ids, output_hidden_states=True).hidden_states[1] for ids in (input_ids, other)]
    difference = (states[0] - states[1])[:, 3 * CHUNK :].abs().amax((1, 2))
    assert difference[0] == 0
    assert difference[1] > 1e-3


def test_what_teaches_nothing_is_refused(folders, tmp_path):
    with pytest.raises(ValueError, match="has no such layer: go on to --stage logits"):
        run(folders, "attention", "window", tmp_path, "--max_steps", "1")
    with pytest.raises(ValueError, match="--model is a LlamaForCausalLM: give it what from_llama.py has written"):
        run(folders, "logits", "llama", tmp_path, "--max_steps", "1")
    with pytest.raises(ValueError, match=r"--block_size is 8 but must be greater than the window of 8 tokens"):
        run(folders, "logits", "converted", tmp_path, "--max_steps", "1", "--block_size", "8")
    with pytest.raises(ValueError, match="--window_dropout is for --stage logits"):
        run(folders, "attention", "converted", tmp_path, "--window_dropout", "0.5")
    with pytest.raises(ValueError, match="--window_dropout is 2.0 but must be a share"):
        run(folders, "logits", "converted", tmp_path, "--window_dropout", "2")
