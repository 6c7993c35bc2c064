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
Complete prompts with a checkpoint, and show that its cache does not grow.

    python examples/generate.py --checkpoint CHECKPOINT
    python examples/generate.py --checkpoint CHECKPOINT --prompt "def main(" "class Reader:"

The model is loaded as anybody would load it: as remote code, without this project's package.
"""

from dataclasses import dataclass, field

import torch
from torch.utils._pytree import tree_leaves
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    HfArgumentParser,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TextGenerationPipeline,
    set_seed,
)


# For the demo's model, which has read Python's standard library for some minutes. None ends in a space: tokens begin
# with theirs, so a word hardly ever follows a space that is a token of its own.
PROMPTS = [
    "class Connection:\n    def __init__(self, name):\n        self",
    'def read(path):\n    """Return',
    "import os\nimport sys\n\n\ndef main():\n    for name in",
]
CONTEXTS = (1_000, 100_000)  # tokens
PIECE = 4_096  # tokens of one forward


@dataclass
class ExampleArguments:
    checkpoint: str = field(
        metadata={"help": "Folder or Hub id of a causal latent attention model with its tokenizer."}
    )
    prompt: list[str] = field(default_factory=PROMPTS.copy, metadata={"help": "Texts to complete."})


def bytes_of(cache: DynamicCache) -> int:
    tensors = [leaf for layer in cache.layers for leaf in tree_leaves(layer.state)]
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def cache_bytes(model: PreTrainedModel, contexts: tuple[int, ...]) -> list[int]:
    """Bytes of a real cache after so many tokens, prefilled in pieces."""
    generator, sizes = torch.Generator().manual_seed(0), []
    cache = DynamicCache(config=model.config)
    for context in contexts:
        missing = context - cache.get_seq_length()
        input_ids = torch.randint(model.config.vocab_size, (1, missing), generator=generator)  # (1, T)
        for piece in input_ids.split(PIECE, dim=1):
            model(piece.to(model.device), cache=cache, logits_to_keep=1)
        sizes.append(bytes_of(cache))
    return sizes


def load_tokenizer(checkpoint: str) -> PreTrainedTokenizerBase:
    """A checkpoint's tokenizer. The library's own error where there is none names a class, and not what is missing."""
    try:
        return AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=True)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"--checkpoint is {checkpoint}, which has no tokenizer that can be loaded, and prompts are text: save one "
            "there by `tokenizer.save_pretrained`."
        ) from error


def main(argv: list[str] | None = None) -> None:
    (args,) = HfArgumentParser(ExampleArguments).parse_args_into_dataclasses(argv)
    tokenizer = load_tokenizer(args.checkpoint)
    model = AutoModelForCausalLM.from_pretrained(
        args.checkpoint, dtype="auto", device_map="auto", trust_remote_code=True
    )
    generator = TextGenerationPipeline(model=model, tokenizer=tokenizer)
    set_seed(0)
    for prompt in args.prompt:
        completion = generator(prompt, max_new_tokens=64, do_sample=True, temperature=0.5, top_p=0.9)
        print(f"--- {prompt!r}\n{completion[0]['generated_text']}\n")
    with torch.no_grad():
        for context, size in zip(CONTEXTS, cache_bytes(model, CONTEXTS), strict=True):
            print(f"cache at {context:>7,} tokens of context: {size:,} bytes")


if __name__ == "__main__":
    main()
