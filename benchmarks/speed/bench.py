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
"""One configuration and its peers on one device, and what has been measured of them."""

import json
from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from benchmarks import peers
from benchmarks.peers import cache_name_of
from modeling_latent import LatentAttentionConfig

from .models import FULL, OURS


SEED = 0


@dataclass
class Bench:
    """
    Models on one device, and the result that the measures of them fill.

    Args:
        configs: of the models, by name.
        seconds: that all rounds of one measure at one length may take, beyond which no further round starts.
        limit: seconds of one run, above which a model is left out at greater lengths.
        result: what the measures fill.
        save: called after every point.
        too_large: measures, models and lengths that need more memory than the machine of the tables has.
    """

    configs: dict[str, PreTrainedConfig]
    device: str
    seconds: float
    limit: float
    result: dict
    save: Callable = lambda: None
    too_large: frozenset[tuple[str, str, int]] = frozenset()

    @property
    def dtype(self) -> torch.dtype:
        return dtype_of(self.device)

    def model(self, name: str) -> PreTrainedModel:
        return make_model(self.configs[name], self.device, self.dtype)

    def token_ids(self, *shape: int) -> torch.Tensor:
        return random_ids(self.configs[OURS], self.device, *shape)

    def note(self, measure: str, length: int, points: dict[str, dict]) -> None:
        for name, point in points.items():
            self.result.setdefault(measure, {}).setdefault(name, {})[str(length)] = point
            self.forget_left_out(measure, length, name)
            print(f"{measure}, {name}, {length}: {json.dumps(point)}", flush=True)
        self.save()

    def forget_left_out(self, measure: str, length: int, name: str) -> None:
        """What an earlier run of the same part said."""
        place = {"measure": measure, "model": name, "length": length}
        left_out = self.result.get("left_out", [])
        self.result["left_out"] = [entry for entry in left_out if not place.items() <= entry.items()]

    def leave_out(self, measure: str, length: int, name: str, why: str) -> None:
        self.forget_left_out(measure, length, name)
        self.result["left_out"].append({"measure": measure, "model": name, "length": length, "why": why})

    def names_at(self, measure: str, length: int, few: tuple[int, ...]) -> list[str]:
        """Ours and Llama at every length, the other peers at `few`, and none for which the limit is exceeded."""
        names = []
        for name in self.configs:
            points = self.result.get(measure, {}).get(name, {}).items()
            slowest = max((point["seconds"] for at, point in points if int(at) < length), default=0)
            if name not in (OURS, FULL) and length not in few:
                self.leave_out(measure, length, name, "only Llama is measured at every length")
            elif (measure, name, length) in self.too_large:
                self.leave_out(measure, length, name, "out of memory")
            elif slowest > self.limit:
                why = f"{slowest:.0f} s at a smaller length, above the limit of {self.limit:.0f} s"
                self.leave_out(measure, length, name, why)
            else:
                names.append(name)
        return names


def dtype_of(device: str) -> torch.dtype:
    return torch.bfloat16 if device == "cuda" else torch.float32


def make_model(config: PreTrainedConfig, device: str, dtype: torch.dtype) -> PreTrainedModel:
    torch.manual_seed(SEED)
    with torch.device(device):
        return peers.make_model(config).to(dtype).eval()


def random_ids(config: LatentAttentionConfig, device: str, *shape: int) -> torch.Tensor:
    return torch.randint(config.vocab_size, shape, generator=torch.Generator().manual_seed(SEED)).to(device)


@torch.no_grad()
def forward(model: PreTrainedModel, input_ids: torch.Tensor, cache=None, **kwargs):
    """Run the model on `(B, T)` tokens; returns the logits of the last one, and the cache."""
    name = cache_name_of(model)
    outputs = model(input_ids, **{name: cache}, use_cache=True, logits_to_keep=1, **kwargs)
    return outputs.logits, outputs[name]
