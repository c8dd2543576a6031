"""A memory of fakes, so that a discriminator does not forget what it once saw through (Shrivastava et al., CVPR 2017)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ReplayPool(nn.Module):
    """Keeps up to `capacity` fakes; in training every fake is exchanged for a stored one with probability ½.

    The memory travels with `state_dict` and `to`.

    Args:
        shape: of one fake, such as `(17, 3)`.
        capacity: how many are kept.

    Raises:
        ValueError: a capacity below one.
    """

    stored: Tensor
    count: Tensor

    def __init__(self, shape: Sequence[int], capacity: int = 4096):
        super().__init__()
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, got {capacity}")
        self.register_buffer("stored", torch.zeros(capacity, *shape))
        self.register_buffer("count", torch.tensor(0))

    def forward(self, fakes: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """What the discriminator is to see instead of `fakes (n, *shape)`, detached; until the pool is full, the fakes themselves.

        Raises:
            ValueError: fakes of another shape.
        """
        if fakes.shape[1:] != self.stored.shape[1:]:
            raise ValueError(f"fakes must have shape (n, {', '.join(map(str, self.stored.shape[1:]))}), got {tuple(fakes.shape)}")
        return torch.cat([self._exchange(chunk, generator) for chunk in fakes.detach().split(len(self.stored))])

    def _exchange(self, fakes: Tensor, generator: torch.Generator | None) -> Tensor:
        fakes = fakes.clone()
        capacity, count = len(self.stored), int(self.count)
        new = min(len(fakes), capacity - count)
        self.stored[count : count + new] = fakes[:new].to(self.stored)
        self.count += new

        rest = fakes[new:]
        device = fakes.device if generator is None else generator.device
        swapped = (torch.rand(len(rest), generator=generator, device=device) < 0.5).to(self.stored.device)
        places = torch.randperm(capacity, generator=generator, device=device)[: len(rest)].to(self.stored.device)[swapped]
        old = self.stored[places].to(rest)
        self.stored[places] = rest[swapped].to(self.stored)
        rest[swapped] = old
        return fakes
