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
A state machine of everything that may be done to a cache, for hypothesis to drive.

What should hold is simple: a cache stands for the texts of its rows, so each row is modelled by the list of its
tokens. After every forward the logits of new tokens equal those that the reference gives the row's own text, alone and
at once; a cache is as large as the formula says; and at the end its state is that of a fresh cache that has read the
texts.
"""

import copy
import io
from dataclasses import dataclass, field

import hypothesis.strategies as st
import pytest
import torch
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import nn
from transformers import DynamicCache, StaticCache

import reference
from common import CLOSE, double_model
from contract_cases import storage_bytes, tensors
from modeling_latent.cache_latent import CROP_AGAIN
from modeling_latent.configuration_latent import LAYER_KINDS


VOCABULARY = 11
MOST_ROWS, MOST_COLUMNS, MOST_STEPS = 2, 7, 5
HEADS = st.sampled_from([(1, 1), (2, 1), (2, 2)])
CACHES = {
    "dynamic": lambda config: DynamicCache(config=config),
    "dynamic, without a configuration": lambda config: DynamicCache(),
    "static": lambda config: StaticCache(config, max_cache_len=64),
}
TOKENS = st.integers(0, VOCABULARY - 1)
# A column of a row: the id of its token, or `None` for padding, and whether a packed document starts there.
COLUMNS = st.tuples(TOKENS | st.none(), st.booleans())
FORWARD = {
    "tell": st.sampled_from(["position_ids", "seq_idx", "attention_mask", "nothing"]),
    "mask": st.sampled_from(["needed", "new", "whole"]),
    "as_embeddings": st.booleans(),
}


@st.composite
def configurations(draw) -> dict:
    """Tiny ones, of all kinds of layers."""
    pattern = draw(st.lists(st.sampled_from(list(LAYER_KINDS)), min_size=1, max_size=3))
    chunk_size = draw(st.integers(1, 3))
    heads, key_value_heads = draw(HEADS)
    has_windows = any("local_attention" in LAYER_KINDS[kind] for kind in pattern)
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": 8,
        "intermediate_size": 8,
        "layer_pattern": pattern,
        "num_hidden_layers": len(pattern),
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "head_dim": draw(st.sampled_from([2, 4])),
        "num_latents": draw(st.integers(1, 3)),
        "chunk_size": chunk_size,
        "num_sink_tokens": draw(st.integers(0, chunk_size)) if has_windows else 0,
        "conv_kernel_size": draw(st.integers(0, 6)),
        "mlp_conv_kernel_size": draw(st.integers(0, 6)),
        "norm_type": draw(st.sampled_from(["layer_norm", "rms_norm"])),
        "attention_bias": draw(st.booleans()),
        "tie_word_embeddings": draw(st.booleans()),
        "attn_implementation": draw(st.sampled_from(["sdpa", "eager"])),
    }


@dataclass
class Held:
    """A cache, and what it should hold."""

    cache: DynamicCache
    texts: list[tuple] = field(default_factory=list)  # the tokens of each row
    columns: int = 0  # how many the cache has read, of tokens or padding
    recording: bool = False
    undoable: list[list[tuple]] = field(default_factory=list)  # the texts before each column that `crop` can undo

    def read(self, steps: list[list[tuple]]) -> None:
        """Take in what each row's text was after each new column."""
        after = [list(texts) for texts in zip(*steps, strict=True)]
        if self.recording:
            self.undoable += [self.texts or [()] * len(steps), *after[:-1]]
        self.texts, self.columns = after[-1], self.columns + len(after)

    def rearrange(self, rows: list[int]) -> None:
        self.texts, self.undoable = [self.texts[row] for row in rows], []


def after_each(text: tuple, row: list[tuple]) -> list[tuple]:
    """What the text of a row is after each of its columns."""
    texts = []
    for token, starts in row:
        if token is not None:
            text = (token,) if starts else (*text, token)
        texts.append(text)
    return texts


def document_numbers(row: list[tuple]) -> list[int]:
    starts = torch.tensor([token is not None and starts for token, starts in row])
    return starts.cumsum(0).tolist()


def inputs_of(rows: list[list[tuple]], steps: list[list[tuple]], tell: str, past: int | None) -> dict:
    """
    Arguments of a forward. `tell`: by which of them it learns of packed documents, or is told what it knows. `past`:
    how many columns in front of the new ones the mask has; `None` for no mask, where there is no padding.
    """
    ids = torch.tensor([[0 if token is None else token for token, _ in row] for row in rows])
    real = torch.tensor([[token is not None for token, _ in row] for row in rows])
    numbers = torch.tensor([document_numbers(row) for row in rows])
    inputs = {"input_ids": ids}
    if past is not None or not real.all():
        inputs["attention_mask"] = nn.functional.pad(real.long(), (past or 0, 0), value=1)
    if tell == "attention_mask":
        inputs["attention_mask"] = (numbers + 1) * real
    elif tell == "seq_idx":
        inputs["seq_idx"] = numbers
    elif tell == "position_ids":
        inputs["position_ids"] = torch.tensor([[len(text) - 1 for text in texts] for texts in steps])
    return inputs


class CacheMachine(RuleBasedStateMachine):
    @initialize(data=st.data(), settings=configurations(), kind=st.sampled_from(sorted(CACHES)))
    def make(self, data, settings, kind):
        self.model = double_model(**settings)
        self.weights, self.known = self.model.state_dict(), {}
        self.kind, self.held, self.other = kind, Held(CACHES[kind](self.model.config)), None
        if kind == "dynamic":
            self.record()
        self.forward(data, *(data.draw(choice) for choice in FORWARD.values()))

    @property
    def is_empty(self) -> bool:
        return self.held.columns == 0

    def expected(self, text: tuple) -> torch.Tensor:
        """The reference's logits `(V,)` after a text alone."""
        if text not in self.known:
            for length, logits in enumerate(reference.logits(self.weights, torch.tensor(text), self.model.config), 1):
                self.known[text[:length]] = logits
        return self.known[text]

    def expected_of_row(self, row: list[tuple], texts: list[tuple]) -> torch.Tensor:
        """`(T, V)`. Padding has what the token before it in this forward has, or zeros."""
        logits = torch.zeros(len(row), VOCABULARY, dtype=torch.float64)
        for column in reversed(range(len(row))):  # see `decode`
            if any(token is not None for token, _ in row[: column + 1]):
                logits[column] = self.expected(texts[column])
        return logits

    def read(self, rows: list[list[tuple]], tell: str = "nothing", past: int | None = None, as_embeddings=False):
        """One forward, and whether it gives the logits that it should."""
        texts = [()] * len(rows) if self.is_empty else self.held.texts
        steps = [after_each(text, row) for text, row in zip(texts, rows, strict=True)]
        inputs = inputs_of(rows, steps, tell, past)
        if as_embeddings:
            inputs["inputs_embeds"] = self.model.get_input_embeddings()(inputs.pop("input_ids"))
        with torch.no_grad():
            logits = self.model(**inputs, cache=self.held.cache).logits
        expected = [self.expected_of_row(row, texts) for row, texts in zip(rows, steps, strict=True)]
        torch.testing.assert_close(logits, torch.stack(expected), **CLOSE)
        self.held.read(steps)

    @rule(data=st.data(), **FORWARD)
    def forward(self, data, tell, mask, as_embeddings):
        """Read tokens and padding anywhere, and where the cache is empty, several documents in a row."""
        count = data.draw(st.integers(1, MOST_ROWS), "rows") if self.is_empty else len(self.held.texts)
        width = data.draw(st.integers(1, MOST_COLUMNS), "columns")
        rows = data.draw(st.lists(st.lists(COLUMNS, min_size=width, max_size=width), min_size=count, max_size=count))
        if not self.is_empty or tell == "nothing":
            rows = [[(token, False) for token, _ in row] for row in rows]
            tell = tell if tell == "position_ids" else "nothing"
        past = {"needed": None, "new": 0, "whole": self.held.columns}[mask]
        self.read(rows, tell, past, as_embeddings)

    @precondition(lambda self: not self.is_empty)
    @rule(data=st.data())
    def decode(self, data):
        """Read one token of each row at a time."""
        count = len(self.held.texts)
        tokens = st.lists(TOKENS, min_size=count, max_size=count)
        columns = data.draw(st.lists(tokens, min_size=1, max_size=MOST_STEPS))
        for text, new in zip(self.held.texts, zip(*columns, strict=True), strict=True):
            self.expected((*text, *new))  # the longest text first, which knows the shorter ones
        for column in columns:
            self.read([[(token, False)] for token in column])

    @precondition(lambda self: self.kind != "static" and self.held.cache.layers)
    @rule()
    def record(self):
        self.held.cache.activate_past_recording()
        self.held.recording = True

    @precondition(lambda self: self.held.undoable)
    @rule(data=st.data())
    def crop(self, data):
        columns = data.draw(st.integers(1, len(self.held.undoable)), "columns")
        self.held.cache.crop(-columns)
        self.held.texts = self.held.undoable[-columns]
        self.held.columns -= columns
        self.held.undoable = self.held.undoable[:-columns][-CROP_AGAIN:]
        if self.is_empty:
            self.held.texts = []

    @precondition(
        lambda self: self.kind != "static" and self.held.cache.layers and len(self.held.undoable) < CROP_AGAIN
    )
    @rule()
    def crop_too_far(self):
        with pytest.raises(RuntimeError, match="goes back further than what was recorded"):
            self.held.cache.crop(-len(self.held.undoable) - 1)

    @precondition(lambda self: not self.is_empty)
    @rule(data=st.data(), how=st.sampled_from(["reorder", "select", "repeat"]))
    def rearrange(self, data, how):
        count = len(self.held.texts)
        if how == "repeat" and count <= MOST_ROWS:
            self.held.cache.batch_repeat_interleave(2)
            return self.held.rearrange([row for row in range(count) for _ in range(2)])
        sizes = {"min_size": count, "max_size": count} if how == "reorder" else {"min_size": 1, "max_size": MOST_ROWS}
        rows = data.draw(st.lists(st.integers(0, count - 1), **sizes))
        change = self.held.cache.reorder_cache if how == "reorder" else self.held.cache.batch_select_indices
        change(torch.tensor(rows))
        self.held.rearrange(rows)

    @precondition(lambda self: not self.is_empty)
    @rule()
    def reset(self):
        self.held.cache.reset()
        self.held = Held(self.held.cache, recording=self.held.recording)

    @rule()
    def go_on_with_a_copy(self):
        """What happens to one of the two must not happen to the other, see `exchange`."""
        self.other = self.held
        self.held = copy.deepcopy(self.held)

    @precondition(lambda self: self.other is not None)
    @rule()
    def exchange(self):
        self.held, self.other = self.other, self.held

    @rule()
    def save_and_load(self):
        file = io.BytesIO()
        torch.save(self.held.cache, file)
        file.seek(0)
        self.held.cache = torch.load(file, weights_only=False)

    @invariant()
    def counts_are_right(self):
        cache, config = self.held.cache, self.model.config
        assert int(cache.get_seq_length()) == self.held.columns
        if not self.is_empty:
            assert storage_bytes(cache) == config.state_bytes(len(self.held.texts), torch.float64)
            for layer in cache.layers:
                assert layer.state.tokens_seen.tolist() == [len(text) for text in self.held.texts]

    def teardown(self):
        for held in (self.held, self.other) if hasattr(self, "held") else ():
            if held is not None:
                self.has_the_states_of_its_texts(held)

    def has_the_states_of_its_texts(self, held: Held):
        """Equal histories give equal states, however they were reached."""
        for row, text in enumerate(held.texts):
            if not text:
                continue
            fresh = DynamicCache(config=self.model.config)
            with torch.no_grad():
                self.model(torch.tensor([text]), cache=fresh)
            for ours, theirs in zip(held.cache.layers, fresh.layers, strict=True):
                mine = [tensor[row : row + 1] for tensor in tensors(ours.state)]
                torch.testing.assert_close(mine, tensors(theirs.state), **CLOSE)
