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
"""How a check looks at a tensor, and how its message describes one."""

import torch
from transformers.utils.import_utils import is_tracing


def tensor_shape(value) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, torch.Tensor) else None


def shape_of(value) -> str:
    return f"of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else f"of type {type(value).__name__}"


def described(value) -> str:
    return f"{value.dtype} {shape_of(value)}" if isinstance(value, torch.Tensor) else shape_of(value)


def refuse(wrong: torch.Tensor, message: str) -> None:
    """`ValueError` if a condition on the device holds, for which it waits. A compiled graph fails without waiting."""
    if is_tracing(wrong):
        torch._assert_async(~wrong, message)
    elif wrong:
        raise ValueError(message)
