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
"""Multi-query associative recall after Zoology (Arora et al. 2023, arXiv:2312.04927).

    python -m benchmarks.quality.mqar                              # reduced, for two CPU cores
    python -m benchmarks.quality.mqar --form small                 # fewer tokens to tell apart, learned sooner
    python -m benchmarks.quality.mqar --form full --minutes 9      # one GPU; again until it is finished

A row starts with pairs of a key and a value. Later each key comes once more, and the model must say its value: the
accuracy of that against how many numbers the model keeps of a sequence.
"""

from functools import lru_cache

import torch
from torch.nn.functional import cross_entropy

from . import sweep
from .models import build, count_parameters, hidden_states, state_elements
from .sweep import Table
from .training import Job, precision, train


POWER = 0.01  # of the law that distances between pair and query follow
SOLVED = 0.99  # accuracy at which training ends, as in Zoology
TEST_SEED = 2**31  # no training seed
LATENTS = [4, 8, 16, 32, 64, 128]
FULL_MODELS = [
    ("full_attention", {}),
    ("window", {}),
    ("whole_window", {}),
    *[("latents_in_every_layer", {"num_latents": count}) for count in LATENTS],
    *[("latents_and_window", {"num_latents": count}) for count in LATENTS],
    *[("latents", {"num_latents": count}) for count in LATENTS],
    *[("mamba2", {"state_size": size}) for size in (8, 16, 32, 64, 128)],
    *[("gated_delta_net", {"key_dim": size}) for size in (8, 16, 32, 64)],
    *[("gated_slot_attention", {"num_slots": count}) for count in LATENTS],
]
REDUCED_MODELS = [
    ("full_attention", {}),
    ("window", {}),
    ("whole_window", {}),
    *[("latents_in_every_layer", {"num_latents": count}) for count in (4, 16)],
    # In every second layer: as many latents as before, and as many as make up the state of 4 and 16 in every layer.
    *[("latents_and_window", {"num_latents": count}) for count in (14, 16, 38)],
    *[("latents_from_the_second_layer", {"num_latents": count}) for count in (14, 38)],
    ("mamba2", {"state_size": 16}),
    ("gated_delta_net", {"key_dim": 32}),
]
SMALL_MODELS = [*REDUCED_MODELS, *[("latents", {"num_latents": count}) for count in (4, 8, 16)]]
FORMS = {
    "full": {
        "vocab_size": 8192,
        "lengths_and_pairs": [(64, 4), (128, 8), (256, 16), (512, 64)],
        "widths": [64, 128],
        "examples": 100_000,
        "passes": 64,
        "batch_size": 256,
        "test_examples": 3_000,
        "learning_rates": (1e-4, 4.6e-4, 2.2e-3, 1e-2),
        "models": FULL_MODELS,
    },
    "reduced": {
        "vocab_size": 1024,
        "lengths_and_pairs": [(64, 4)],
        "widths": [64],
        "examples": 38_400,
        "passes": 1,
        "batch_size": 64,
        "test_examples": 512,
        "learning_rates": (3e-3,),
        "models": REDUCED_MODELS,
    },
    "small": {
        "vocab_size": 128,
        "lengths_and_pairs": [(64, 4)],
        "widths": [64],
        "examples": 22_400,
        "passes": 1,
        "batch_size": 32,
        "test_examples": 512,
        "learning_rates": (3e-3, 1e-2),
        "models": SMALL_MODELS,
    },
    "smoke": {
        "vocab_size": 128,
        "lengths_and_pairs": [(32, 2)],
        "widths": [16],
        "examples": 64,
        "passes": 2,
        "batch_size": 16,
        "test_examples": 16,
        "learning_rates": (1e-3, 2e-3),
        "models": [("full_attention", {}), ("latents_and_window", {"num_latents": 4})],
    },
}


def make_examples(
    count: int, vocab_size: int, length: int, pairs: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Rows of `pairs` keys, each followed by its value, then the keys again in random places, noise between.

    Keys are of the lower half of the vocabulary without 0, values of the upper half, noise of all of it. A query is
    `2 i` tokens after the pairs, `i` drawn without repetition with a probability proportional to `(i + 1)^(a - 1)`.

    Returns:
        `input_ids` and `labels`, both `(count, length)`; a label is the value at the query itself, elsewhere -100.
    """
    generator = torch.Generator().manual_seed(seed)
    half, context = vocab_size // 2, 2 * pairs
    keys = choose(torch.ones(half - 1), count, pairs, generator) + 1  # (count, pairs)
    values = choose(torch.ones(vocab_size - half), count, pairs, generator) + half
    distances = torch.arange(1, (length - context) // 2 + 1, dtype=torch.float32)
    places = context + 2 * choose(distances ** (POWER - 1), count, pairs, generator)
    input_ids = torch.randint(vocab_size, (count, length), generator=generator)
    input_ids[:, :context] = torch.stack([keys, values], dim=-1).flatten(1)
    input_ids.scatter_(1, places, keys)
    return input_ids, torch.full_like(input_ids, -100).scatter_(1, places, values)


def choose(weights: torch.Tensor, rows: int, count: int, generator: torch.Generator) -> torch.Tensor:
    """Different indices `(rows, count)`, in blocks of rows, so that a large vocabulary fits into memory."""
    blocks = [min(4096, rows - start) for start in range(0, rows, 4096)]
    return torch.cat([weights.expand(block, -1).multinomial(count, generator=generator) for block in blocks])


def query_logits(model, input_ids: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits `(queries, V)` and labels `(queries,)`: nothing is computed for other tokens, which have no label."""
    is_query = labels != -100
    return model.get_output_embeddings()(hidden_states(model, input_ids)[is_query]).float(), labels[is_query]


@torch.no_grad()
def accuracy(model, input_ids: torch.Tensor, labels: torch.Tensor, batch_size: int) -> float:
    """Share of queries whose value is the likeliest token."""
    model.eval()
    hits = 0
    for start in range(0, len(input_ids), batch_size):
        batch = slice(start, start + batch_size)
        with precision(input_ids.device.type):
            logits, expected = query_logits(model, input_ids[batch], labels[batch])
        hits += (logits.argmax(-1) == expected).sum().item()
    return hits / (labels != -100).sum().item()


def shape_of(width: int, vocab_size: int) -> dict:
    return {
        "vocab_size": vocab_size,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }


def run_unit(unit: dict, job: Job) -> dict | None:
    """Train one model on one setting; `None` when the deadline came first."""
    torch.manual_seed(unit["seed"])
    model = build(unit["model"], unit["shape"], unit["settings"]).to(job.device)
    task = {"vocab_size": unit["shape"]["vocab_size"], "length": unit["length"], "pairs": unit["pairs"]}
    train_set = [part.to(job.device) for part in make_examples(unit["examples"], **task, seed=unit["seed"])]
    test_set = [part.to(job.device) for part in make_examples(unit["test_examples"], **task, seed=TEST_SEED)]
    batch_size, per_pass = unit["batch_size"], unit["examples"] // unit["batch_size"]

    @lru_cache(maxsize=1)
    def order_in(a_pass: int) -> torch.Tensor:
        return torch.randperm(unit["examples"], generator=torch.Generator().manual_seed(a_pass)).to(job.device)

    def loss_at(step: int) -> torch.Tensor:
        batch = order_in(step // per_pass)[step % per_pass * batch_size :][:batch_size]
        return cross_entropy(*query_logits(model, *(part[batch] for part in train_set)))

    def is_solved() -> bool:
        return accuracy(model, *test_set, batch_size) >= SOLVED

    steps = per_pass * unit["passes"]
    trained = train(model, loss_at, steps, unit["learning_rate"], job, is_solved, check_every=max(100, per_pass // 4))
    if trained is None:
        return None
    return {
        **trained,
        "accuracy": accuracy(model, *test_set, batch_size),
        "state_elements": state_elements(model, unit["length"]),
        "parameters": count_parameters(unit["model"], unit["shape"], unit["settings"]),
    }


def recipe_of(form: dict) -> dict:
    return {name: form[name] for name in ("examples", "passes", "batch_size", "test_examples")}


def points(form: dict) -> list[dict]:
    """What a form measures, without learning rates and seeds."""
    return [
        {
            **recipe_of(form),
            "length": length,
            "pairs": pairs,
            "model": model,
            "settings": {**settings, **chunks_of(model, length)},
            "shape": shape_of(width, form["vocab_size"]),
        }
        for width in form["widths"]
        for length, pairs in form["lengths_and_pairs"]
        for model, settings in form["models"]
    ]


def chunks_of(model: str, length: int) -> dict:
    """They grow with the sequence, and are of 8 tokens for 64 and 128; of half as many without a window."""
    size = max(8, length // 16)
    sizes = {"window": size, "latents": size // 2, "whole_window": length}
    with_window = ("latents_and_window", "latents_in_every_layer", "latents_from_the_second_layer")
    sizes |= dict.fromkeys(with_window, size)
    return {"chunk_size": sizes[model]} if model in sizes else {}


def score(unit: dict) -> float:
    return unit["accuracy"]


TABLE = Table("mqar", "Multi-query associative recall", FORMS, points, score, run_unit)


def main(argv: list[str] | None = None) -> None:
    sweep.main(TABLE, argv)


if __name__ == "__main__":
    main()
