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
"""Context parallel: one sequence over the ranks of a group, each of which has some of its chunks.

Every rank is given the same whole rows of token ids, which are small, and makes the same chunk layout of them. It then
keeps a run of that layout's chunks, as many as every other rank, and runs the layers on those alone. What stands in
front of them is on other ranks, and each layer asks for it:

- from the rank to the left the keys and values of its last chunk, and the last inputs of each convolution;
- from the rank where the sequence began its first tokens, as sinks;
- from all earlier ranks what the latents have read there, one summary of statistics each, which merge.

None of it grows with the sequence. A sequence that ends before the cut contributes nothing to the next one: the
layout, which is the same on all ranks, says where sequences begin.

All ranks send the same messages in the same order, in the backward pass as well, whatever their rank: what a rank does
not need is masked rather than left out, as ranks that skip an exchange would let the others wait for ever.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.distributed.device_mesh import DeviceMesh

from .cache_name import CACHE_NAME
from .chunk_layout import GridLayout, Progress, chunks_of
from .layer_state import LayerState, map_tensors
from .prefix_statistics import EMPTY, Statistics, merge, merge_visible


# Which rank sends to which.
def to_next(sender: int, receiver: int) -> bool:
    return receiver == sender + 1


def to_later(sender: int, receiver: int) -> bool:
    return receiver > sender


def to_all(sender: int, receiver: int) -> bool:
    return True


def cp_mesh_of(mesh: DeviceMesh) -> DeviceMesh:
    """The one dimension over which sequences are split: the only one, or the one that accelerate names `cp`."""
    if mesh.ndim == 1:
        return mesh
    if "cp" not in (mesh.mesh_dim_names or ()):
        raise ValueError(
            f"The mesh has the dimensions {mesh.mesh_dim_names or mesh.ndim}, but must have one alone, or one of the "
            'name "cp", as that of accelerate\'s `ParallelismConfig(cp_size=...)` has. Pass one dimension of it, such '
            'as `mesh["cp"]`.'
        )
    return mesh["cp"]


class RankGroup:
    """The ranks that share each sequence, in its order."""

    def __init__(self, mesh: DeviceMesh):
        """
        Args:
            mesh: of one dimension, or with one that is named `cp`.

        Raises:
            `ValueError`: for another mesh.
        """
        mesh = cp_mesh_of(mesh)
        self.group, self.rank, self.size = mesh.get_group(), mesh.get_local_rank(), mesh.size()

    def exchange(self, tensor: torch.Tensor, sends: Callable[[int, int], bool]) -> torch.Tensor:
        """
        Send `tensor` to all ranks to which this one `sends`, and return what those sent that send to this one, in
        their order, `(X, ...)`. X is the same on all ranks: zeros stand for what a rank gets less than the last one.

        The backward pass sends each gradient back the same way.
        """
        # Here, for there are builds of PyTorch without it, and a checkpoint's code has to load in these, too.
        from torch.distributed._functional_collectives import all_to_all_single

        ranks, size = range(self.size), tensor.numel()
        receivers = [size * sends(self.rank, other) for other in ranks]
        senders = [size * sends(other, self.rank) for other in ranks]
        message = tensor.flatten().repeat(sum(map(bool, receivers)))
        received = all_to_all_single(message, senders, receivers, self.group)
        most = sum(sends(other, self.size - 1) for other in ranks)
        # A rank that gets nothing still has to take part in the backward: without a result it would not be asked to.
        received = torch.cat([received, received.new_zeros(most * size - received.numel())])
        return received.view(most, *tensor.shape)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over all ranks, on each of them."""
        return self.exchange(tensor, to_all).sum(0)

    def check_same(self, tokens: torch.Tensor) -> None:
        """
        Check that all ranks got the same `tokens`, ids `(B, T, 1)` or embeddings `(B, T, D)`. Waits for the device,
        once a forward.

        Raises:
            `ValueError`: on all ranks, if one of them got others.
        """
        numbers = tokens.detach().flatten().double()
        mixed = (numbers * torch.linspace(1, 2, numbers.numel(), device=tokens.device, dtype=torch.double)).sum()
        own = torch.stack([mixed.new_tensor(tokens.shape[0]), mixed.new_tensor(tokens.shape[1]), mixed])
        if (self.exchange(own, to_all) != own).any():
            raise ValueError(
                "The ranks that share a sequence were given different `input_ids`. All of a context parallel group "
                "have to get the same rows, whole: a sampler that gives each process other rows must give each "
                "group of processes other rows instead."
            )


class Shard(NamedTuple):
    """A rank's part of a layout, and what its layers ask of other ranks. R is 1 where all rows are alike."""

    ranks: RankGroup
    token_indices: torch.Tensor  # (B, n C), which of a row's tokens stands in each own slot; -1 for none
    first_rank: torch.Tensor  # (R,), where the sequence began that the first own chunk belongs to
    continues: torch.Tensor  # (R, n), chunks of that sequence

    def from_left(self, tensor: torch.Tensor) -> torch.Tensor:
        """Get what the rank to the left has of `tensor`; zeros on the first rank."""
        return self.ranks.exchange(tensor, to_next)[0]

    def from_first_rank(self, tensor: torch.Tensor) -> torch.Tensor:
        """Get for each row what the rank has where its sequence began: `(X, R, ...)`, any where that is this one."""
        earlier = self.ranks.exchange(tensor.movedim(1, 0), to_later)  # (P - 1, R, X, ...)
        first_rank = self.first_rank.clamp(max=self.ranks.size - 2).expand(tensor.shape[1])
        return earlier[first_rank, torch.arange(tensor.shape[1], device=tensor.device)].movedim(1, 0)

    def after_earlier_ranks(self, known: Statistics, total: Statistics) -> Statistics:
        """
        What the latents know at the start of every chunk, of all ranks' chunks, from what they know of this rank's.

        Args:
            known: `(R, n, H, M)` and `(R, n, H, M, d)`, at the start of every own chunk.
            total: `(R, H, M)` and `(R, H, M, d)`, behind the last own chunk, for later ranks.
        """
        summary = torch.cat([total.peak[..., None], total.total[..., None], total.out], dim=-1)  # (R, H, M, 2 + d)
        earlier = self.ranks.exchange(summary, to_later).movedim(0, 1)  # (R, P - 1, H, M, 2 + d)
        # The peak is a reference without gradient, as in a single process.
        spans = Statistics(earlier[..., 0].detach(), earlier[..., 1], earlier[..., 2:])
        order = torch.arange(self.ranks.size - 1, device=summary.device)
        visible = (order >= self.first_rank[:, None]) & (order < self.ranks.rank)  # (R, P - 1)
        before = merge_visible(spans, visible[:, None, None, None])  # (R, 1, H, M) and (R, 1, H, M, d)
        continues = self.continues[..., None, None]  # (R, n, 1, 1)
        before = Statistics(
            before.peak.where(continues, EMPTY), before.total * continues, before.out * continues[..., None]
        )
        return merge(before, known)

    def from_owner(self, progress: Progress, state_at: Callable[[Progress], LayerState]) -> LayerState:
        """Get each row's state from the rank that has the token behind which it stands. All ranks get all of them."""
        slots = self.token_indices.shape[1]
        owner = (progress.end - 1).clamp(min=0) // slots  # (B,)
        rows = torch.arange(owner.shape[0], device=owner.device)
        here = progress._replace(end=(progress.end - self.ranks.rank * slots).clamp(0, slots))
        return map_tensors(lambda tensor: self.ranks.exchange(tensor, to_all)[owner, rows], state_at(here))


def own_tokens(tokens: torch.Tensor, token_indices: torch.Tensor) -> torch.Tensor:
    """Pick the tokens of a rank's slots: `(B, T, ...) -> (B, n C, ...)`. A slot without one gets any, never read."""
    rows = torch.arange(tokens.shape[0], device=tokens.device)[:, None]
    return tokens[rows, token_indices.clamp(min=0)]


def shard_layout(layout: GridLayout, ranks: RankGroup, least_slots: int) -> GridLayout:
    """
    The own part of a layout of whole rows without a past. Its tokens are those that `own_tokens` picks.

    Every rank has equally many chunks, at least as many as hold `least_slots` tokens, as convolutions reach back no
    further than to the rank to the left. What that is more than the rows have stands empty behind their end.
    """
    rows, chunks, size = layout.grid_shape
    count = max(chunks_of(chunks, ranks.size), chunks_of(max(least_slots, 1), size))
    start = ranks.rank * count

    def own_chunks(grid: torch.Tensor) -> torch.Tensor:
        missing = count * ranks.size - chunks
        return torch.cat([grid, grid.new_zeros(grid.shape[0], missing, *grid.shape[2:])], dim=1)[:, start:][:, :count]

    device = layout.chunk_index.device
    order = torch.arange(1, layout.batch_shape[1] + 1, device=device).expand(layout.batch_shape)  # 0 is for no token
    token_indices = own_chunks(layout.to_slots(order)).flatten(1) - 1  # (B, n C)
    chunk_index = own_chunks(layout.chunk_index)  # (R or 1, n)
    place = torch.arange(count, device=device)
    # Chunks of the sequence that the first own chunk belongs to count on from its number.
    continues = (chunk_index == chunk_index[:, :1] + place).cumprod(1).bool()
    first_rank = (start - chunk_index[:, 0]) // count
    return GridLayout(
        (rows, count * size),
        (rows, count, size),
        chunk_index,
        sequence_ids=None if layout.sequence_ids is None else own_chunks(layout.sequence_ids),
        places=None if layout.places is None else own_chunks(layout.places),
        progress=layout.progress,
        shard=Shard(ranks, token_indices, first_rank, continues),
    )


def check_context_parallel(cache, output_attentions: bool | None) -> None:
    """Refuse what ranks that share sequences can't give: maps over all chunks, and a cache that goes back alone."""
    if output_attentions:
        raise ValueError(
            "`output_attentions` is True, but several ranks share each sequence, and the maps are of all of its "
            "tokens. Leave it out, or run the model in one process."
        )
    if any(getattr(layer, "record_past", False) for layer in getattr(cache, "layers", [])):
        raise ValueError(
            f"`{CACHE_NAME}` records what `crop` needs, but several ranks share each sequence: a rank that goes back "
            "into a prefill would wait for the others. Call `activate_past_recording()` after the prefill."
        )


def check_logits_to_keep(logits_to_keep, token_indices: torch.Tensor | None) -> None:
    """Refuse to count from the end of a row of which each rank has a part."""
    if token_indices is not None and (isinstance(logits_to_keep, torch.Tensor) or logits_to_keep != 0):
        raise ValueError(
            f"`logits_to_keep` is {logits_to_keep}, but several ranks share each sequence, and each returns the "
            "logits of its own tokens: leave it out, and pick by the `token_indices` of the output."
        )
