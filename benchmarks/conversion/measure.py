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
"""Loss by position in held-out documents, and answers to questions about long texts."""

import random
from collections.abc import Iterator

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .recall import KINDS, as_chat, hidden_in


LOGITS_AT_ONCE = 512  # tokens


def losses(model: PreTrainedModel, input_ids: torch.Tensor) -> torch.Tensor:
    """Nats of every token but the first, `(T - 1,)`, of one text `(T,)`."""
    with torch.inference_mode(), torch.autocast(model.device.type, torch.bfloat16):
        states = model.model(input_ids[None], use_cache=False).last_hidden_state[0, :-1]
        pieces = zip(states.split(LOGITS_AT_ONCE), input_ids[1:].split(LOGITS_AT_ONCE), strict=True)
        return torch.cat([cross_entropy(model.lm_head(s).float(), ids, reduction="none") for s, ids in pieces])


def loss_by_position(model: PreTrainedModel, documents: list[torch.Tensor], edges: list[int]) -> list[float]:
    """Mean nats per token between every two `edges`, over `documents` `(T,)` of at least the last edge's tokens."""
    of_all = torch.stack([losses(model, ids[: edges[-1] + 1]) for ids in documents])  # (documents, T)
    return [of_all[:, start:stop].mean().item() for start, stop in zip(edges, edges[1:], strict=False)]


def long_documents(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], length: int, count: int
) -> list[torch.Tensor]:
    """The first `count` of the `texts` that have more than `length` tokens, as ids `(T,)`."""
    found = []
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"][0]
        if len(ids) > length and len(found) < count:
            found.append(ids)
    if len(found) < count:
        raise ValueError(f"{len(found)} of the held-out documents have more than {length} tokens; {count} are needed.")
    return found


def chats(
    tokenizer: PreTrainedTokenizerBase, documents: list[torch.Tensor], kind: str, length: int
) -> Iterator[tuple[torch.Tensor, int]]:
    """For each document a chat about its first `length` tokens, `(T,)`, and how many tokens the answer has."""
    generator = random.Random(f"{kind} {length}")
    for index, ids in enumerate(documents):
        question = KINDS[kind](generator)
        text = hidden_in(tokenizer.decode(ids[:length]), question.statement, (index + 0.5) / len(documents))
        prompt, answer = (
            tokenizer(part, add_special_tokens=False, return_tensors="pt")["input_ids"][0]
            for part in (as_chat(tokenizer, text, question), question.answer)
        )
        yield torch.cat([prompt, answer]).long(), len(answer)


def recall(model: PreTrainedModel, prompts: list[tuple[torch.Tensor, int]]) -> dict[str, float]:
    """
    Nats of an answer's tokens, and the share of the answers that greedy decoding would give. `prompts` are what
    `chats` gives.
    """
    nats, right = [], 0
    for input_ids, answer in prompts:
        with torch.inference_mode(), torch.autocast(model.device.type, torch.bfloat16):
            states = model.model(input_ids[None], use_cache=False).last_hidden_state[0, -answer - 1 : -1]
            logits = model.lm_head(states).float()  # (answer, V)
        nats.append(cross_entropy(logits, input_ids[-answer:]).item())
        right += int((logits.argmax(-1) == input_ids[-answer:]).all())
    return {"nats": sum(nats) / len(nats), "right": right / len(nats)}
