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
"""
Chat with a checkpoint in the terminal, about a document of any length if one is given.

    python examples/chat.py CHECKPOINT --document FILE

The document is read once, in pieces, and so is every turn: the conversation goes on from the cache, whose size stays
the same. An empty line ends the chat. The tokenizer needs a chat template.
"""

import argparse
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TextStreamer,
)

from generate import bytes_of
from modeling_latent.cache_name import CACHE_NAME


PIECE = 1_024  # tokens of one forward, so that the progress shows
HERE = "\0"  # stands in the template for a text that is not there yet


class Chat:
    """A conversation, and the cache that has read all of it."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase):
        self.model, self.tokenizer = model, tokenizer
        self.cache = DynamicCache(config=model.config)
        self.input_ids = torch.empty(1, 0, dtype=torch.long, device=model.device)  # (1, T), all of the conversation
        self.streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        user, reply = {"role": "user", "content": HERE}, {"role": "assistant", "content": HERE}
        # What the chat template writes in front of the user's text, behind it, and behind the reply to it.
        self.before, self.after = self.template([user])
        _, _, self.after_reply, _ = self.template([user, reply, user])

    def template(self, messages: list[dict[str, str]]) -> list[str]:
        """What the prompt has before, between and after the contents of `messages`."""
        prompt = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return prompt.split(HERE)

    def append(self, text: str) -> None:
        ids = self.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        self.input_ids = torch.cat([self.input_ids, ids.to(self.input_ids)], dim=1)

    @torch.no_grad()
    def read(self, document: str) -> None:
        """Open the first turn with a document, read in pieces."""
        self.append(self.before + document)
        self.before = "\n\n"
        for piece in tqdm(self.input_ids.split(PIECE, dim=1), desc="reading", unit="piece"):
            self.model(piece, logits_to_keep=1, **{CACHE_NAME: self.cache})

    def say(self, text: str, max_new_tokens: int) -> None:
        """Stream the answer to the user's `text`. `generate()` reads only what the cache has not seen yet."""
        self.append(self.before + text + self.after)
        self.input_ids = self.model.generate(
            self.input_ids,
            attention_mask=torch.ones_like(self.input_ids),
            max_new_tokens=max_new_tokens,
            streamer=self.streamer,
            **{CACHE_NAME: self.cache},
        )
        # The model has ended its reply as the template would, unless it was cut short.
        self.before = self.after_reply.removeprefix(self.tokenizer.decode(self.input_ids[0, -1:]))

    def status(self) -> str:
        return f"[{self.cache.get_seq_length():,} tokens read; cache of {bytes_of(self.cache):,} bytes]"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="folder or Hub id of a causal latent attention model with its tokenizer")
    parser.add_argument("--document", type=Path, help="text file, in UTF-8, to talk about")
    parser.add_argument("--max_new_tokens", type=int, default=256, help="longest reply, 256 tokens if not given")
    args = parser.parse_args(argv)
    document = None if args.document is None else args.document.read_text(encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(args.checkpoint, trust_remote_code=True)
    if tokenizer.chat_template is None:
        raise ValueError(f"The tokenizer of {args.checkpoint} has no chat template, which says how turns are written.")
    model = AutoModelForCausalLM.from_pretrained(
        args.checkpoint, dtype="auto", device_map="auto", trust_remote_code=True
    )
    chat = Chat(model, tokenizer)
    if document is not None:
        chat.read(document)
        print(chat.status())
    while text := ask():
        chat.say(text, args.max_new_tokens)
        print(chat.status())


def ask() -> str:
    """The user's next line; none at the end of the input."""
    try:
        return input("> ")
    except EOFError:
        return ""


if __name__ == "__main__":
    main()
