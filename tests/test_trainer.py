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
"""The library's `Trainer`: it learns, resumes, accumulates gradients and smooths labels."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    Trainer,
    TrainingArguments,
    set_seed,
)

from common import random_ids, randomize, tiny_config, tiny_model
from modeling_latent import LatentAttentionForCausalLM
from training import close, fixed_seed, padded_batch  # noqa: F401 (a fixture)


TEXT = b"the quick brown fox jumps over the lazy dog. "


def text_dataset(rows: int = 8) -> list[dict[str, list[int]]]:
    """Pieces of one repeated sentence as bytes less 32. Rows have labels in different numbers."""
    ids = [max(byte - 32, 0) for byte in TEXT * 3]
    pieces = [ids[start : start + 32] for start in range(0, 5 * rows, 5)]
    return [{"input_ids": piece, "labels": [-100] * (3 * row) + piece[3 * row :]} for row, piece in enumerate(pieces)]


def make_trainer(folder, **arguments) -> Trainer:
    set_seed(0)
    settings = {
        "max_steps": 20,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 0,
    }
    arguments = TrainingArguments(folder, **{**settings, **arguments})
    pattern = ["local", "both"]  # of the ready-made configurations, which learn a language sooner with it
    model = LatentAttentionForCausalLM(tiny_config(vocab_size=96, hidden_size=32, chunk_size=8, layer_pattern=pattern))
    return Trainer(model, arguments, train_dataset=text_dataset(), eval_dataset=text_dataset(2))


def losses(trainer: Trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_trainer_overfits_evaluates_saves_and_resumes(tmp_path):
    trainer = make_trainer(tmp_path, save_strategy="steps", save_steps=10)
    trainer.train()
    steps = losses(trainer)
    assert len(steps) == 20
    # Any of 96 tokens is a loss of log(96) = 4.56; it has to be less than half of that.
    assert steps[0] > 4 and steps[-1] < 2.28
    evaluated = trainer.evaluate()["eval_loss"]
    assert evaluated < 2.28

    trainer.save_model(tmp_path / "model")
    saved = make_trainer(tmp_path / "other")
    saved.model = LatentAttentionForCausalLM.from_pretrained(tmp_path / "model")
    assert saved.evaluate()["eval_loss"] == pytest.approx(evaluated, abs=1e-6)

    resumed = make_trainer(tmp_path)
    resumed.train(resume_from_checkpoint=tmp_path / "checkpoint-10")
    assert losses(resumed)[10:] == pytest.approx(steps[10:], abs=1e-6)


def test_trainer_evaluates_a_left_padded_batch_as_the_rows_alone(tmp_path):
    """It counts the labels by itself, also those that do not count, of tokens behind left padding."""
    trainer, batch = make_trainer(tmp_path), padded_batch()
    trainer.model = tiny_model()
    trainer.eval_dataset = [dict(zip(batch, row, strict=True)) for row in zip(*batch.values(), strict=True)]
    rows = [row[mask.bool()][None] for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    summed = sum(trainer.model(row, labels=row).loss.item() * (row.shape[1] - 1) for row in rows)
    expected = summed / sum(row.shape[1] - 1 for row in rows)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, abs=1e-5)


def test_gradient_accumulation_equals_a_big_batch(tmp_path):
    settings = {"max_steps": 3, "learning_rate": 1e-3}
    whole = make_trainer(tmp_path, **settings)
    whole.train()
    parts = make_trainer(tmp_path, **settings, per_device_train_batch_size=1, gradient_accumulation_steps=4)
    parts.train()
    assert losses(parts) == pytest.approx(losses(whole), abs=1e-4)
    close(dict(parts.model.named_parameters()), dict(whole.model.named_parameters()), atol=1e-4)


@pytest.mark.parametrize(
    "auto_class", [AutoModelForCausalLM, AutoModelForSequenceClassification, AutoModelForTokenClassification]
)
def test_every_loss_is_a_mean_however_gradients_are_accumulated(auto_class, tmp_path):
    def trained(**arguments) -> dict[str, torch.Tensor]:
        # Clipping would hide the size of a gradient.
        trainer = make_trainer(tmp_path, max_steps=1, optim="sgd", max_grad_norm=0.0, **arguments)
        trainer = Trainer(randomize(auto_class.from_config(tiny_config())), trainer.args, train_dataset=rows)
        trainer.train()
        return dict(trainer.model.named_parameters())

    ids = random_ids(8, 9).tolist()
    labels = [sum(row) % 2 for row in ids] if "Sequence" in auto_class.__name__ else [[0, 1, 1] * 3] * 8
    rows = [{"input_ids": row, "labels": label} for row, label in zip(ids, labels, strict=True)]
    parts = trained(per_device_train_batch_size=1, gradient_accumulation_steps=4)
    close(parts, trained(per_device_train_batch_size=4), atol=1e-4)


def test_label_smoothing_is_of_the_next_token(tmp_path):
    """So little of it that the loss is that without, which the model shifts by itself."""
    trainer = make_trainer(tmp_path, label_smoothing_factor=1e-6)
    batch = {"input_ids": random_ids(2, 9), "labels": random_ids(2, 9)}
    close(trainer.compute_loss(trainer.model, dict(batch)), trainer.model(**batch).loss, atol=1e-4)
