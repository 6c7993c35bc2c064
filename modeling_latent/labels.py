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
"""Labels: whether they fit what they are labels of, which of them count, and by what their loss is divided."""

import torch
from torch import nn

from .configuration_latent import LatentAttentionConfig
from .packing import real_before
from .tensor_checks import described, refuse, tensor_shape


def check_labels(labels, batch_shape: tuple[int, int]) -> None:
    """Check that there is the number of a class for each token."""
    if tensor_shape(labels) != tuple(batch_shape) or labels.dtype not in (torch.long, torch.uint8):
        raise ValueError(
            f"`labels` is {described(labels)} but must be torch.long of shape {tuple(batch_shape)}: for each token "
            "that has logits the number of a class, or -100 for none. Other types become so by `labels.long()`."
        )


def predictable(labels: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """`labels` `(B, T)` without that of each row's first token, which has nothing to be predicted from."""
    if attention_mask is None:
        return labels
    seen = attention_mask[:, -labels.shape[1] :].bool().cumsum(1)  # (B, T)
    return labels.masked_fill(seen <= 1, -100)


def labels_to_divide_by(num_items_in_batch, labels: torch.Tensor, kept: torch.Tensor):
    """
    By what to divide the summed loss. `Trainer` counts all `labels` `(B, T)` but those at a row's first place, which
    with left padding are more than are `kept`. A count of this batch alone is put right. One of several micro-batches
    stays as it is, for all tokens to weigh the same: how many labels the others keep is not known here.
    """
    counted, predicted = ((each[:, 1:] != -100).sum() for each in (labels, kept))
    items = torch.as_tensor(num_items_in_batch, device=labels.device)
    return torch.where(items == counted, predicted.clamp(min=1), items)


def next_labels(labels: torch.Tensor, shift_labels: torch.Tensor | None, attention_mask) -> torch.Tensor:
    """
    For each real token the label of the next one, `(B, T)`, -100 for padding, which several ranks that share the rows
    leave out. `shift_labels` are that already. Waits for the device where there is a mask.
    """
    valid = None if attention_mask is None else attention_mask[:, -labels.shape[1] :].bool()
    given = labels if shift_labels is None else shift_labels
    if valid is not None:
        refuse(
            ((given != -100) & ~valid).any(),
            f"`{'labels' if shift_labels is None else 'shift_labels'}` has classes where `attention_mask` is 0, but "
            "must be -100 there: padding is on none of the ranks that share the rows.",
        )
    if shift_labels is not None:
        return shift_labels
    after = None if valid is None else valid.flip(1)
    shifted = real_before(predictable(labels, attention_mask).flip(1), after, none=-100).flip(1)
    return shifted if valid is None else shifted.masked_fill(~valid, -100)


def check_labels_of_rows(labels, rows: int, config: LatentAttentionConfig) -> None:
    """Check that labels are of the type and size that the library's loss of sequence classification takes."""
    kind, dtype = config.problem_type, labels.dtype if isinstance(labels, torch.Tensor) else None
    is_float = dtype is not None and dtype.is_floating_point
    size, fits = rows * config.num_labels, is_float or kind == "regression" or config.num_labels == 1
    if kind == "single_label_classification" or (kind is None and config.num_labels > 1 and not is_float):
        size, fits = rows, dtype == torch.long
    if dtype is None or not fits or labels.numel() != size:
        raise ValueError(
            f"`labels` is {described(labels)}, but for `num_labels` {config.num_labels} and `problem_type` {kind!r} "
            f"must be torch.long of shape {(rows,)}, the number of a class for each row; or for several labels at "
            f"once, or a regression, floats of shape {(rows, config.num_labels)}."
        )


def part_of_mean(loss: torch.Tensor, labels: torch.Tensor, num_items_in_batch) -> torch.Tensor:
    """
    What the mean `loss` of these `labels` adds to the mean over all `num_items_in_batch`. `Trainer` leaves labels of
    -100 out of that number, which in a regression are values like others, so it is raised to the number of `labels`.
    """
    items = torch.as_tensor(num_items_in_batch, device=loss.device).clamp(min=labels.numel())
    return loss * labels.numel() / items


def check_places(rows: int, **positions) -> None:
    """Check that the places of an answer's start and end are integers, one for each row."""
    for name, places in positions.items():
        if tensor_shape(places) not in ((rows,), (rows, 1)) or places.dtype != torch.long:
            raise ValueError(
                f"`{name}` is {described(places)} but must be torch.long of shape {(rows,)}: for each row the place "
                "of a token."
            )


def check_answers(positions: tuple[torch.Tensor, ...], padding: torch.Tensor) -> None:
    """
    Check that no `positions`, `(B,)` each, are in the `padding` `(B, T)`, where the loss would be infinite. Those
    beyond the row don't count, and negative ones are read as 0, as the library's loss does. Waits for the device.
    """
    length = padding.shape[1]
    beyond = nn.functional.pad(padding, (0, 1))  # (B, T + 1)
    places = torch.stack([position.flatten().clamp(0, length) for position in positions], dim=1)  # (B, 2)
    refuse(
        beyond.gather(1, places).any(),
        "`start_positions` and `end_positions` must be those of real tokens, but some are in the padding, which never "
        "holds an answer. For a question without one take the row's first real token: 0, if you pad on the right.",
    )
