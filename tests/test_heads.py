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
"""Task heads: pooling, loading, pipelines, and that each learns a small real task from the standard library's text."""

import html.entities
import io
import keyword
import pydoc_data.topics
import tokenize
import turtle

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    DynamicCache,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    pipeline,
)

from common import random_ids, randomize, tiny_config
from modeling_latent import LatentAttentionForMaskedLM, LatentAttentionForSequenceClassification


HEADS = [
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
]
FILES = [html.entities.__file__, turtle.__file__, pydoc_data.topics.__file__]  # a table, a program, prose
LENGTH, MASK = 96, 1  # bytes of a piece of text; the masked byte, which no source contains


def head_model(auto_class, **overrides):
    is_causal = overrides.pop("is_causal", auto_class is not AutoModelForMaskedLM)
    return randomize(auto_class.from_config(tiny_config(is_causal=is_causal, **overrides))).eval()


# Pooling


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("tell", ["mask", "padding token"])
def test_a_padded_row_is_classified_as_it_is_alone(is_causal, tell):
    model = head_model(AutoModelForSequenceClassification, is_causal=is_causal, pad_token_id=0)
    input_ids = random_ids(3, 13)
    input_ids[0, :5] = input_ids[1, 9:] = 0
    real = input_ids != 0
    mask = real.long() if tell == "mask" else None
    if tell == "padding token" and not is_causal:
        pytest.skip("without a mask the tokens of a bidirectional model see the padding, as in any encoder")
    if tell == "padding token":
        input_ids, real = input_ids[1:], real[1:]  # padding in front changes what a causal model sees, too
    logits = model(input_ids, attention_mask=mask).logits
    for row in range(len(input_ids)):
        alone = model(input_ids[row][real[row]][None]).logits[0]
        torch.testing.assert_close(logits[row], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("pieces", [[8, 5], [12, 1], [6, 3, 4]])
def test_a_row_that_a_cache_continues_is_classified_as_a_whole(pieces):
    """Beside a cache the mask covers the past, too."""
    model, input_ids = head_model(AutoModelForSequenceClassification), random_ids(3, 13)
    mask = torch.ones(3, 13, dtype=torch.long)
    mask[0, :6] = mask[1, 12:] = 0
    cache, stop = DynamicCache(config=model.config), 0
    for piece in input_ids.split(pieces, dim=1):
        stop += piece.shape[1]
        logits = model(piece, mask[:, :stop], cache=cache).logits
    rows = mask[:, -pieces[-1] :].any(1)  # of padding alone nothing is classified
    torch.testing.assert_close(logits[rows], model(input_ids, mask).logits[rows], atol=1e-5, rtol=0)


@pytest.mark.parametrize("is_causal", [True, False])
def test_an_answer_is_never_in_the_padding(is_causal):
    """A padded row has the answer and the loss that it has alone, on either side."""
    model = head_model(AutoModelForQuestionAnswering, is_causal=is_causal)
    input_ids, mask = random_ids(2, 13), torch.ones(2, 13, dtype=torch.long)
    mask[0, :5] = mask[1, 8:] = 0
    first = torch.tensor([5, 0])
    ends = first + 7
    outputs = model(input_ids, mask, start_positions=first, end_positions=ends)
    alone = [model(ids[real.bool()][None]) for ids, real in zip(input_ids, mask, strict=True)]
    for name in ("start_logits", "end_logits"):
        logits = getattr(outputs, name)
        assert torch.equal(logits.argmax(1), first + torch.cat([getattr(row, name).argmax(1) for row in alone]))
        torch.testing.assert_close(logits[mask.bool()], torch.cat([getattr(row, name)[0] for row in alone]))
    losses = [
        model(ids[real.bool()][None], start_positions=torch.tensor([0]), end_positions=torch.tensor([7])).loss
        for ids, real in zip(input_ids, mask, strict=True)
    ]
    torch.testing.assert_close(outputs.loss, sum(losses) / 2)


def test_an_answer_in_the_padding_is_refused():
    """Its loss would be infinite. Places behind the row are what the library's loss leaves out."""
    model, input_ids = head_model(AutoModelForQuestionAnswering), random_ids(2, 13)
    mask = torch.ones(2, 13, dtype=torch.long)
    mask[0, :5] = 0
    first, last = torch.tensor([5, 0]), torch.tensor([12, 99])
    assert model(input_ids, mask, start_positions=first, end_positions=last).loss.isfinite()
    for start, end in ((0, 12), (5, 4), (-100, 12)):
        wrong = torch.tensor([start, 3]), torch.tensor([end, 3])
        with pytest.raises(ValueError, match="some are in the padding.*first real token"):
            model(input_ids, mask, start_positions=wrong[0], end_positions=wrong[1])


@pytest.mark.parametrize("given", ["start_positions", "end_positions"])
def test_half_of_an_answer_has_no_loss(given):
    outputs = head_model(AutoModelForQuestionAnswering)(random_ids(2, 13), **{given: torch.tensor([3, 4])})
    assert outputs.loss is None


@pytest.mark.parametrize("auto_class", HEADS)
def test_trainer_leaves_every_head_its_position_ids(auto_class, tmp_path):
    """It drops columns of a data set that the forward does not name; packed rows would read each other."""
    model = head_model(auto_class, num_labels=3)
    labels = [0] * 12 if auto_class in (AutoModelForMaskedLM, AutoModelForTokenClassification) else 0
    row = {"input_ids": random_ids(12).tolist(), "position_ids": [*range(5), *range(7)], "labels": labels}
    if auto_class is AutoModelForQuestionAnswering:
        row |= {"start_positions": 3, "end_positions": 4}
        row.pop("labels")
    arguments = TrainingArguments(tmp_path, report_to=[], use_cpu=True, disable_tqdm=True)
    evaluated = Trainer(model, arguments, eval_dataset=Dataset.from_list([row])).evaluate()["eval_loss"]
    inputs = {name: torch.tensor([value]) for name, value in row.items()}
    assert evaluated == pytest.approx(model(**inputs).loss.item(), abs=1e-5)
    assert evaluated != pytest.approx(model(**{**inputs, "position_ids": None}).loss.item(), abs=1e-3)


@pytest.mark.parametrize("auto_class", [AutoModelForMaskedLM, AutoModelForQuestionAnswering])
def test_num_items_in_batch_divides_the_summed_loss(auto_class):
    model, input_ids = head_model(auto_class), random_ids(2, 13)
    places = {"start_positions": torch.tensor([1, 2]), "end_positions": torch.tensor([5, 9])}
    inputs = places if auto_class is AutoModelForQuestionAnswering else {"labels": input_ids}
    items = 2 if inputs is places else 2 * 13
    summed = model(input_ids, **inputs).loss * items
    torch.testing.assert_close(model(input_ids, **inputs, num_items_in_batch=100).loss, summed / 100)


@pytest.mark.parametrize("auto_class", [AutoModelForQuestionAnswering, AutoModelForSequenceClassification])
def test_embeddings_give_what_their_tokens_do(auto_class):
    """There are no ids in which to look for the padding token."""
    model, input_ids = head_model(auto_class, pad_token_id=0), random_ids(2, 13)
    embeds = model.get_input_embeddings()(input_ids)
    for ours, theirs in zip(flat(model(inputs_embeds=embeds)), flat(model(input_ids)), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_without_a_mask_an_answer_is_not_in_the_padding_tokens_either():
    model, input_ids = head_model(AutoModelForQuestionAnswering, pad_token_id=0), random_ids(2, 13)
    input_ids[1, 8:] = 0
    outputs = model(input_ids)
    for logits in (outputs.start_logits, outputs.end_logits):
        assert (logits == torch.finfo(logits.dtype).min).equal(input_ids == 0)


@pytest.mark.parametrize("is_causal", [True, False])
def test_a_row_of_padding_is_classified_with_finite_numbers(is_causal):
    model, mask = head_model(AutoModelForSequenceClassification, is_causal=is_causal), torch.ones(2, 13)
    mask[0] = 0
    assert model(random_ids(2, 13), mask).logits.isfinite().all()


def test_trainer_predicts_logits_and_leaves_out_the_cache(tmp_path):
    model, input_ids = head_model(AutoModelForSequenceClassification, num_labels=3), random_ids(4, 9)
    arguments = TrainingArguments(tmp_path, report_to=[], use_cpu=True, disable_tqdm=True, use_cache=True)
    rows = [{"input_ids": ids, "labels": 0} for ids in input_ids.tolist()]
    predicted = Trainer(model, arguments).predict(rows).predictions
    torch.testing.assert_close(torch.from_numpy(predicted), model(input_ids).logits)


def test_pooling_is_by_the_last_token_or_by_the_mean():
    logits = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    real = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]])
    pooled = LatentAttentionForSequenceClassification(tiny_config(num_labels=3)).pool(logits, real)
    torch.testing.assert_close(pooled, torch.stack([logits[0, 4], logits[1, 2]]))
    pooled = LatentAttentionForSequenceClassification(tiny_config(num_labels=3, is_causal=False)).pool(logits, real)
    torch.testing.assert_close(pooled, torch.stack([logits[0, 2:].mean(0), logits[1, :3].mean(0)]))


def test_masked_language_modelling_refuses_a_causal_configuration():
    with pytest.raises(ValueError, match="`is_causal` is True but must be False"):
        LatentAttentionForMaskedLM(tiny_config())


# Loading and pipelines


@pytest.mark.parametrize("auto_class", HEADS)
def test_every_head_saves_and_loads(auto_class, tmp_path):
    model, input_ids = head_model(auto_class), random_ids(2, 9)
    model.save_pretrained(tmp_path)
    loaded = auto_class.from_pretrained(tmp_path).eval()
    assert type(loaded) is type(model)
    for ours, theirs in zip(loaded(input_ids).to_tuple(), model(input_ids).to_tuple(), strict=True):
        assert all(torch.equal(*pair) for pair in zip(flat(ours), flat(theirs), strict=True))


def test_a_tied_head_of_masked_language_modelling_stays_tied(tmp_path):
    model, input_ids = head_model(AutoModelForMaskedLM, tie_word_embeddings=True), random_ids(2, 9)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    for each in (model, loaded):
        assert each.lm_head.weight is each.model.embed_tokens.weight
    assert torch.equal(loaded(input_ids).logits, model(input_ids).logits)


def flat(value):
    return [tensor for tensor in torch.utils._pytree.tree_leaves(value) if isinstance(tensor, torch.Tensor)]


def word_tokenizer() -> PreTrainedTokenizerFast:
    words = ["[PAD]", "[UNK]", "[MASK]", *"the latent reads every token and writes what it found".split()]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", mask_token="[MASK]", model_max_length=64
    )


@pytest.mark.parametrize(
    ("task", "auto_class", "inputs", "keys"),
    [
        ("text-classification", AutoModelForSequenceClassification, "the latent reads", {"label", "score"}),
        ("token-classification", AutoModelForTokenClassification, "the latent reads", {"entity", "score", "word"}),
        ("fill-mask", AutoModelForMaskedLM, "the [MASK] reads", {"token_str", "score", "sequence"}),
    ],
)
def test_every_head_that_has_a_pipeline_runs_in_it(task, auto_class, inputs, keys):
    result = pipeline(task, model=head_model(auto_class), tokenizer=word_tokenizer())(inputs)
    assert keys <= set((result[0] if isinstance(result, list) else result).keys())


# Learning


def pieces(seed: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`(count, LENGTH)` bytes and which file they come from. Odd seeds draw from one half of each file."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(len(FILES), (count,), generator=generator)
    rows = []
    for label in labels.tolist():
        with open(FILES[label], "rb") as file:
            text = file.read()
        half = len(text) // 2
        start = torch.randint(half - LENGTH, (1,), generator=generator).item() + half * (seed % 2)
        rows.append(torch.tensor(list(text[start : start + LENGTH])))
    return torch.stack(rows), labels


def which_file(seed: int, count: int) -> tuple[dict, torch.Tensor]:
    input_ids, labels = pieces(seed, count)
    return {"input_ids": input_ids, "labels": labels}, labels


def masked_bytes(seed: int, count: int) -> tuple[dict, torch.Tensor]:
    input_ids, _ = pieces(seed, count)
    masked = torch.rand(input_ids.shape, generator=torch.Generator().manual_seed(seed)) < 0.15
    labels = input_ids.where(masked, -100)
    return {"input_ids": input_ids.masked_fill(masked, MASK), "labels": labels}, labels


def keyword_bytes(seed: int, count: int) -> tuple[dict, torch.Tensor]:
    """For every byte: of a Python keyword, of another name, or neither."""
    input_ids, _ = pieces(seed, count)
    labels = torch.stack([keyword_labels(bytes(row.tolist()).decode("latin-1")) for row in input_ids])
    return {"input_ids": input_ids, "labels": labels}, labels


def keyword_labels(text: str) -> torch.Tensor:
    labels, offsets = torch.zeros(len(text), dtype=torch.long), [0]
    for line in text.split("\n"):
        offsets.append(offsets[-1] + len(line) + 1)
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.NAME:
                start = offsets[token.start[0] - 1] + token.start[1]
                labels[start : start + len(token.string)] = 2 if keyword.iskeyword(token.string) else 1
    except (tokenize.TokenError, SyntaxError):  # a piece may end inside of a string
        pass
    return labels


def longest_word(seed: int, count: int) -> tuple[dict, torch.Tensor]:
    """Where the longest run of letters starts and ends."""
    input_ids, _ = pieces(seed, count)
    spans = []
    for row in input_ids.tolist():
        words = "".join(chr(byte) if chr(byte).isascii() and chr(byte).isalpha() else " " for byte in row)
        longest = max(words.split(), key=len, default=" ")
        spans.append((words.index(longest), words.index(longest) + len(longest) - 1))
    starts, ends = torch.tensor(spans).T
    return {"input_ids": input_ids, "start_positions": starts, "end_positions": ends}, starts


@pytest.mark.parametrize(
    ("auto_class", "is_causal", "task", "labels", "steps", "margin"),
    [
        (AutoModelForSequenceClassification, True, which_file, 3, 120, 0.2),
        (AutoModelForSequenceClassification, False, which_file, 3, 120, 0.2),
        (AutoModelForTokenClassification, False, keyword_bytes, 3, 100, 0.05),
        (AutoModelForQuestionAnswering, False, longest_word, 2, 300, 0.1),
        (AutoModelForMaskedLM, False, masked_bytes, 2, 200, 0.05),
    ],
)
def test_every_head_learns_a_real_task(auto_class, is_causal, task, labels, steps, margin):
    """Held-out accuracy, mean of three seeds, beats always answering the commonest label by `margin`."""
    inputs, truth = task(9999, 200)
    known = truth != -100
    commonest = (truth[known].mode().values == truth[known]).float().mean()
    accuracies = []
    for seed in range(3):
        model = trained_head(auto_class, is_causal, task, labels, steps, seed)
        with torch.no_grad():
            outputs = model.eval()(**inputs)
        scores = outputs.start_logits if task is longest_word else outputs.logits
        accuracies.append((scores.argmax(-1) == truth)[known].float().mean())
    assert sum(accuracies) / len(accuracies) > commonest + margin


def trained_head(auto_class, is_causal: bool, task, labels: int, steps: int, seed: int):
    torch.manual_seed(seed)
    config = tiny_config(
        vocab_size=256, hidden_size=64, intermediate_size=128, num_latents=8, chunk_size=16, is_causal=is_causal
    )
    config.num_labels = labels
    model = auto_class.from_config(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(steps):
        model(**task(2 * step, 16)[0]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model
