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
"""The demo's programs on a few small texts: they train, resume, fine-tune, measure and generate."""

import gzip
import json
import math
import re
import shutil

import pytest
import torch
from datasets import Dataset, DatasetDict
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import documents
import generate
import loss_curve
import recall
import train
from common import tiny_config, tiny_model


TEXTS = [f"def add_{i}(first, second):\n    return first + second + {i}\n\n" * 12 for i in range(30)]
BLOCK = 32


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    for i, text in enumerate(TEXTS):
        (folder / f"{i}.txt").write_text(text, encoding="utf-8")
    return folder


def tiny_configuration(folder):
    folder.mkdir()
    settings = tiny_config(vocab_size=300, hidden_size=32, bos_token_id=0, eos_token_id=0, pad_token_id=1).to_dict()
    settings.pop("auto_map")  # a configuration's folder has no code
    (folder / "config.json").write_text(json.dumps({**settings, "dtype": None}))


@pytest.fixture(scope="module")
def config_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("config") / "tiny"
    tiny_configuration(folder)
    return folder


def flags(texts, output_dir, *more: str) -> list[str]:
    common = {"max_steps": 12, "save_steps": 6, "learning_rate": 1e-2, "block_size": BLOCK, "logging_steps": 3}
    common |= {"report_to": "none", "seed": 3, "eval_strategy": "steps", "eval_steps": 6}
    common |= {"per_device_train_batch_size": 4, "per_device_eval_batch_size": 4, "lr_scheduler_type": "constant"}
    settings = [word for name, value in common.items() for word in (f"--{name}", str(value))]
    return ["--dataset", str(texts), "--output_dir", str(output_dir), "--use_cpu", *settings, *more]


@pytest.fixture(scope="module")
def trained(texts, config_folder, tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("trained")
    train.main(flags(texts, output_dir, "--config", str(config_folder)))
    return output_dir


def test_training_learns_and_leaves_a_checkpoint_with_a_picture(trained):
    state = json.loads((trained / "checkpoint-12" / "trainer_state.json").read_text())
    losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    assert losses[-1] < losses[0] - 0.5
    assert (trained / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert (trained / "tokenizer.json").is_file()
    assert (trained / "modeling_latent.py").is_file()


def test_bits_per_byte_is_what_the_model_gives_the_bytes_of_the_validation_texts(trained, texts, capsys, tmp_path):
    train.main(flags(texts, tmp_path, "--model", str(trained), "--max_steps", "1", "--learning_rate", "1e-9"))
    evaluation = json.loads((tmp_path / "evaluation.json").read_text())
    printed = next(line for line in capsys.readouterr().out.splitlines() if "this model" in line)
    model = AutoModelForCausalLM.from_pretrained(trained).eval()
    tokenizer = AutoTokenizer.from_pretrained(trained)
    validation = train.load_documents(str(texts))["validation"]["text"]
    stream = [tokenizer.eos_token_id]
    for text in validation:
        stream += tokenizer(text)["input_ids"] + [tokenizer.eos_token_id]
    nats = 0.0
    with torch.no_grad():
        for start in range(0, len(stream) - 1, BLOCK - 1):
            row = torch.tensor(stream[start : start + BLOCK])
            log_probabilities = model(row[None]).logits[0, :-1].log_softmax(-1)
            nats -= log_probabilities.gather(1, row[1:, None]).sum().item()
    expected = nats / math.log(2) / sum(len(text.encode()) for text in validation)
    assert float(printed.split()[-1]) == pytest.approx(expected, abs=2e-3)
    assert evaluation["tool"] == "examples/train.py"
    assert evaluation["results"]["validation bits per byte"] == pytest.approx(expected, abs=2e-3)


def test_compressors_are_measured_one_text_at_a_time():
    texts = ["abc" * 50, "äöü" * 70]
    expected = sum(len(gzip.compress(text.encode(), 9)) for text in texts) * 8 / (150 + 6 * 70)
    assert train.compressed_bits_per_byte(texts)["gzip -9"] == pytest.approx(expected)


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize("flag", ["--resume", "--resume_from_checkpoint"])
def test_resuming_goes_on_where_training_stopped(flag, trained, texts, tmp_path, capsys):
    folder = tmp_path / "checkpoint-6"
    shutil.copytree(trained / "checkpoint-6", folder)
    for step in (10, 12):  # newer ones, of a training that was killed while it saved
        (tmp_path / f"checkpoint-{step}").mkdir()
    shutil.copy(trained / "checkpoint-12" / "model.safetensors", tmp_path / "checkpoint-12")
    cut(tmp_path / "checkpoint-12" / "model.safetensors")
    value = [] if flag == "--resume" else [str(folder)]
    train.main(flags(texts, tmp_path, flag, *value))  # of the checkpoint's configuration
    weights = [AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (tmp_path, trained)]
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], atol=1e-5, rtol=1e-4)
    if flag == "--resume":
        said = [line.split(" (")[0] for line in capsys.readouterr().out.splitlines() if str(tmp_path) in line][:3]
        skipped = [f"skipping {tmp_path / f'checkpoint-{step}'}, which is not complete" for step in (12, 10)]
        assert said == [*skipped, f"going on from {folder}"]


def test_a_training_that_was_at_its_last_step_takes_no_other(trained, texts, tmp_path, capsys):
    folder = shutil.copytree(trained / "checkpoint-12", tmp_path / "checkpoint-12")
    train.main(flags(texts, tmp_path, "--resume"))
    assert f"{folder} has taken all --max_steps 12: nothing is left to train" in capsys.readouterr().out
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-12"]
    weights = [AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (tmp_path, folder)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_half_a_checkpoint_is_told_from_a_complete_one(trained, tmp_path):
    complete, half = trained / "checkpoint-12", tmp_path / "half"
    assert train.fault_of(complete) is None
    files = sorted(complete.iterdir(), key=lambda file: file.stat().st_mtime_ns)
    assert files[-1].name == "trainer_state.json"
    half.mkdir()
    for file in files:  # killed at each file, for the first time or with older ones there
        assert train.fault_of(half) is not None
        shutil.copy(file, half)
        cut(half / file.name)
        assert train.fault_of(half) is not None
        shutil.copy(file, half)
    assert train.fault_of(half) is None
    for file in files:
        if file.suffix in (".json", ".safetensors", ".pt", ".pth"):
            cut(half / file.name)
            assert train.fault_of(half).startswith(f"{file.name}: ")
            shutil.copy(file, half)
    AutoModelForCausalLM.from_pretrained(half).save_pretrained(half, max_shard_size="20KB")
    assert train.fault_of(half) is None
    shard = next(half.glob("model-00002*"))
    shard.unlink()
    assert train.fault_of(half) == f"without {shard.name}"


def test_a_checkpoint_that_cannot_be_resumed_is_refused(texts, trained, tmp_path):
    missing = str(tmp_path / "checkpoint-7")
    with pytest.raises(ValueError, match=f"--resume_from_checkpoint is {missing} but must be .* no such folder"):
        train.main(flags(texts, tmp_path, "--resume_from_checkpoint", missing))
    with pytest.raises(ValueError, match="two checkpoints: leave one of them out"):
        train.main(flags(texts, trained, "--resume", "--resume_from_checkpoint", str(trained / "checkpoint-6")))


def test_a_text_file_is_a_document_and_other_files_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n", encoding="utf-8")
    for path in (tmp_path, tmp_path / "a.txt"):
        assert documents.local_files(path)["train"]["text"] == ["one\ntwo\n"]
    (tmp_path / "rows.jsonl").write_text('{"text": "one"}\n', encoding="utf-8")  # not to be read as text itself
    (tmp_path / "b.parquet").touch()
    for path in (tmp_path / "rows.jsonl", tmp_path):
        with pytest.raises(ValueError, match=r"must be a \.parquet file, or a folder of \.txt or of \.parquet"):
            documents.local_files(path)


def test_documents_without_text_are_left_out(tmp_path, monkeypatch):
    Dataset.from_dict({"text": ["one", None, "", "two"]}).to_parquet(tmp_path / "rows.parquet")
    parts = documents.load_documents(str(tmp_path))
    assert {text for part in parts.values() for text in part["text"]} == {"one", "two"}
    for texts, reason in (["one", ""], "holds 1 documents with text"), (["", None], "holds 0 documents with text"):
        Dataset.from_dict({"text": texts}).to_parquet(tmp_path / "rows.parquet")
        with pytest.raises(ValueError, match=reason):
            documents.load_documents(str(tmp_path))
    monkeypatch.setattr(documents, "load_dataset", lambda *args: DatasetDict(test=Dataset.from_dict({"text": ["a"]})))
    with pytest.raises(ValueError, match=r"has the splits \['test'\] but must have one named `train`"):
        documents.load_documents("me/text")
    empty = DatasetDict(train=Dataset.from_dict({"text": ["one"]}), validation=Dataset.from_dict({"text": []}))
    with pytest.raises(ValueError, match="no text in its split `validation`"):
        documents.split(empty)


def test_documents_of_the_standard_library_are_its_sources_without_tests(tmp_path, monkeypatch):
    for name in ("a.py", "package/b.py", "test/c.py", "package/tests/d.py", "site-packages/e.py", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode() + b"\r\n")
    (tmp_path / "latin.py").write_bytes("é".encode("latin-1"))
    monkeypatch.setattr(documents.sysconfig, "get_path", lambda name: str(tmp_path))
    assert documents.standard_library()["text"] == ["a.py\r\n", "package/b.py\r\n"]


def test_a_data_set_of_the_hub_may_have_a_configuration(monkeypatch):
    asked = []

    def load(*arguments):
        asked.append(arguments)
        return DatasetDict(train=Dataset.from_dict({"text": ["one", "two"]}))

    monkeypatch.setattr(documents, "load_dataset", load)
    for name in ("me/text", "me/text:short"):
        documents.load_documents(name)
    assert asked == [("me/text", None), ("me/text", "short")]


def test_arguments_that_would_have_no_effect_or_sense_are_refused():
    with pytest.raises(ValueError, match="--model a comes with a configuration of its own, so --config b"):
        train.ExampleArguments(model="a", config="b")
    with pytest.raises(ValueError, match="--block_size is 1 but must be at least 2"):
        train.ExampleArguments(block_size=1)
    assert train.ExampleArguments(block_size=2).block_size == 2


def test_a_stream_that_fills_its_last_row_has_no_row_behind_it():
    packed = train.pack({"input_ids": [[5, 6, 7]]}, eos_token_id=0, block_size=3)
    assert packed == {"input_ids": [[0, 5, 6], [6, 7, 0]], "labels": [[0, 5, 6], [6, 7, 0]]}


def test_a_tokenizer_adds_no_tokens_of_its_own_and_needs_one_that_ends_a_document(trained, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(trained)
    expected = tokenizer("def")["input_ids"]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{train.END_OF_TEXT} $A", special_tokens=[(train.END_OF_TEXT, tokenizer.eos_token_id)]
    )
    assert tokenizer("def")["input_ids"] == [tokenizer.eos_token_id, *expected]
    assert train.tokenize({"text": ["def"]}, tokenizer) == {"input_ids": [expected]}
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no `eos_token`"):
        train.load_tokenizer(str(tmp_path), None, 0)


def test_losses_are_computed_in_float32():
    logits, labels = torch.randn(2, 5, 7, dtype=torch.bfloat16), torch.randint(7, (2, 5))
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
    torch.testing.assert_close(train.token_losses(logits, labels).mean(), expected)


def test_the_loss_curve_has_both_losses(monkeypatch, tmp_path):
    figures = []
    monkeypatch.setattr(loss_curve.Figure, "savefig", lambda figure, *args, **kwargs: figures.append(figure))
    history = [{"step": 1, "loss": 3.0}, {"step": 2, "eval_nats_per_token": 2.5}, {"step": 3, "loss": 2.0}]
    loss_curve.save_loss_curve(history, tmp_path / "loss.png")
    drawn = {line.get_label(): line.get_xydata().tolist() for line in figures[0].axes[0].lines}
    assert drawn == {"training": [[1, 3.0], [3, 2.0]], "validation": [[2, 2.5]]}


def test_the_cache_is_measured_after_as_many_tokens_as_is_said(monkeypatch):
    monkeypatch.setattr(generate, "PIECE", 4)
    model, tokens = tiny_model(), []
    model.register_forward_pre_hook(lambda module, args: tokens.append(args[0].shape[1]))
    generate.cache_bytes(model, (10, 15))
    assert tokens == [4, 4, 2, 4, 1]


@pytest.mark.parametrize(
    "flag",
    [
        "--prediction_loss_only true",
        "--eval_do_concat_batches false",
        "--batch_eval_metrics true",
        "--dataloader_drop_last true",
    ],
)
def test_flags_that_take_an_evaluation_apart_are_refused_before_training(flag, texts, tmp_path):
    with pytest.raises(ValueError, match="bits per byte are counted over the predictions of the whole validation"):
        train.main(flags(texts, tmp_path, *flag.split()))


def test_a_vocabulary_too_small_for_all_bytes_is_refused(texts):
    with pytest.raises(ValueError, match="is 257 but must be at least 258"):
        train.train_tokenizer(documents.load_documents(str(texts))["train"], vocab_size=257)


def test_the_smallest_vocabulary_gives_back_every_byte(texts):
    tokenizer = train.train_tokenizer(documents.load_documents(str(texts))["train"], vocab_size=258)
    assert tokenizer.decode(tokenizer("naïve\n\tdef")["input_ids"]) == "naïve\n\tdef"


def test_resuming_without_a_checkpoint_says_so(texts, tmp_path):
    with pytest.raises(ValueError, match="--resume found no complete checkpoint"):
        train.main(flags(texts, tmp_path / "nothing", "--resume"))


def test_fine_tuning_starts_from_the_checkpoint(trained, texts, tmp_path):
    train.main(flags(texts, tmp_path, "--model", str(trained)))
    history = [
        json.loads((folder / "checkpoint-12" / "trainer_state.json").read_text())["log_history"][0]["loss"]
        for folder in (tmp_path, trained)
    ]
    assert history[0] < history[1] - 0.5


def test_generating_without_a_tokenizer_says_what_is_missing(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"--checkpoint is {tmp_path}, which has no tokenizer .*: save one there by"):
        generate.main(["--checkpoint", str(tmp_path)])


def test_generate_prints_completions_and_a_cache_that_does_not_grow(trained, capsys, monkeypatch):
    monkeypatch.setattr(generate, "CONTEXTS", (100, 1_000))
    prompts = ["def add_3(", "def"]
    generate.main(["--checkpoint", str(trained), "--prompt", *prompts])
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("--- ")] == [f"--- {prompt!r}" for prompt in prompts]
    sizes = [line.split(": ")[1] for line in lines if line.startswith("cache at")]
    assert len(sizes) == 2
    assert sizes[0] == sizes[1]
    model = AutoModelForCausalLM.from_pretrained(trained)
    assert sizes[0] == f"{model.config.state_bytes(dtype=model.dtype):,} bytes"


def test_recall_shows_shares_and_a_cache_that_does_not_grow(monkeypatch, capsys):
    for name, value in {"STEPS": 2, "BATCH": 4, "DISTANCES": (0, 100, 1_100), "TEXTS": 2}.items():
        monkeypatch.setattr(recall, name, value)
    recall.main([])
    lines = capsys.readouterr().out.splitlines()
    rows = [re.findall(r"[\d.,]+", line) for line in lines if line.endswith(" bytes")]
    assert [row[0] for row in rows] == ["0", "100", "1,100"]
    for column in (3, 5):  # with latents, and without
        assert rows[1][column] == rows[2][column]
    llama = LlamaForCausalLM(LlamaConfig(vocab_size=9, hidden_size=64, intermediate_size=8, num_hidden_layers=2))
    cache = llama(torch.zeros(1, 116, dtype=torch.long)).past_key_values
    assert rows[1][6] == f"{sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers):,}"
    assert "examples/train.py --model" in lines[-1]


def test_recall_asks_for_what_was_told():
    texts = recall.make_texts(3, 5, 7, torch.Generator().manual_seed(0))
    for row in texts.tolist():
        told, asked = (dict(zip(part[::2], part[1::2], strict=True)) for part in (row[5:13], row[20:]))
        assert told == asked and sorted(told) == [0, 1, 2, 3]
        assert min(row[:5] + row[13:20]) >= recall.KEYS + recall.VALUES > max(told.values())
