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
Show what the latents of one layer attend to in a text.

    python examples/visualize.py CHECKPOINT --text FILE --layer 1 --output_dir out/attention

Writes attention.html, a page to click through that needs no network, and the pictures compression.png, distance.png
and attention.png, which is both. The model is loaded as anybody would load it: as remote code.
"""

import argparse
import json
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from attention_pictures import save_pictures
from influence import influence_through_latents, mass_by_distance, spread_window


MAX_TOKENS = 1024  # influence is a matrix of tokens by tokens, and the page holds it
TEMPLATE = Path(__file__).with_suffix(".html")


class LayerMaps(NamedTuple):
    """What one layer attends to, averaged over heads."""

    compression: torch.Tensor  # (N, M, T)
    retrieval: torch.Tensor  # (T, M)
    influence: torch.Tensor  # (T, T), through the latents
    local: torch.Tensor | None  # (T, T), None where a layer has no local attention


def read_tokens(file: Path, tokenizer: PreTrainedTokenizerBase, chunk_size: int) -> tuple[torch.Tensor, list[str]]:
    """The first `MAX_TOKENS` token ids of a text, `(1, T)`, and the piece of the text that each stands for."""
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"--text {file} must be UTF-8 but is not ({error}): convert it first.") from error
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    input_ids, offsets = encoded["input_ids"][:MAX_TOKENS], encoded["offset_mapping"][:MAX_TOKENS]
    if len(input_ids) <= chunk_size:
        raise ValueError(
            f"--text {file} gives {len(input_ids)} tokens but must give at least {chunk_size + 1}: a complete chunk "
            "that the latents read, and a token that reads the latents."
        )
    if len(input_ids) < len(encoded["input_ids"]):
        print(f"{file} has {len(encoded['input_ids']):,} tokens; the first {MAX_TOKENS:,} are used")
    bounds = [0, *(start for start, _ in offsets[1:]), offsets[-1][1]]
    # A token that is not the last one of a character with several bytes has no text of its own.
    pieces = [text[start:stop] or "\ufffd" for start, stop in pairwise(bounds)]
    return torch.tensor([input_ids]), pieces


def layer_maps(model: PreTrainedModel, input_ids: torch.Tensor, layer: int) -> LayerMaps:
    """Run the model on `(1, T)` token ids and take the maps of one layer."""
    with torch.no_grad():
        outputs = model(input_ids, output_attentions=True, use_cache=False, logits_to_keep=1)
    retrieval = outputs.attentions[layer][0]  # (H, T, M)
    compression = outputs.compression_attentions[layer][0]  # (N, H, M, T)
    refinement = outputs.refinement_attentions[layer][0]  # (N, H, M, M)
    local = outputs.local_attentions[layer][0]  # (H, T, S + 2C), of no slots in a layer without local attention
    size, sinks = model.config.chunk_size, model.config.num_sink_tokens
    return LayerMaps(
        compression.mean(1),
        retrieval.mean(0),
        influence_through_latents(retrieval, refinement, compression, size),
        spread_window(local, size, sinks) if local.shape[-1] else None,
    )


def rounded(weights: torch.Tensor) -> list:
    """Nested lists of three significant digits, more than a shade can show."""
    if weights.ndim > 1:
        return [rounded(row) for row in weights]
    return [float(f"{weight:.3g}") for weight in weights.tolist()]


def write_page(maps: LayerMaps, pieces: list[str], about: dict, file: Path) -> None:
    """The template with its data. Rows end where there is nothing yet to attend to, at the start of a chunk."""
    size, length = about["chunk_size"], len(pieces)
    data = {
        **about,
        "tokens": pieces,
        "compression": [rounded(latents[:, : n * size]) for n, latents in enumerate(maps.compression)],
        "retrieval": rounded(maps.retrieval),
        "influence": [rounded(maps.influence[t, : t // size * size]) for t in range(length)],
    }
    # Without "<" no text can end the script element that holds it.
    embedded = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    file.write_text(TEMPLATE.read_text(encoding="utf-8").replace("{{data}}", embedded), encoding="utf-8")


def distances(maps: LayerMaps, chunk_size: int) -> dict[str, torch.Tensor]:
    """Attention mass by distance `(T,)`, of the text's second half, which has something to look back at."""
    first = max(maps.influence.shape[0] // 2, chunk_size)
    through_latents = mass_by_distance(maps.influence, first)
    local = {} if maps.local is None else {"local attention": mass_by_distance(maps.local, first)}
    return {**local, "through the latents": through_latents}


def load_model(checkpoint: str, layer: int) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation="eager", trust_remote_code=True
    )
    if not model.config.is_causal:
        raise ValueError(f"{checkpoint} is bidirectional but must be causal: the page shows how the memory grows.")
    if model.config.chunk_size >= MAX_TOKENS:
        raise ValueError(
            f"`chunk_size` of {checkpoint} is {model.config.chunk_size} but must be less than {MAX_TOKENS:,}, the "
            "tokens that a page holds: the latents would have read none of them."
        )
    check_layer(layer, model.config.layer_kinds)
    return model.eval()


def check_layer(layer: int, kinds: list[str]) -> None:
    if not 0 <= layer < len(kinds):
        raise ValueError(
            f"--layer is {layer} but must be from 0 to {len(kinds) - 1}: the model has {len(kinds)} layers."
        )
    if kinds[layer] == "local":
        with_latents = ", ".join(str(index) for index, kind in enumerate(kinds) if kind != "local")
        raise ValueError(
            f'--layer is {layer}, which is of the kind "local", but must be a layer with latents: '
            f"{with_latents or 'this model has none'}."
        )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="folder or Hub id of a causal latent attention model with its tokenizer")
    parser.add_argument("--text", type=Path, required=True, help=f"UTF-8 file; its first {MAX_TOKENS:,} tokens count")
    parser.add_argument("--layer", type=int, required=True, help="layer with latents to look into, counted from 0")
    parser.add_argument("--output_dir", type=Path, default=Path("out/attention"), help="default: %(default)s")
    args = parser.parse_args(argv)
    model = load_model(args.checkpoint, args.layer)
    tokenizer = AutoTokenizer.from_pretrained(args.checkpoint, trust_remote_code=True)
    size = model.config.chunk_size
    input_ids, pieces = read_tokens(args.text, tokenizer, size)
    maps = layer_maps(model, input_ids, args.layer)

    args.output_dir.mkdir(parents=True, exist_ok=True)
    about = {"checkpoint": args.checkpoint, "file": args.text.name, "layer": args.layer, "chunk_size": size}
    write_page(maps, pieces, about, args.output_dir / "attention.html")
    complete = (len(maps.compression) - 1) * size  # tokens that the latents have read at the last boundary
    save_pictures(maps.compression[-1][:, :complete], distances(maps, size), args.output_dir)
    print(f"{args.output_dir / 'attention.html'}: open it in a browser; the pictures are beside it")


if __name__ == "__main__":
    main()
