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
"""Passkey retrieval (Mohtashami & Jaggi 2023, arXiv:2305.16300) at up to 256 times the length seen in training.

    python -m benchmarks.quality.passkey                           # reduced, for two CPU cores
    python -m benchmarks.quality.passkey --form full --minutes 9   # one GPU; again until it is finished

A text says a number of five digits, somewhere, twice as in the paper; the rest is filler; the end asks for the number.
One token is one word or digit. The loss is that of a language model, over all tokens.
"""

from statistics import mean

import torch
from torch.nn.functional import cross_entropy

from . import sweep
from .models import build, count_parameters, hidden_states
from .sweep import Table
from .training import Job, precision, train


FILLER = "The grass is green . The sky is blue . The sun is yellow . Here we go . There and back again ."
NEEDLE = "The pass key is {} . Remember it . {} is the pass key ."
QUESTION = "What is the pass key ? The pass key is"
DIGITS = 5
WORDS = sorted({*f"{FILLER} {NEEDLE} {QUESTION}".replace("{}", "").split()})
TOKENS = {token: index for index, token in enumerate([*map(str, range(10)), *WORDS])}
TEST_SEED = 2**31  # no training seed
OURS = {"num_latents": 16, "chunk_size": 16}
REPEATED = {**OURS, "max_chunk_repeats": 1000}
MODELS = [
    ("full_attention", {}),
    ("window", {"chunk_size": 16}),
    ("latents_in_every_layer", OURS),
    ("latents_and_window", OURS),
    ("latents_and_window", REPEATED),
    ("latents_from_the_second_layer", OURS),
    ("latents_from_the_second_layer", REPEATED),
    ("mamba2", {"state_size": 16}),
]
FORMS = {
    "full": {
        "length": 512,
        "multiples": (1, 4, 16, 256),
        "width": 256,
        "layers": 4,
        "steps": 10_000,
        "batch_size": 64,
        "test_examples": 500,
        "learning_rates": (3e-4, 1e-3, 3e-3),
        "seeds": (0, 1, 2, 3, 4),
        "models": [
            *MODELS,
            ("whole_window", {"chunk_size": 512}),
            ("latents", OURS),
            ("gated_delta_net", {"key_dim": 64}),
            ("gated_slot_attention", {"num_slots": 64}),
        ],
    },
    "reduced": {
        "length": 64,
        "multiples": (1, 4, 16, 256),
        "width": 64,
        "layers": 2,
        "steps": 800,
        "batch_size": 32,
        "test_examples": 100,
        "learning_rates": (1e-3, 3e-3),
        "seeds": (0, 1, 2, 3, 4),
        "models": [*MODELS, ("whole_window", {"chunk_size": 64})],
    },
    "smoke": {
        "length": 64,
        "multiples": (1, 4),
        "width": 16,
        "layers": 2,
        "steps": 3,
        "batch_size": 4,
        "test_examples": 4,
        "learning_rates": (1e-3,),
        "seeds": (0, 1),
        "models": [MODELS[0], MODELS[4]],
    },
}


def encode(text: str) -> torch.Tensor:
    return torch.tensor([TOKENS[word] for word in text.split()])


def make_texts(count: int, length: int, seed: int) -> torch.Tensor:
    """`(count, length)`, of which the last five tokens are the digits to recall. The needle is anywhere before."""
    generator = torch.Generator().manual_seed(seed)
    digits = torch.randint(10, (count, DIGITS), generator=generator)
    before, between, after = (encode(part) for part in NEEDLE.split("{}"))
    question, filler = encode(QUESTION), encode(FILLER)
    space = length - sum(map(len, (before, between, after, question))) - 3 * DIGITS
    if space < 0:
        raise ValueError(f"`length` is {length} but must be at least {length - space}, to hold needle and question.")
    filler = filler.repeat(space // len(filler) + 1)[:space]
    depths = torch.randint(space + 1, (count,), generator=generator).tolist()
    rows = [
        torch.cat([filler[:depth], before, key, between, key, after, filler[depth:], question, key])
        for depth, key in zip(depths, digits, strict=True)
    ]
    return torch.stack(rows)


def next_token_logits(model, texts: torch.Tensor, last: int) -> torch.Tensor:
    """Logits `(B, last, V)` of the last tokens, each from the tokens before it."""
    return model.get_output_embeddings()(hidden_states(model, texts[:, :-1])[:, -last:]).float()


@torch.no_grad()
def accuracy(model, length: int, count: int, device: str) -> float:
    """Share of texts all of whose digits are the likeliest token, that is, are what greedy decoding says."""
    model.eval()
    hits = 0
    for texts in make_texts(count, length, TEST_SEED).split(10):
        texts = texts.to(device)
        with precision(device):
            found = next_token_logits(model, texts, DIGITS).argmax(-1) == texts[:, -DIGITS:]
        hits += found.all(-1).sum().item()
    return hits / count


def run_unit(unit: dict, job: Job) -> dict | None:
    """Train one model at one length, test it at longer ones; `None` when the deadline came first."""
    torch.manual_seed(unit["seed"])
    model = build(unit["model"], unit["shape"], unit["settings"]).to(job.device)

    def loss_at(step: int) -> torch.Tensor:
        seed = unit["seed"] * unit["steps"] + step
        texts = make_texts(unit["batch_size"], unit["length"], seed).to(job.device)
        logits = next_token_logits(model, texts, unit["length"] - 1)
        return cross_entropy(logits.flatten(0, 1), texts[:, 1:].flatten())

    trained = train(model, loss_at, unit["steps"], unit["learning_rate"], job)
    if trained is None:
        return None
    lengths = [multiple * unit["length"] for multiple in unit["multiples"]]
    by_length = [
        {"length": length, "accuracy": accuracy(model, length, unit["test_examples"], job.device)}
        for length in lengths
    ]
    parameters = count_parameters(unit["model"], unit["shape"], unit["settings"])
    return {**trained, "by_length": by_length, "parameters": parameters}


def points(form: dict) -> list[dict]:
    recipe = {name: form[name] for name in ("length", "multiples", "steps", "batch_size", "test_examples")}
    shape = {
        "vocab_size": len(TOKENS),
        "hidden_size": form["width"],
        "intermediate_size": 2 * form["width"],
        "num_hidden_layers": form["layers"],
        "num_attention_heads": max(1, form["width"] // 32),
    }
    return [{**recipe, "model": model, "settings": settings, "shape": shape} for model, settings in form["models"]]


def score(unit: dict) -> float:
    """Over all lengths: within the length of training several models are perfect at more than one learning rate."""
    return mean(row["accuracy"] for row in unit["by_length"])


TABLE = Table("passkey", "Passkey retrieval", FORMS, points, score, run_unit)


def main(argv: list[str] | None = None) -> None:
    sweep.main(TABLE, argv)


if __name__ == "__main__":
    main()
