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
"""A device that computes on the CPU and refuses what a GPU refuses: tensors of two devices in one operation.

It takes the place that PyTorch has for a backend of one's own, for the whole process, so only a process of its own may
import this. Not here: storages (saving, `Tensor.data = …`), lists as indices, and speed.
"""

import torch
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend


NAME = "standin"
DEVICE_OF_HOST = torch.device("cpu")
aten = torch.ops.aten
TRANSFERS = {aten._to_copy.default, aten.copy_.default}
# Their second argument, the indices, may be on the CPU.
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
# They are told their size late, which the tensor that stands for the result would not hear of.
SIZED_LATE = {
    "arange": aten.arange.default,
    "arange.start": aten.arange.start,
    "arange.start_step": aten.arange.start_step,
}


class OnDevice(torch.Tensor):
    """Says that it is on the device; its values are those of `host`, on the CPU."""

    @staticmethod
    def __new__(cls, host: torch.Tensor):
        layout = {"strides": host.stride(), "storage_offset": host.storage_offset(), "dtype": host.dtype}
        return torch.Tensor._make_wrapper_subclass(cls, host.shape, **layout, device=torch.device(NAME, 0))

    def __init__(self, host: torch.Tensor):
        self.host = host

    def __repr__(self) -> str:
        return f"OnDevice({self.host})"

    def __deepcopy__(self, memo: dict):
        copied = OnDevice(self.host.clone())
        if isinstance(self, torch.nn.Parameter):
            copied = torch.nn.Parameter(copied, self.requires_grad)
        return memo.setdefault(id(self), copied)

    def tolist(self):
        return self.host.tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


def run(func, args, kwargs):
    """`func` on the CPU, its tensors again on the device if any argument was, or if it was asked for."""
    here = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, OnDevice)]
    if here and func not in TRANSFERS:
        refuse_the_cpu(func, args, kwargs)
    result = func(*tree_map(to_host, args), **tree_map(to_host, kwargs))
    if func is aten.copy_.default:
        return args[0]
    target = kwargs.get("device")
    if is_device(target) or (here and target is None):
        result = tree_map(lambda leaf: OnDevice(leaf) if isinstance(leaf, torch.Tensor) else leaf, result)
    is_new = not here or func in TRANSFERS
    return result if is_new else return_and_correct_aliasing(func, args, kwargs, result)


def refuse_the_cpu(func, args, kwargs) -> None:
    """As on a GPU, only a single number and indices of the CPU may stand beside tensors of the device."""
    if func in INDEXING and isinstance(args[0], OnDevice):
        args = (args[0], *args[2:])
    others = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor) and leaf.ndim]
    shapes = [tuple(other.shape) for other in others if not isinstance(other, OnDevice)]
    if shapes:
        raise RuntimeError(f"{func} got tensors on two devices, on the CPU of shapes {shapes}.")


def is_device(value) -> bool:
    return isinstance(value, torch.device) and value.type == NAME


def to_host(value):
    if isinstance(value, OnDevice):
        return value.host
    return DEVICE_OF_HOST if is_device(value) else value


def tensor_through_the_cpu(data, *, device=None, of_torch=torch.tensor, **kwargs):
    """`torch.tensor`, which fills memory without asking the backend."""
    made = of_torch(data, **kwargs)
    return made if device is None else made.to(device)


def register() -> list[torch.library.Library]:
    """What is returned has to be kept: without it, PyTorch forgets the operators."""
    _setup_privateuseone_for_python_backend(NAME)
    module = getattr(torch, NAME)
    module.get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]
    module._is_in_bad_fork, module.manual_seed_all = lambda: False, lambda seed: None
    torch.tensor = tensor_through_the_cpu
    torch.__future__.set_swap_module_params_on_conversion(True)  # `Module.to` may change the class of parameters
    fallback, operators = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    fallback.fallback(lambda func, *args, **kwargs: run(func, args, kwargs), "PrivateUse1")
    for name, func in SIZED_LATE.items():
        operators.impl(name, lambda *args, func=func, **kwargs: run(func, args, kwargs), "PrivateUse1")
    return [fallback, operators]


LIBRARIES = register()
