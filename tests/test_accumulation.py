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
"""Gradients that `Trainer` accumulates over micro-batches are those of one large batch, for every head."""

import pytest
import torch
from torch.nn.functional import cosine_similarity
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    Trainer,
    TrainingArguments,
)

from common import random_ids, randomize, tiny_config, tiny_model
from modeling_latent import LatentAttentionForSequenceClassification


LENGTHS = [1, 2, 14, 5, 9, 3, 11, 6, 7, 4]  # in micro-batches of three, of which the last has one row
CLASSES = torch.tensor([0, 2, 1, 1, 0, 2, 0, 1, 2, 0])
NUMBERS = torch.linspace(-2, 2, 10)
SEVERAL = torch.stack([CLASSES == 0, CLASSES == 1, NUMBERS > 0], dim=1).float()


def text_rows(labels_from: int = 0) -> list[dict]:
    """Rows of different lengths. Labels start at the given token, and are as many as the text leaves."""
    rows = [random_ids(length, seed=length) for length in LENGTHS]
    return [{"input_ids": row, "labels": row.where(torch.arange(len(row)) >= labels_from, -100)} for row in rows]


def classified_rows() -> list[dict]:
    return [{"input_ids": row["input_ids"], "labels": row["input_ids"] % 3} for row in text_rows()]


def labelled_rows(labels: torch.Tensor) -> list[dict]:
    return [{"input_ids": row["input_ids"], "labels": label} for row, label in zip(text_rows(), labels, strict=True)]


def collator(side: str):
    """Pads with 0, and labels of tokens with -100."""

    def padded(values: list[torch.Tensor], value: int) -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence(values, batch_first=True, padding_value=value, padding_side=side)

    def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
        batch = {"input_ids": padded([row["input_ids"] for row in rows], 0)}
        batch["attention_mask"] = padded([torch.ones_like(row["input_ids"]) for row in rows], 0)
        for name in rows[0].keys() - {"input_ids"}:
            values = [row[name] for row in rows]
            batch[name] = padded(values, -100) if values[0].ndim else torch.stack(values)
        return batch

    return collate


def trained_gradient(folder, auto_class, rows, side="right", micro_batch=None, **overrides) -> torch.Tensor:
    """What one step of `Trainer` over all rows subtracts from the weights, at a learning rate of 1."""
    model = randomize(auto_class.from_config(tiny_config(classifier_dropout=0.0, **overrides)))
    before = torch.cat([weight.detach().flatten().clone() for weight in model.parameters()])
    arguments = TrainingArguments(
        folder,
        max_steps=1,
        per_device_train_batch_size=micro_batch or len(rows),
        gradient_accumulation_steps=-(-len(rows) // (micro_batch or len(rows))),
        optim="sgd",
        learning_rate=1.0,
        max_grad_norm=0.0,  # to clip would hide the size
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    Trainer(model, arguments, train_dataset=rows, data_collator=collator(side)).train()
    return before - torch.cat([weight.detach().flatten() for weight in model.parameters()])


HEADS = {
    "causal LM": (AutoModelForCausalLM, text_rows(), "right", {}),
    "causal LM, first tokens without labels": (AutoModelForCausalLM, text_rows(labels_from=1), "left", {}),
    "masked LM": (AutoModelForMaskedLM, text_rows(), "left", {"is_causal": False}),
    "tokens": (AutoModelForTokenClassification, classified_rows(), "left", {"num_labels": 3}),
    "rows": (AutoModelForSequenceClassification, labelled_rows(CLASSES), "left", {"num_labels": 3}),
    "several labels": (AutoModelForSequenceClassification, labelled_rows(SEVERAL), "right", {"num_labels": 3}),
    "regression": (AutoModelForSequenceClassification, labelled_rows(NUMBERS), "right", {"num_labels": 1}),
}


@pytest.mark.parametrize(("auto_class", "rows", "side", "overrides"), HEADS.values(), ids=HEADS)
def test_accumulated_gradients_are_those_of_one_large_batch(auto_class, rows, side, overrides, tmp_path):
    whole = trained_gradient(tmp_path, auto_class, rows, side, **overrides)
    parts = trained_gradient(tmp_path, auto_class, rows, side, micro_batch=3, **overrides)
    assert whole.norm() > 1e-2
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-4)


def test_labels_of_left_padded_first_tokens_make_gradients_smaller_and_all_tokens_weigh_the_same(tmp_path):
    """`Trainer` counts these labels, which nothing predicts, and tells no micro-batch of those of the others."""
    rows = text_rows()
    whole = trained_gradient(tmp_path, AutoModelForCausalLM, rows, "left")
    parts = trained_gradient(tmp_path, AutoModelForCausalLM, rows, "left", micro_batch=3)
    torch.testing.assert_close(cosine_similarity(parts, whole, dim=0), torch.tensor(1.0), atol=1e-5, rtol=0)
    predicted = sum(LENGTHS) - len(LENGTHS)
    # All but the longest row of each of the four micro-batches have such a label that counts.
    assert parts.norm() / whole.norm() == pytest.approx(predicted / (predicted + len(LENGTHS) - 4), abs=1e-4)
    right = trained_gradient(tmp_path, AutoModelForCausalLM, rows, "right", micro_batch=3)
    torch.testing.assert_close(whole, right, atol=1e-5, rtol=1e-4)  # alone, the batch puts the count right


def test_accumulated_answers_are_those_of_one_large_batch_where_micro_batches_are_of_equal_size(tmp_path):
    """`Trainer` counts no answers: it takes the mean of the micro-batches' means."""
    rows = [
        {"input_ids": row["input_ids"], "start_positions": torch.tensor(place), "end_positions": torch.tensor(place)}
        for row, place in zip(text_rows(), [0, 1, 9, 3, 0, 2, 7, 5, 6, 0], strict=True)
    ]
    whole = trained_gradient(tmp_path, AutoModelForQuestionAnswering, rows)
    parts = trained_gradient(tmp_path, AutoModelForQuestionAnswering, rows, micro_batch=2)
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("items", [torch.tensor(100), 100])
def test_num_items_in_batch_divides_what_classifiers_sum(items):
    for auto_class, labels in (
        (AutoModelForTokenClassification, random_ids(2, 9) % 3),
        (AutoModelForSequenceClassification, torch.tensor([2, 0])),
        (AutoModelForSequenceClassification, torch.rand(2, 3)),
    ):
        model = randomize(auto_class.from_config(tiny_config(num_labels=3))).eval()
        loss = model(random_ids(2, 9), labels=labels).loss
        divided = model(random_ids(2, 9), labels=labels, num_items_in_batch=items).loss
        torch.testing.assert_close(divided, loss * labels.numel() / 100)


def test_a_number_of_minus_100_is_a_number():
    """`Trainer` takes it for a missing label, and would count no label here."""
    model = randomize(LatentAttentionForSequenceClassification(tiny_config(num_labels=1))).eval()
    labels = torch.full((2,), -100.0)
    loss = model(random_ids(2, 9), labels=labels).loss
    torch.testing.assert_close(model(random_ids(2, 9), labels=labels, num_items_in_batch=torch.tensor(0)).loss, loss)


def test_a_micro_batch_without_labels_adds_nothing():
    ids = random_ids(2, 9)
    for auto_class, labels in (
        (AutoModelForTokenClassification, torch.full((2, 9), -100)),
        (AutoModelForSequenceClassification, torch.full((2,), -100)),
    ):
        model = randomize(auto_class.from_config(tiny_config(num_labels=3)))
        assert model(ids, labels=labels, num_items_in_batch=5).loss == 0
    assert tiny_model()(ids, labels=torch.full((2, 9), -100), num_items_in_batch=5).loss == 0
