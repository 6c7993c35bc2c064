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
Show what only a memory can do: give back values that were told far behind the window of local attention.

    python examples/recall.py

A text tells the value of each of four keys, goes on with filler, and asks for each key's value. Two tiny models of one
shape learn this from short texts, in less than a minute: one has latents in its first layer, the other none. Then they
read texts that are hundreds of times as long. A key, a value and a word of filler are a token each.
"""

import argparse

import torch
from transformers import DynamicCache, PreTrainedModel, Trainer, TrainingArguments, set_seed

from generate import bytes_of
from modeling_latent import LatentAttentionConfig, LatentAttentionForCausalLM


KEYS, VALUES, FILLERS = 4, 16, 32  # tokens of each kind; in the vocabulary they come one kind after the other
ASKED = 2 * KEYS  # last tokens of a text: the keys, each with its value behind it
WIDTH, LAYERS, CHUNK = 64, 2, 8
WINDOW = 2 * CHUNK  # tokens that local attention sees at most; right behind the start of a chunk it is half as many
PATTERNS = {"with latents": ["both", "local"], "without": ["local"]}  # kinds of layers
STEPS, BATCH = 300, 32
TRAINED = 16  # tokens of filler in training, some before the keys are told and the rest behind
DISTANCES = (0, TRAINED, 1_024, 8_192)  # tokens of filler between telling and asking
TEXTS = 16  # at each distance, to measure with
PIECE = 1_024  # tokens of one forward
NEXT = (
    "Next: `python examples/train.py --model out/demo --dataset FOLDER` fine-tunes the demo's model on your texts; "
    "docs/conversion.md gives a Llama such a memory; the other guides are in docs/."
)


def in_random_order(values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Values `(B, K)` of keys 0 to K - 1 as texts `(B, 2K)`: every key, and its value behind it."""
    keys = torch.rand(values.shape, generator=generator).argsort(dim=1)
    return torch.stack([keys, values.gather(1, keys)], dim=2).flatten(1)


def make_texts(count: int, before: int, between: int, generator: torch.Generator) -> torch.Tensor:
    """`(count, T)` token ids: filler, all keys told, filler, all keys asked."""
    values = torch.randint(KEYS, KEYS + VALUES, (count, KEYS), generator=generator)  # (B, K)
    told, asked = (in_random_order(values, generator) for _ in range(2))
    first = KEYS + VALUES
    filler = torch.randint(first, first + FILLERS, (count, before + between), generator=generator)
    return torch.cat([filler[:, :before], told, filler[:, before:], asked], dim=1)


def training_rows(generator: torch.Generator) -> list[dict[str, torch.Tensor]]:
    """Texts of one length, which tell the keys anywhere. Only the values asked for have labels."""
    count = STEPS * BATCH // (TRAINED + 1) + 1
    places = range(TRAINED + 1)
    input_ids = torch.cat([make_texts(count, before, TRAINED - before, generator) for before in places])  # (B, T)
    labels = input_ids.clone()
    labels[:, :-ASKED] = -100
    labels[:, -ASKED::2] = -100
    return [{"input_ids": ids, "labels": row} for ids, row in zip(input_ids, labels, strict=True)]


def train(layer_pattern: list[str], seed: int) -> PreTrainedModel:
    set_seed(seed)
    config = LatentAttentionConfig(
        vocab_size=KEYS + VALUES + FILLERS,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        layer_pattern=layer_pattern,
        num_latents=16,
        chunk_size=CHUNK,
        max_chunk_repeats=1_000,  # so that the latents learn to find a value in much longer texts than they train on
    )
    arguments = TrainingArguments(
        output_dir="out/recall",
        max_steps=STEPS,
        per_device_train_batch_size=BATCH,
        learning_rate=3e-3,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        weight_decay=0.1,
        adam_beta2=0.95,
        logging_steps=100,
        save_strategy="no",
        report_to="none",
        seed=seed,
    )
    model = LatentAttentionForCausalLM(config)
    Trainer(model, arguments, train_dataset=training_rows(torch.Generator().manual_seed(seed))).train()
    return model.eval()


@torch.no_grad()
def measure(model: PreTrainedModel, distance: int) -> tuple[float, int]:
    """Share of the values that the model finds behind so much filler, and the bytes of its cache for one text."""
    texts = make_texts(TEXTS, 0, distance, torch.Generator().manual_seed(2**31)).to(model.device)  # no training seed
    cache = DynamicCache(config=model.config)
    for piece in texts[:, :-ASKED].split(PIECE, dim=1):
        model(piece, cache=cache, logits_to_keep=1)
    found = model(texts[:, -ASKED:], cache=cache).logits[:, ::2].argmax(-1)  # (B, K), behind each key
    return (found == texts[:, -ASKED + 1 :: 2]).float().mean().item(), bytes_of(cache) // TEXTS


def llama_bytes(tokens: int) -> int:
    """Of the cache of a Llama of equal shape: a key and a value per token and layer, in float32."""
    return 2 * LAYERS * WIDTH * tokens * 4


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of weights and training texts, 0 if not given")
    seed = parser.parse_args(argv).seed
    models = {name: train(pattern, seed) for name, pattern in PATTERNS.items()}
    print(f"\nshare of values found ({1 / VALUES:.2f} by chance), and bytes of the cache; a window is {WINDOW} tokens")
    print(f"{'tokens between':>14}{'windows':>9}" + "".join(f"{name:>24}" for name in (*PATTERNS, "a Llama's cache")))
    for distance in DISTANCES:
        results = [measure(model, distance) for model in models.values()]
        cells = "".join(f"{share:>10.2f}{size:>8,} bytes" for share, size in results)
        print(f"{distance:>14,}{distance / WINDOW:>9,.1f}{cells}{llama_bytes(distance + 2 * ASKED):>18,} bytes")
    print(NEXT)


if __name__ == "__main__":
    main()
