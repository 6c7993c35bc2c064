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
"""Bits per byte: a loss that does not depend on the tokenizer, and what general compressors need for the same text.

Of the validation text every token is predicted exactly once, and so is the end of every document. The bits of both
are counted, and divided by the UTF-8 bytes of the text.
"""

import gzip
import lzma
import math

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import EvalPrediction


def token_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """What `Trainer` keeps of the logits `(B, T, V)`: nats per predicted token `(B, T - 1)`."""
    return cross_entropy(logits[:, :-1].float().transpose(1, 2), labels[:, 1:], reduction="none")


class BitsPerByte:
    """`compute_metrics` of a `Trainer` whose `preprocess_logits_for_metrics` is `token_losses`."""

    def __init__(self, bytes_per_token: float):
        self.bytes_per_token = bytes_per_token

    def __call__(self, evaluated: EvalPrediction) -> dict[str, float]:
        is_target = evaluated.label_ids[:, 1:] != -100
        nats_per_token = float(evaluated.predictions[is_target].mean(dtype=np.float64))
        return {
            "nats_per_token": nats_per_token,
            "bits_per_byte": nats_per_token / math.log(2) / self.bytes_per_token,
        }


def count_bytes(texts) -> int:
    return sum(len(text.encode("utf-8")) for text in texts)


def compressed_bits_per_byte(texts) -> dict[str, float]:
    """What `gzip -9` and `xz -9` need for the texts one by one."""
    texts = [text.encode("utf-8") for text in texts]
    sizes = {
        "gzip -9": sum(len(gzip.compress(text, compresslevel=9)) for text in texts),
        "xz -9": sum(len(lzma.compress(text, preset=9)) for text in texts),
    }
    return {name: 8 * size / sum(map(len, texts)) for name, size in sizes.items()}
