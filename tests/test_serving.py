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
"""What docs/serving.md says of conversations."""

from pathlib import Path

import torch
from transformers import AutoTokenizer

from common import byte_tokenizer, tiny_model
from modeling_latent.cache_name import CACHE_NAME, cache_of


SIZES = {"vocab_size": 258, "num_hidden_layers": 1, "layer_pattern": ["both"], "pad_token_id": 257}


def served(folder: Path):
    """A model, and a tokenizer as it is loaded from a folder."""
    byte_tokenizer().save_pretrained(folder)
    return tiny_model(**SIZES), AutoTokenizer.from_pretrained(folder, padding_side="left")


def test_a_conversation_goes_on_from_a_cache_that_was_on_disk(tmp_path):
    model, tokenizer = served(tmp_path / "model")
    settings = {"max_new_tokens": 9, "do_sample": False, "return_dict_in_generate": True}
    first = model.generate(**tokenizer("A first turn.", return_tensors="pt"), **settings)
    torch.save(cache_of(first), tmp_path / "cache.pt")
    whole = torch.cat([first.sequences, tokenizer(" A second one?", return_tensors="pt").input_ids], dim=1)
    again = torch.load(tmp_path / "cache.pt", weights_only=False)
    read = []
    model.get_input_embeddings().register_forward_pre_hook(
        lambda module, arguments: read.append(arguments[0].shape[1])
    )
    continued = model.generate(whole, **{CACHE_NAME: again}, **settings).sequences
    assert read[0] == whole.shape[1] - first.sequences.shape[1] + 1  # only what is new, and the last token before it
    assert torch.equal(continued, model.generate(whole, **settings).sequences)
