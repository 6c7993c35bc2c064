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
"""Questions about long texts, as chats: a passkey, or a fact that one sentence of the text tells."""

import random
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase


NAMES = (
    "Alder Birch Cedar Fern Hazel Holly Juniper Laurel Linden Maple Myrtle Olive Rowan Sorrel Willow Yarrow".split()
)
PLACES = "Avonlea Brightwater Cresthill Dunmore Eastvale Fairhaven Greenford Highmoor Kingsbury Larkfield".split()


class Question(NamedTuple):
    """What is hidden in a text, what is asked behind it, and how the answer begins and ends."""

    statement: str
    question: str
    begins: str
    answer: str


def passkey(generator: random.Random) -> Question:
    key = str(generator.randrange(10_000, 100_000))
    return Question(
        f"The pass key is {key}. Remember it.", "What is the pass key in this text?", "The pass key is", f" {key}"
    )


def fact(generator: random.Random) -> Question:
    name, place = generator.choice(NAMES), generator.choice(PLACES)
    return Question(
        f"By the way, {name} now lives in {place}.",
        f"Where does {name} live now?",
        f"{name} now lives in",
        f" {place}",
    )


KINDS = {"passkey": passkey, "question": fact}


def hidden_in(text: str, statement: str, depth: float) -> str:
    """The `text` with a `statement` after this share of it, between two words."""
    place = text.find(" ", int(len(text) * depth))
    return f"{text[:place]} {statement}{text[place:]}" if place >= 0 else f"{text} {statement}"


def as_chat(tokenizer: PreTrainedTokenizerBase, text: str, question: Question) -> str:
    """The prompt, up to where the answer goes on."""
    messages = [{"role": "user", "content": f"{text}\n\n{question.question}"}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) + question.begins
