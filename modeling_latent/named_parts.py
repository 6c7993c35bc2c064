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
"""Make named tuples that can be rebuilt by code that only knows plain tuples."""

import functools


def made_like_a_tuple(named_tuple: type) -> type:
    """
    Let `named_tuple` be made from one iterable of its parts as well, as `tuple` is.

    The library's exporters change the tensors of a cache by `type(parts)(changed)` wherever they meet a tuple, with
    `changed` a generator. So every class of named tuples that a state is made of needs this.
    """
    make = named_tuple.__new__

    @functools.wraps(make)
    def new(cls, *parts, **named):
        return make(cls, *(parts[0] if len(parts) == 1 and not named else parts), **named)

    named_tuple.__new__ = new
    return named_tuple
