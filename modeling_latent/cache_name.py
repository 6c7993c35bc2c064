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
What the library calls the cache: `cache` since transformers 5.24, `past_key_values` before.

A forward that knew one of the two would take the other for one of the many arguments that it only passes on, and read
its tokens as if nothing had come before them. So it takes both, and returns what the library looks for.
"""

import warnings
from dataclasses import fields

import torch
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast


CACHE_NAME = "cache" if "cache" in {field.name for field in fields(BaseModelOutputWithPast)} else "past_key_values"


def cache_of(outputs) -> Cache | None:
    return getattr(outputs, CACHE_NAME)


def one_cache(cache: Cache | None, past_key_values: Cache | None) -> Cache | None:
    """
    Raises:
        `ValueError`: for two different ones.
    """
    if past_key_values is None:
        return cache
    if cache is not None and cache is not past_key_values:
        raise ValueError("`cache` and `past_key_values` are two names of the same argument: pass one of them.")
    if CACHE_NAME == "cache" and not torch.compiler.is_compiling():
        warnings.warn(
            "`past_key_values` is deprecated: pass `cache`, its name since transformers 5.24.", FutureWarning, 3
        )
    return past_key_values


def refuse_other_names(arguments: dict) -> None:
    """
    Of all that a forward passes on without looking.

    Raises:
        `ValueError`: for a cache among it, under a name that no version has given it yet.
    """
    for name, value in arguments.items():
        if isinstance(value, Cache):
            raise ValueError(
                f"`{name}` is a cache, but its name is `{CACHE_NAME}`: under another it would be ignored."
            )
