"""Where a pipeline's noise comes from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class NoiseSource:
    """Start and step noise per hypothesis: given, or drawn from one random stream per clip, hypothesis and step.

    A clip's first hypotheses do not depend on how many there are.

    Args:
        given: `(draws, batch, count, frames, joints, channels)`, or None.
        generator: where the seeds of the streams come from; a list has one for each clip.
        batch, count: clips and hypotheses.
        shape: `(frames, joints, channels)`.
        device: of the noise.
        held: one draw for all frames of a clip, for networks that see every frame for itself: hypotheses then do not flicker.
    """

    def __init__(
        self, given: Tensor | None, generator: Any, batch: int, count: int, shape: tuple[int, ...], device: torch.device, held: bool = False
    ):
        self.given, self.shape, self.device, self.count, self.held = given, shape, device, count, held
        if isinstance(generator, (list, tuple)):
            if len(generator) != batch or not all(isinstance(g, torch.Generator) for g in generator):
                raise ValueError(f"generator must be one torch.Generator or one per clip ({batch}), got {generator!r}")
            self.seeds = [seed for g in generator for seed in _seeds(1, g)]
        elif generator is None or isinstance(generator, torch.Generator):
            self.seeds = _seeds(batch, generator)
        else:
            raise ValueError(f"generator must be one torch.Generator or one per clip ({batch}), got {generator!r}")

    def draw(self, draw: int, members: slice) -> Tensor:
        """Noise number `draw` of some hypotheses, `(batch, members, *shape)`."""
        if self.given is not None and draw < len(self.given):
            return self._padded(self.given[draw][:, members])
        shape = (1, *self.shape[1:]) if self.held else self.shape
        rows = torch.stack([torch.randn(shape, generator=g) for g in self.streams(draw, members)])
        return rows.unflatten(0, (len(self.seeds), -1)).to(self.device).expand(-1, -1, *self.shape)

    def streams(self, draw: int, members: slice) -> list[torch.Generator]:
        """Random streams of draw number `draw`, clip-major. Each draw has its own, so nothing has to be kept between steps."""
        numbers = [1000 * hypothesis + draw for hypothesis in range(self.count)[members]]  # a call has at most 1000 draws
        return [torch.Generator().manual_seed((seed + number) % 2**32) for seed in self.seeds for number in numbers]

    def _padded(self, noise: Tensor) -> Tensor:
        """Noise for a clip shorter than the window: the padding repeats the given frames in order."""
        if noise.shape[2] == self.shape[0]:
            return noise
        return noise[:, :, torch.arange(self.shape[0], device=noise.device) % noise.shape[2]]


def _seeds(count: int, generator: torch.Generator | None) -> list[int]:
    device = "cpu" if generator is None else generator.device
    return torch.randint(2**32, (count,), generator=generator, device=device).tolist()  # PyTorch's generator has 32-bit seeds
