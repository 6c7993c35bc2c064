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
Mistakes, as tables: what a user may plausibly pass for a field or an argument and must not. Each is refused by a
sentence that names the field or argument, which test_fuzzed_user.py holds the package to.

Left out is what every model of the library takes as this one does, where a check would wait for the device or repeat
the library's: ids outside of the vocabulary, `input_ids` that are a list or floats, labels outside of the classes or
of -100 alone, a negative `logits_to_keep`, a `num_items_in_batch` of 0, embeddings of another dtype than the weights,
rows of a cache that are not there, and what `generate()` and `resize_token_embeddings` read themselves. Nor is a mask
beside a cache wrong that is wider than past and new tokens, as its last columns count; and `new_chunk_rows` is what
`generate()` alone passes, to wait for nothing.
"""

import json
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, DynamicCache, LlamaConfig

from common import SIZES, random_ids, tiny_config, tiny_model
from modeling_latent import LatentAttention, LatentAttentionModel
from modeling_latent.cache_name import cache_of
from modeling_latent.configuration_latent import POSITIVE_FIELDS


class Mistake(NamedTuple):
    where: str
    name: str  # what the error has to name
    value: object
    make: Callable[[], object]
    shown: str = ""  # how the error has to show the value, where it does

    def __repr__(self) -> str:
        return f"{self.where}, {self.name}={described(self.value)}"


def what_is_wrong(mistake: Mistake) -> str | None:
    """With the answer to a mistake; `None` if it is an error of ours, in words that name the argument and value."""
    try:
        mistake.make()
    except (ValueError, TypeError, StrictDataclassError) as error:
        raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
        says = mistake.name in str(error) and mistake.shown in str(error)
        if says and "/torch/" not in raised_in:
            return None
        return f"{mistake}: {raised_in}: {error!r}"
    except Exception as error:
        return f"{mistake}: {error!r}"
    return f"{mistake}: silence"


def described(value) -> str:
    if isinstance(value, torch.Tensor | np.ndarray):
        return f"{type(value).__name__} {value.dtype} {tuple(value.shape)}"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name}: {described(item)}' for name, item in value.items())}}}"
    return f"[{', '.join(map(described, value))}]" if isinstance(value, tuple | list) else repr(value)


# Fields of the configuration

NAN, INF = float("nan"), float("inf")
NO_INTEGERS = [2.0, 2.5, "2", True, [2]]
NO_NUMBERS = [NAN, INF, -INF, -1.0, "0.1", None, [0.1]]
NO_BOOLS = [0, 1, "yes", None, [True]]
NO_NAMES = ["nothing", "", 5, None, ["silu"]]
BAD_FIELDS = {
    **{field: [0, -1, *NO_INTEGERS] for field in POSITIVE_FIELDS},
    "num_key_value_heads": [0, 3, 8, *NO_INTEGERS],
    "head_dim": [0, 3, *NO_INTEGERS],
    "conv_kernel_size": [-1, None, *NO_INTEGERS],
    "mlp_conv_kernel_size": [-1, None, *NO_INTEGERS],
    "num_sink_tokens": [-1, 5, None, *NO_INTEGERS],
    "norm_eps": [0.0, *NO_NUMBERS],
    "initializer_range": [0.0, *(value for value in NO_NUMBERS if value is not None)],
    "attention_dropout": [1.0, 1, *NO_NUMBERS],
    "max_chunk_repeats": [0, 0.5, *NO_NUMBERS],
    "is_causal": NO_BOOLS,
    "attention_bias": NO_BOOLS,
    "use_cache": NO_BOOLS,
    "tie_word_embeddings": NO_BOOLS,
    "norm_type": NO_NAMES,
    "hidden_act": NO_NAMES,
    "dtype": ["bf16", "torch.float32", "nn", 5, "int8", torch.int64],
    "layer_pattern": [[], ["global"], ["both", "Local"], "both", [1], [None], {"both": 1}, 2],
    "rope_parameters": [5, "default", ["default"], {"rope_theta": 0}, {"rope_theta": NAN}, {"rope_theta": "1"}]
    + [{"rope_type": "yarn", "factor": 2.0}, {"rope_type": "llama3"}, {"rope_type": 3}, {"theta": 5.0}],
    "trained_with": [5, "x", ["chunk_size"]],
    "pad_token_id": ["0", 0.5, [0]],
    "bos_token_id": ["0", 0.5, [0]],
    "eos_token_id": ["0", 0.5],
}
BAD_OLDER_FIELDS = {  # read as a configuration is made, and then gone
    "rope_theta": [0, -1.0, NAN, "10000", [1.0]],
    "rope_scaling": [5, "linear"],
    "local_attention": [0, 1, "yes", [True]],
    "layer_types": [["full_attention"] * 2, ["latent_attention"], "latent_attention", 5],
}


def each_value(table: dict) -> Iterator[tuple]:
    return ((name, value) for name, values in table.items() for value in values)


def set_and_build(field: str, value) -> None:
    config = tiny_config()
    setattr(config, field, value)
    LatentAttentionModel(config)


def mistakes_of_configurations(folder: Path) -> Iterator[Mistake]:
    """In a new configuration, in one that is there, while a checkpoint is loaded, and in its config.json."""
    tiny_model().save_pretrained(folder)
    plain, edited = json.loads((folder / "config.json").read_text("utf-8")), folder / "edited"
    edited.mkdir()

    def load_edited(field: str, value) -> None:
        (edited / "config.json").write_text(json.dumps({**plain, field: value}), encoding="utf-8")
        AutoConfig.from_pretrained(edited)

    def mistake(where: str, field: str, value, make: Callable) -> Mistake:
        shown = "" if isinstance(value, dict) else repr(value)  # defaults fill what a dictionary lacks
        return Mistake(where, field, value, make, shown)

    for field, value in each_value({**BAD_FIELDS, **BAD_OLDER_FIELDS}):
        yield mistake("a new configuration", field, value, partial(tiny_config, **{field: value}))
    for field, value in each_value(BAD_FIELDS):
        yield mistake("a configuration that is there", field, value, partial(set_and_build, field, value))
        load = partial(AutoModelForCausalLM.from_pretrained, folder, **{field: value})
        yield mistake("an argument of from_pretrained", field, value, load)
        if not isinstance(value, torch.dtype):  # of which JSON has none
            yield mistake("config.json", field, value, partial(load_edited, field, value))


# Arguments of a forward

ROWS, TOKENS = 2, 6
IDS, EMBEDS = random_ids(ROWS, TOKENS), torch.ones(ROWS, TOKENS, SIZES["hidden_size"])


def ones(*shape: int) -> torch.Tensor:
    return torch.ones(shape, dtype=torch.long)


NO_TENSORS = [5, "ones", [[1] * TOKENS] * ROWS, np.ones((ROWS, TOKENS), dtype=np.int64)]
OTHER_SHAPES = [ones(TOKENS), ones(ROWS + 1, TOKENS), ones(ROWS, TOKENS - 1), ones(ROWS, TOKENS + 1)]
OTHER_SHAPES += [ones(ROWS, 1, TOKENS), ones(ROWS, 1, TOKENS, TOKENS), torch.tensor(1)]
NUMBERED_DOWN = torch.tensor([[1, 2, 1, 1, 1, 1]] * ROWS)
BAD_ARGUMENTS = {
    "attention_mask": [*NO_TENSORS, *OTHER_SHAPES, -ones(ROWS, TOKENS), ones(ROWS, TOKENS) / 2, NUMBERED_DOWN],
    "position_ids": [*NO_TENSORS, *OTHER_SHAPES],
    "seq_idx": [*NO_TENSORS, *OTHER_SHAPES],
    "cu_seq_lens_q": [*NO_TENSORS, ones(ROWS, TOKENS), torch.tensor(3), torch.tensor([0, 2.5, TOKENS])]
    + [torch.tensor([0, TOKENS])],  # places in one row, and here are two
    "cache": [5, "dynamic", True, ((EMBEDS, EMBEDS),), [EMBEDS]],
}
BAD_INPUTS = [
    *({"input_ids": ids} for ids in (IDS[0], IDS[None], IDS[:, :0], IDS[:0])),
    *({"inputs_embeds": embeds} for embeds in (EMBEDS[0], EMBEDS[None], EMBEDS[:, :0], EMBEDS[..., :8], *NO_TENSORS)),
]
BAD_LABELS = [*NO_TENSORS, *OTHER_SHAPES, IDS.float(), IDS.int(), IDS > 3]
BAD_PLACES = [*NO_TENSORS, ones(ROWS + 1), ones(1), ones(ROWS, 2), torch.tensor(1), ones(ROWS) / 2, ones(ROWS).int()]
BAD_TARGETS = {  # by what the class of a head ends in
    "Model": {},
    "CausalLM": {"labels": BAD_LABELS},
    "MaskedLM": {"labels": BAD_LABELS},
    "TokenClassification": {"labels": BAD_LABELS},
    "SequenceClassification": {"labels": [*NO_TENSORS, ones(ROWS + 1), ones(1), ones(ROWS, 3), ones(ROWS).int()]},
    "QuestionAnswering": {"start_positions": BAD_PLACES, "end_positions": BAD_PLACES},
}


def mistakes_of_forwards(model) -> Iterator[Mistake]:
    """Arguments of a model, 16 wide and with three classes."""
    where = type(model).__name__
    targets = next(targets for head, targets in BAD_TARGETS.items() if where.endswith(head))
    right = {"input_ids": IDS, **{name: ones(ROWS) for name in targets if name.endswith("positions")}}
    for name, value in each_value({**BAD_ARGUMENTS, **targets}):
        yield Mistake(where, name, value, partial(model, **{**right, name: value}))
    for inputs in BAD_INPUTS:
        yield Mistake(where, "input", inputs, partial(model, **inputs))
    for inputs in ({}, {"input_ids": IDS, "inputs_embeds": EMBEDS}):
        yield Mistake(where, "inputs_embeds", inputs, partial(model, **inputs))


def mistakes_of_layers() -> Iterator[Mistake]:
    layer = LatentAttention(tiny_config())
    for value in [*NO_TENSORS, EMBEDS[0], EMBEDS[None], EMBEDS[:, :0], EMBEDS[..., :8], IDS]:
        yield Mistake("a layer alone", "input", value, partial(layer, value))
    for value in BAD_ARGUMENTS["attention_mask"]:
        yield Mistake("a layer alone", "attention_mask", value, partial(layer, EMBEDS, value))
    for value in (None, {}, 5, "latent-tiny", LlamaConfig(**SIZES)):
        for build in (LatentAttention, LatentAttentionModel):
            yield Mistake(build.__name__, "config", value, partial(build, value))


# Caches, and arguments beside them

OTHER_MODELS = [
    *({"num_latents": 2}, {"chunk_size": 3}, {"conv_kernel_size": 0}, {"mlp_conv_kernel_size": 0}),
    *({"layer_pattern": ["latent"]}, {"num_sink_tokens": 1}, {"num_key_value_heads": 4}, {"head_dim": 8}),
    *({"num_hidden_layers": 3}, {"num_attention_heads": 2}, {"hidden_size": 32}),
]
BAD_BESIDE_A_CACHE = {
    "attention_mask": [ones(ROWS, TOKENS - 1), ones(ROWS + 1, TOKENS), torch.tensor([[1, 1, 2, 2, 2, 2]] * ROWS)],
    "position_ids": [torch.arange(TOKENS).expand(ROWS, -1)],
    "seq_idx": [ones(ROWS, TOKENS)],
    "cu_seq_lens_q": [torch.tensor([0, TOKENS])],
    "past_key_values": [DynamicCache()],
    "memory": [DynamicCache()],
}


def filled_cache(**overrides) -> DynamicCache:
    return cache_of(tiny_model(**overrides)(IDS, use_cache=True))


def mistakes_of_caches() -> Iterator[Mistake]:
    model, filled = tiny_model(), filled_cache()
    for overrides in OTHER_MODELS:
        cache = filled_cache(**overrides)
        yield Mistake("a cache of another model", "cache", overrides, partial(model, IDS, cache=cache))
    for rows in (1, 3):
        refused = partial(model, random_ids(rows, 2), cache=filled)
        yield Mistake("a cache of other rows", "cache", rows, refused)
    for name, value in each_value(BAD_BESIDE_A_CACHE):
        refused = partial(model, IDS, cache=filled, **{name: value})
        yield Mistake("beside a cache", name, value, refused)
    for value in (1, 3, 0.5, -0.5, -1.5, "1", None, True, [1]):
        yield Mistake("a cache", "crop", value, partial(filled.crop, value))
    for value in ("bfloat16", 5, None):
        yield Mistake("state_bytes", "dtype", value, partial(tiny_config().state_bytes, 1, value))


# Methods

BAD_IN_GENERATION = {
    "attention_mask": [-ones(ROWS, TOKENS), ones(ROWS, TOKENS) / 2, NUMBERED_DOWN, ones(ROWS, 1, TOKENS, TOKENS)],
    "seq_idx": BAD_ARGUMENTS["seq_idx"],
    "cu_seq_lens_q": BAD_ARGUMENTS["cu_seq_lens_q"],
}
FLASH = ["flash_attention_2", "flash_attention_3", "kernels-community/flash-attn2"]


def mistakes_of_methods() -> Iterator[Mistake]:
    model, encoder = tiny_model(), tiny_model(is_causal=False)
    settings = {"max_new_tokens": 2, "do_sample": False, "pad_token_id": 0}
    for name, value in each_value(BAD_IN_GENERATION):
        yield Mistake("generate", name, value, partial(model.generate, IDS, **settings, **{name: value}))
    padded = (IDS > 0).long()
    padded[0, -2:] = 0
    refused = partial(model.generate, IDS, attention_mask=padded, prefill_chunk_size=2, **settings)
    yield Mistake("generate, beside right padding", "prefill_chunk_size", 2, refused)
    yield Mistake("generate", "is_causal", False, partial(encoder.generate, IDS, **settings))
    yield Mistake("continuous batching", "generate", None, model.init_continuous_batching)
    yield Mistake(
        "masked language modelling", "is_causal", True, partial(AutoModelForMaskedLM.from_config, tiny_config())
    )
    for name in FLASH:
        yield Mistake(
            "set_attn_implementation", "attn_implementation", name, partial(model.set_attn_implementation, name)
        )
