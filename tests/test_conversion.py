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
"""The way from a trained model to a chat with a memory of fixed size: docs/conversion.md, chat, server, benchmark."""

import contextlib
import importlib
import io
import json
import re
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from openai import OpenAI
from transformers import AutoModelForCausalLM, AutoTokenizer

import chat
from benchmarks import record
from benchmarks.conversion import __main__ as conversion
from benchmarks.conversion import measure, recall, sources, tables
from test_from_llama import tiny_llama
from test_heads import word_tokenizer


ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "conversion.md"
TEXT = "the latent reads every token and writes what it found\n" * 60
TEMPLATE = (
    "{% for message in messages %}the {{ message['content'] }} found {% endfor %}"
    "{% if add_generation_prompt %}writes {% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tiny random Llama whose tokenizer has a chat template, and texts."""
    folder = tmp_path_factory.mktemp("conversion")
    tokenizer = word_tokenizer()
    tokenizer.eos_token, tokenizer.chat_template = "found", TEMPLATE
    llama = tiny_llama(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id).float()
    for part in (llama, tokenizer):
        part.save_pretrained(folder / "LLAMA")
    (folder / "TEXTS").mkdir()
    for name in ("a.txt", "b.txt", "c.txt"):
        (folder / "TEXTS" / name).write_text(TEXT, encoding="utf-8")
    return folder


def commands(mark: str) -> list[list[str]]:
    """What the page tells to type, command by command."""
    block = re.search(rf"<!-- {mark}: start -->\n```\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[1]
    return [shlex.split(line) for line in block.replace("\\\n", " ").splitlines()]


def run(script: str, arguments: list[str]) -> None:
    """Run one of the examples as the command does, in this process, which has imported everything already."""
    importlib.import_module(Path(script).stem).main(arguments)


@pytest.fixture(scope="module")
def distilled(folder) -> Path:
    """What the page's commands make of the Llama, in fewer and shorter steps."""
    shorter = {"64": "8", "400": "2", "800": "2", "40": "1", "80": "1"}
    with contextlib.chdir(folder):
        for program, script, *arguments in commands("recipe"):
            assert program == "python"
            small = ["--block_size", "64", "--use_cpu", "--report_to", "none"] if "distill" in script else []
            run(script, [*(shorter.get(argument, argument) for argument in arguments), *small])
    return folder / "out" / "stage2"


def test_the_recipe_of_the_page_gives_a_model_that_has_learned(folder, distilled):
    model, before = (AutoModelForCausalLM.from_pretrained(path) for path in (distilled, folder / "out" / "converted"))
    assert model.config.layer_kinds == ["local", "both", "local"]
    assert not torch.equal(
        model.model.layers[1].latent_attention.latents, before.model.layers[1].latent_attention.latents
    )
    assert not torch.equal(model.lm_head.weight, before.lm_head.weight)


def test_a_chat_reads_a_document_once_and_its_cache_stays_as_large(folder, distilled, monkeypatch, capsys):
    ((_, script, checkpoint, flag, _),) = commands("chat")
    monkeypatch.setattr("sys.stdin", io.StringIO("the latent\nevery token\n"))
    document = str(folder / "TEXTS" / "a.txt")
    run(script, [str(folder / checkpoint), flag, document, "--max_new_tokens", "5"])
    read = re.findall(r"\[([\d,]+) tokens read; cache of ([\d,]+) bytes\]", capsys.readouterr().out)
    tokens = [int(count.replace(",", "")) for count, _ in read]
    assert len(tokens) == 3 and tokens == sorted(set(tokens))
    config = AutoModelForCausalLM.from_pretrained(distilled).config
    assert {int(size.replace(",", "")) for _, size in read} == {config.state_bytes(1, torch.float32)}


def test_a_chat_says_what_a_conversation_without_a_cache_would(distilled, capsys):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(distilled), AutoTokenizer.from_pretrained(distilled)
    talk = chat.Chat(model, tokenizer)
    talk.read("every token " * 20)
    for text in ("what it found", "the latent"):
        talk.say(text, max_new_tokens=6)
        asked = talk.input_ids[:, : talk.input_ids.shape[1] - 1]
        assert talk.cache.get_seq_length() == asked.shape[1]
        with torch.no_grad():
            assert model(asked).logits[0, -1].argmax() == talk.input_ids[0, -1]
    assert "reading" in capsys.readouterr().err


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def server(distilled):
    port = free_port()
    command = [sys.executable, str(ROOT / "examples" / "serve.py"), str(distilled), "--port", str(port)]
    process = subprocess.Popen([*command, "--device", "cpu"])
    client = OpenAI(base_url=f"http://localhost:{port}/v1", api_key="none", max_retries=0)
    for _ in range(120):
        try:
            client.models.list()
            break
        except Exception:
            assert process.poll() is None, "the server has ended"
            time.sleep(0.5)
    yield client
    process.terminate()
    process.wait(timeout=30)


def test_a_client_of_the_openai_interface_gets_what_generate_gives(server, distilled):
    tokenizer = AutoTokenizer.from_pretrained(distilled)
    messages = [{"role": "user", "content": "latent reads every token"}]
    request = {"model": str(distilled), "messages": messages, "max_tokens": 8, "temperature": 0, "seed": 0}
    whole = server.chat.completions.create(**request).choices[0].message.content
    pieces = [chunk.choices[0].delta.content for chunk in server.chat.completions.create(**request, stream=True)]
    assert "".join(filter(None, pieces)) == whole
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
    model = AutoModelForCausalLM.from_pretrained(distilled)
    expected = model.generate(**prompt, max_new_tokens=8, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert whole.strip() == tokenizer.decode(expected, skip_special_tokens=True).strip()


def test_the_benchmark_goes_on_where_it_stopped_and_reports_every_stage(folder, tmp_path, monkeypatch, capsys):
    # Not in processes of their own, each of which would import everything once more.
    monkeypatch.setattr(conversion, "start", lambda script, arguments, seconds: run(script, arguments))
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results")
    work = tmp_path / "work" / "tiny"
    work.mkdir(parents=True)
    (work / "llama").symlink_to(folder / "LLAMA")
    (work / "texts" / "train").mkdir(parents=True)
    Dataset.from_dict({"text": [TEXT] * 4}).to_parquet(work / "texts" / "train" / "train.parquet")
    Dataset.from_dict({"text": [TEXT] * 2}).to_parquet(work / "texts" / "held_out.parquet")
    conversion.main(["--form", "tiny", "--output_dir", str(tmp_path / "work"), "--minutes", "0"])
    assert "the same command goes on from here" in capsys.readouterr().out
    names = [*json.loads((tmp_path / "results" / "conversion_tiny.json").read_text())["models"]]
    assert names == ["the Llama"]
    conversion.main(["--form", "tiny", "--output_dir", str(tmp_path / "work")])
    models = json.loads((tmp_path / "results" / "conversion_tiny.json").read_text())["models"]
    assert len(models) == 8
    windows = models["window and sinks"], models["with latents, after stage 1"]
    assert windows[0]["loss"][0] == pytest.approx(models["the Llama"]["loss"][0], abs=1e-2)  # bfloat16
    assert windows[0]["loss"] != windows[1]["loss"]
    assert (tmp_path / "results" / "conversion_tiny.svg").is_file()
    assert "with latents, after stage 2" in capsys.readouterr().out


def test_the_page_shows_what_was_measured():
    shown = tables.render(record.read(tables.measured()))
    assert f"<!-- conversion: start -->\n{shown}<!-- conversion: end -->" in PAGE.read_text(encoding="utf-8")


def test_texts_to_train_on_have_chats_and_no_held_out_document(folder, tmp_path, monkeypatch):
    documents = [f"the latent reads {index} " * 50 for index in range(50)]
    monkeypatch.setattr(sources, "all_documents", lambda: Dataset.from_dict({"text": documents}))
    sources.save_texts(tmp_path, AutoTokenizer.from_pretrained(folder / "LLAMA"), recall_documents=9)
    train, held_out = (
        Dataset.from_parquet(str(tmp_path / name))["text"] for name in ("train/train.parquet", "held_out.parquet")
    )
    assert sorted([*set(train) & set(documents), *held_out]) == sorted(documents)
    chats = set(train) - set(documents)
    assert len(chats) == 9
    assert all("pass key" in text or "lives in" in text for text in chats)


def test_an_answer_is_right_where_greedy_decoding_gives_it(folder):
    model, tokenizer = (kind.from_pretrained(folder / "LLAMA") for kind in (AutoModelForCausalLM, AutoTokenizer))
    prompt = tokenizer("the latent reads every token", return_tensors="pt")["input_ids"]
    model.generation_config.eos_token_id = None
    answered = model.generate(prompt, max_new_tokens=2, do_sample=False)[0]
    other = answered.clone()
    other[-1] = (other[-1] + 1) % len(tokenizer)
    right, wrong = (measure.recall(model, [(ids, 2)]) for ids in (answered, other))
    assert (right["right"], wrong["right"]) == (1, 0)
    assert right["nats"] < wrong["nats"]


def test_a_statement_is_hidden_at_its_depth():
    assert recall.hidden_in("a b c d", "X.", 0.5) == "a b X. c d"
    assert recall.hidden_in("a b c d", "X.", 0.99) == "a b c d X."
