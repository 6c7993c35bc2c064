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
"""How many pairs the latents of one layer hold: accuracy against pairs, with and without refinement.

    python -m benchmarks.quality.capacity                           # reduced, for two CPU cores
    python -m benchmarks.quality.capacity --form full --minutes 9   # one GPU; again until it is finished

The first chunk's tokens are pairs, each the sum of a key's and a value's embedding, so that nothing has to be bound
first. The second chunk asks for every key. A token there reads latents that have read exactly the pairs.
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from modeling_latent import LatentAttention, LatentAttentionConfig

from . import sweep
from .changes import UnrefinedLatentAttention
from .sweep import Table
from .training import Job, train


WIDTH, HEADS, KEYS, VALUES = 64, 4, 256, 64
TEST_SEED = 2**31  # no training seed
FORMS = {
    "full": {
        "steps": 2_000,
        "batch_size": 64,
        "test_examples": 1_000,
        "learning_rates": (1e-3, 3e-3),
        "num_latents": [16, 64],
        "pairs": [4, 8, 16, 32, 64, 128],
    },
    "reduced": {
        "steps": 2_000,
        "batch_size": 32,
        "test_examples": 500,
        "learning_rates": (2e-3,),
        "num_latents": [16, 64],
        "pairs": [8, 32],
    },
    "smoke": {
        "steps": 3,
        "batch_size": 4,
        "test_examples": 8,
        "learning_rates": (1e-3,),
        "num_latents": [4],
        "pairs": [2, 4],
    },
}


class Recall(nn.Module):
    """Embeddings, one latent attention and a head: `(B, P)` keys, values and queries to logits `(B, P, VALUES)`."""

    def __init__(self, pairs: int, num_latents: int, refinement: bool):
        super().__init__()
        config = LatentAttentionConfig(
            hidden_size=WIDTH,
            num_attention_heads=HEADS,
            num_hidden_layers=1,
            layer_pattern=["latent"],
            num_latents=num_latents,
            chunk_size=pairs,
            conv_kernel_size=0,
            initializer_range=1.0,  # the size of the embeddings below
        )
        self.keys, self.values = nn.Embedding(KEYS, WIDTH), nn.Embedding(VALUES, WIDTH)
        self.attention = (LatentAttention if refinement else UnrefinedLatentAttention)(config)
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VALUES)

    def forward(self, keys: torch.Tensor, values: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
        tokens = torch.cat([self.keys(keys) + self.values(values), self.keys(queries)], dim=1)  # (B, 2 P, D)
        return self.head(self.norm(self.attention(tokens)[:, keys.shape[1] :]))


def make_pairs(count: int, pairs: int, seed: int) -> tuple[torch.Tensor, ...]:
    """Keys, each once in a row, their values, the keys in another order and their values: all `(count, pairs)`."""
    generator = torch.Generator().manual_seed(seed)
    keys = torch.ones(count, KEYS).multinomial(pairs, generator=generator)
    values = torch.randint(VALUES, (count, pairs), generator=generator)
    order = torch.rand(count, pairs, generator=generator).argsort(1)
    return keys, values, keys.gather(1, order), values.gather(1, order)


def run_unit(unit: dict, job: Job) -> dict | None:
    """Train one layer on one number of pairs; `None` when the deadline came first."""
    torch.manual_seed(unit["seed"])
    model = Recall(unit["pairs"], **unit["settings"], refinement=unit["refinement"]).to(job.device)

    def logits_and_answers(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        *inputs, answers = (part.to(job.device) for part in make_pairs(count, unit["pairs"], seed))
        return model(*inputs).flatten(0, 1).float(), answers.flatten()

    def loss_at(step: int) -> torch.Tensor:
        return cross_entropy(*logits_and_answers(unit["batch_size"], unit["seed"] * unit["steps"] + step))

    trained = train(model, loss_at, unit["steps"], unit["learning_rate"], job)
    if trained is None:
        return None
    with torch.no_grad():
        logits, answers = logits_and_answers(unit["test_examples"], TEST_SEED)
    return {**trained, "accuracy": (logits.argmax(-1) == answers).float().mean().item()}


def points(form: dict) -> list[dict]:
    recipe = {name: form[name] for name in ("steps", "batch_size", "test_examples")}
    return [
        {
            **recipe,
            "pairs": pairs,
            "refinement": refinement,
            "settings": {"num_latents": count},
        }
        for count in form["num_latents"]
        for refinement in (True, False)
        for pairs in form["pairs"]
    ]


def score(unit: dict) -> float:
    return unit["accuracy"]


TABLE = Table("capacity", "Capacity of one layer's latents", FORMS, points, score, run_unit)


def main(argv: list[str] | None = None) -> None:
    sweep.main(TABLE, argv)


if __name__ == "__main__":
    main()
