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
"""A million tokens, thousands of calls, many threads."""

import psutil
import torch
from transformers import DynamicCache

import dying
import figures
from common import random_ids, tiny_model
from test_edge import check_threads


TOKENS, PIECE, DECODED = 1_000_000, 16_384, 64
CALLS, WARM_UP = 2_000, 200


@torch.no_grad()
def distributions(dtype: torch.dtype) -> torch.Tensor:
    """Of the token after each piece of a long text, and after each token that is then decoded, `(pieces + 64, V)`."""
    sizes = {"layer_pattern": ["local", "both"], "hidden_size": 32, "chunk_size": 64, "num_latents": 8}
    model = tiny_model(dtype=dtype, num_sink_tokens=2, **sizes)
    text = random_ids(1, TOKENS + DECODED)
    cache = DynamicCache(config=model.config)
    pieces = [*text[:, :TOKENS].split(PIECE, dim=1), *text[:, TOKENS:].split(1, dim=1)]
    logits = [model(piece, cache=cache, logits_to_keep=1).logits[0, -1] for piece in pieces]
    assert cache.get_seq_length() == TOKENS + DECODED
    return torch.stack(logits).double().softmax(-1)


def test_a_million_tokens_in_float32_are_close_to_float64():
    single, double = distributions(torch.float32), distributions(torch.float64)
    assert double.amax(-1).mean() > 0.1  # far from uniform, so there is something to get wrong
    difference = (single - double).abs().max().item()
    assert difference < 1e-3
    what = f"{TOKENS:,} tokens in float32: largest difference of a token's probability from float64"
    figures.keep(what, f"{difference:.1e}", "1e-3")


def growth(pipe) -> None:
    """Runs in a child of its own. Sends by what share its resident memory grows in many calls of `generate`."""
    model, process = tiny_model(layer_pattern=["local", "both"]), psutil.Process()

    def call(number: int) -> None:
        ids = random_ids(1 + number % 3, 3 + number % 40, seed=number)
        model.generate(ids, max_new_tokens=8, do_sample=number % 2 == 0, num_beams=1 + number % 5 // 4)

    for number in range(WARM_UP):
        call(number)
    before = process.memory_info().rss
    for number in range(CALLS):
        call(number)
    pipe.send(process.memory_info().rss / before - 1)


def test_thousands_of_calls_leave_no_memory_behind():
    receiver, sender = dying.SERVER.Pipe(duplex=False)
    process = dying.SERVER.Process(target=growth, args=(sender,))
    process.start()
    process.join()
    share = receiver.recv()
    assert share < 0.02
    figures.keep(f"{CALLS:,} calls of `generate()`: growth of resident memory", f"{share:.2%}", "2 %")


def test_many_threads():
    check_threads(threads=8, calls=400)
    figures.keep("400 calls from 8 threads on one model: equal to one thread", "400 of 400", "400 of 400")
