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
A state machine of what a user does with a model, for hypothesis to drive: forwards of every head, training steps,
generation, saving and loading, settings that are changed on the way, and mistakes.

The plain way to compute anything is a forward of one sequence alone, without a mask. What a call gives must equal what
follows from that, and whatever happens must leave a model that answers as before.
"""

import tempfile

import hypothesis.strategies as st
import torch
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from cache_machine import configurations
from common import CLOSE, SIZES, random_ids, randomize, tiny_config
from contract_cases import tensors
from illegal_inputs import mistakes_of_forwards, what_is_wrong


HEADS = {  # and in which directions each reads
    AutoModel: [True, False],
    AutoModelForCausalLM: [True],
    AutoModelForMaskedLM: [False],
    AutoModelForSequenceClassification: [True, False],
    AutoModelForTokenClassification: [True, False],
    AutoModelForQuestionAnswering: [True, False],
}
VOCABULARY, NUM_LABELS = SIZES["vocab_size"], 3
PROBE = random_ids(1, 11)
TEXTS = st.lists(st.integers(2, VOCABULARY - 1), min_size=1, max_size=9)
MASK_DTYPES = st.sampled_from([torch.long, torch.bool, torch.int32, torch.uint8, torch.float32, torch.float64])
ASKED_FOR = st.dictionaries(st.sampled_from(["output_attentions", "output_hidden_states", "use_cache"]), st.booleans())
WAYS_TO_GENERATE = [
    {},
    {"use_cache": False},
    {"cache_implementation": "static"},
    {"prefill_chunk_size": 3},
    {"prompt_lookup_num_tokens": 2},
    {"num_beams": 2},
]


def head_model(head, **overrides):
    """With random weights of visible size, in float64."""
    settings = {"num_labels": NUM_LABELS, "is_causal": HEADS[head][0], "classifier_dropout": 0.0, **overrides}
    return randomize(head.from_config(tiny_config(**settings))).double().eval()


def answers(outputs) -> torch.Tensor:
    """What a head is for: `(B, T, X)`, or of whole rows `(B, X)`. A larger vocabulary has answered nothing new."""
    if "start_logits" in outputs:
        return torch.stack([outputs.start_logits, outputs.end_logits], dim=-1)
    return outputs.last_hidden_state if "last_hidden_state" in outputs else outputs.logits[..., :VOCABULARY]


def batch_of(texts: list[list[int]], gaps: list[list[bool]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows `(B, T)` of texts with padding in the gaps, and behind the text; and which tokens are real."""
    width = max(len(text) + sum(gap) for text, gap in zip(texts, gaps, strict=True))
    ids, real = torch.zeros(2, len(texts), width, dtype=torch.long)
    for row, (text, gap) in enumerate(zip(texts, gaps, strict=True)):
        places = [column for column in range(width) if column >= len(gap) or not gap[column]][: len(text)]
        ids[row, places], real[row, places] = torch.tensor(text), 1
    return ids, real.bool()


@st.composite
def batches(draw) -> tuple[list[list[int]], torch.Tensor, torch.Tensor]:
    texts = draw(st.lists(TEXTS, min_size=1, max_size=3))
    gaps = [draw(st.lists(st.booleans(), max_size=4)) for _ in texts]
    return texts, *batch_of(texts, gaps)


class UserMachine(RuleBasedStateMachine):
    @initialize(data=st.data(), head=st.sampled_from([*HEADS, AutoModelForCausalLM]), settings=configurations())
    def build(self, data, head, settings):
        settings |= {"hidden_size": SIZES["hidden_size"], "vocab_size": VOCABULARY}
        is_causal = data.draw(st.sampled_from(HEADS[head]), "is_causal")
        settings |= {"is_causal": is_causal} | ({} if is_causal else {"num_sink_tokens": 0})
        self.head, self.model = head, head_model(head, **settings, pad_token_id=data.draw(st.none() | st.just(0)))
        self.before = self.alone(PROBE[0])

    def alone(self, text) -> torch.Tensor:
        """What the head answers to one text, `(T, X)` or `(X,)`."""
        with torch.no_grad():
            return answers(self.model(torch.as_tensor(text)[None]))[0]

    def as_inputs(self, ids: torch.Tensor, as_embeddings: bool) -> dict:
        return {"inputs_embeds": self.model.get_input_embeddings()(ids)} if as_embeddings else {"input_ids": ids}

    @rule(batch=batches(), dtype=MASK_DTYPES, as_embeddings=st.booleans(), more=ASKED_FOR)
    def read_rows(self, batch, dtype, as_embeddings, more):
        texts, ids, real = batch
        with torch.no_grad():
            outputs = self.model(**self.as_inputs(ids, as_embeddings), attention_mask=real.to(dtype), **more)
        assert all(tensor.isfinite().all() for tensor in tensors(dict(outputs)))
        given = answers(outputs)
        for row, text in enumerate(texts):
            of_row = given[row] if given.ndim == 2 else given[row, real[row]]
            torch.testing.assert_close(of_row, self.alone(text), **CLOSE)

    @precondition(lambda self: self.head not in (AutoModelForSequenceClassification, AutoModelForQuestionAnswering))
    @rule(texts=st.lists(TEXTS, min_size=1, max_size=4), tell=st.sampled_from(["ids", "numbers", "lengths", "mask"]))
    def read_packed_documents(self, texts, tell):
        lengths = torch.tensor([len(text) for text in texts])
        numbers = torch.arange(len(texts)).repeat_interleave(lengths)[None]
        inputs = {
            "ids": {"position_ids": torch.cat([torch.arange(length) for length in lengths])[None]},
            "numbers": {"seq_idx": numbers},
            "lengths": {"cu_seq_lens_q": nn.functional.pad(lengths.cumsum(0), (1, 0)).int()},
            "mask": {"attention_mask": numbers + 1},
        }[tell]
        with torch.no_grad():
            given = answers(self.model(torch.tensor([sum(texts, [])]), **inputs))[0]
        expected = torch.cat([self.alone(text) for text in texts])
        torch.testing.assert_close(given, expected, **CLOSE)

    @precondition(lambda self: self.head is not AutoModel)
    @rule(batch=batches(), seed=st.integers(0, 9))
    def train_on(self, batch, seed):
        """One step without an update: the loss is that of the rows alone, and checkpointing changes no gradient."""
        texts, ids, real = batch
        if self.head is AutoModelForCausalLM and max(map(len, texts)) == 1:
            return  # nothing to predict, so no loss
        torch.manual_seed(seed)
        targets, expected = self.targets_and_loss(texts, real)
        self.model.train()
        gradients = []
        for checkpointing in (self.model.is_gradient_checkpointing, not self.model.is_gradient_checkpointing):
            getattr(self.model, f"gradient_checkpointing_{'enable' if checkpointing else 'disable'}")()
            loss = self.model(ids, real, **targets).loss
            torch.testing.assert_close(loss.double(), expected, atol=1e-5, rtol=0)  # the library's is in float32
            loss.backward()
            gradients.append([parameter.grad for parameter in self.model.parameters() if parameter.grad is not None])
            self.model.zero_grad()
        self.model.eval()
        assert all(gradient.isfinite().all() for gradient in gradients[0])
        torch.testing.assert_close(*gradients, **CLOSE)

    def targets_and_loss(self, texts: list[list[int]], real: torch.Tensor) -> tuple[dict, torch.Tensor]:
        """What to learn, at random, and the loss as the answers to each text alone have it."""
        loss = nn.functional.cross_entropy
        with torch.no_grad():  # all of a larger vocabulary
            alone = [self.model(torch.tensor([text])) for text in texts]
        if self.head is AutoModelForQuestionAnswering:
            places = [torch.randint(len(text), (2,)) for text in texts]
            columns = torch.stack([row.nonzero()[place, 0] for row, place in zip(real, places, strict=True)])
            losses = [loss(answers(each)[0].T, place) for each, place in zip(alone, places, strict=True)]
            return dict(zip(("start_positions", "end_positions"), columns.T, strict=True)), torch.stack(losses).mean()
        if self.head is AutoModelForSequenceClassification:
            labels = torch.randint(NUM_LABELS, (len(texts),))
            return {"labels": labels}, loss(torch.cat([each.logits for each in alone]), labels)
        labels = torch.randint(3, real.shape).masked_fill(~real, -100)
        of_rows = [row[row_real] for row, row_real in zip(labels, real, strict=True)]
        shift = int(self.head is AutoModelForCausalLM)
        logits = torch.cat([each.logits[0, : len(text) - shift] for each, text in zip(alone, texts, strict=True)])
        return {"labels": labels}, loss(logits, torch.cat([row[shift:] for row in of_rows]))

    @precondition(lambda self: self.head is AutoModelForCausalLM)
    @rule(
        texts=st.lists(TEXTS, min_size=1, max_size=2),
        way=st.sampled_from(WAYS_TO_GENERATE),
        new=st.integers(1, 6),
        as_embeddings=st.booleans(),
    )
    def generate(self, texts, way, new, as_embeddings):
        """Greedily, so that every token is the likeliest after a forward of all before it alone."""
        # The library looks up a single row, and does both of these with ids alone.
        texts = texts[:1] if "prompt_lookup_num_tokens" in way else texts
        as_embeddings = as_embeddings and not way.keys() & {"prompt_lookup_num_tokens", "prefill_chunk_size"}
        width = max(map(len, texts))
        ids, real = batch_of(texts, [[True] * (width - len(text)) for text in texts])
        common = {"attention_mask": real.long(), "max_new_tokens": new, "do_sample": False, "pad_token_id": 0}
        given = self.model.generate(**self.as_inputs(ids, as_embeddings), **common, **way)[:, -new:]
        if "num_beams" in way:
            expected = self.model.generate(ids, **common, **way, use_cache=False)[:, -new:].tolist()
        else:
            expected = [self.likeliest_after(text, new) for text in texts]
        assert given.tolist() == expected

    def likeliest_after(self, text: list[int], new: int) -> list[int]:
        tokens = list(text)
        for _ in range(new):
            with torch.no_grad():
                tokens.append(int(self.model(torch.tensor([tokens])).logits[0, -1].argmax()))
        return tokens[len(text) :]

    @rule(data=st.data(), what=st.sampled_from(["files", "vocabulary", "attention"]))
    def change(self, data, what):
        if what == "files":
            with tempfile.TemporaryDirectory() as folder:
                self.model.save_pretrained(folder)
                load = data.draw(st.sampled_from([self.head, type(self.model)]), "loaded by")
                self.model = load.from_pretrained(folder, dtype=torch.float64)
        elif what == "vocabulary":
            size = data.draw(st.integers(VOCABULARY, VOCABULARY + 5), "size")
            self.model.resize_token_embeddings(size, mean_resizing=False)
            assert self.model.config.vocab_size == self.model.get_input_embeddings().num_embeddings == size
        else:
            self.model.set_attn_implementation(data.draw(st.sampled_from(["eager", "sdpa"]), "implementation"))

    @rule(data=st.data())
    def make_a_mistake(self, data):
        mistake = data.draw(st.sampled_from(list(mistakes_of_forwards(self.model))))
        assert what_is_wrong(mistake) is None

    @invariant()
    def answers_as_before(self):
        torch.testing.assert_close(self.alone(PROBE[0]), self.before, **CLOSE)
