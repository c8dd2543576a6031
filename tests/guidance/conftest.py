"""A walk as guidance sees it, cameras around it, and what every energy promises of its curvature."""

from collections.abc import Callable

import pytest
import torch

from probpose.geometry import Camera


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(name="draw")
def _draw() -> Callable[..., torch.Tensor]:
    """`draw(*shape, seed=)`: standard normal, float64."""
    return draw


@pytest.fixture
def make_motion(walk) -> Callable[..., torch.Tensor]:
    """`make_motion(*shape, frames=)`: walks `(*shape, frames, 17, 3)`, each a little different; the trajectory in the root's place."""

    def make(*shape: int, frames: int = 4, noise: float = 0.05, seed: int = 0) -> torch.Tensor:
        joints = torch.from_numpy(walk(frames, seed=seed)).double()
        joints[:, 1:] -= joints[:, :1]
        return joints + noise * draw(*shape, frames, 17, 3, seed=seed)

    return make


@pytest.fixture
def far_camera() -> Camera:
    """So far away and with so long a lens that it sees x and y as they are."""
    distance = 1e7
    focal = torch.full((2,), distance, dtype=torch.float64)
    translation = torch.tensor([0.0, 0.0, distance], dtype=torch.float64)
    return Camera(focal, torch.zeros(2).double(), rotation=torch.eye(3).double(), translation=translation, convention="opencv")


@pytest.fixture
def check_majoriser() -> Callable[..., None]:
    """`check_majoriser(energy, motion)`: along random steps, the energy stays below its expansion, and not absurdly far below."""

    def check(energy, motion, size=1e-3, tolerance=1e-3, tightness=0.05):
        expansion = energy.expand(motion)
        assert expansion.value.shape == motion.shape[:-3]
        assert expansion.gradient.shape == motion.shape
        assert expansion.curvature.shape == (*motion.shape, 3)
        torch.testing.assert_close(expansion.curvature, expansion.curvature.mT)
        assert torch.linalg.eigvalsh(expansion.curvature).min() > -1e-9 * expansion.curvature.abs().max()
        random = [draw(*motion.shape, seed=seed) for seed in range(20)]
        together = [d[..., :1, :1, :].expand_as(motion) for d in random[:5]]
        alternating = [(-1.0) ** torch.arange(motion.shape[-3])[:, None, None] * d for d in together]
        parted = [torch.cat([-d[..., :1, :], d[..., 1:, :]], dim=-2) for d in together]  # the root against all others
        shares = []
        for step in [size * d for d in (*random, *together, *alternating, *parted)]:
            risen = energy(motion + step) - expansion.value - (expansion.gradient * step).sum((-1, -2, -3))
            bound = torch.einsum("...i,...ij,...j->...", step, expansion.curvature, step).sum((-1, -2)) / 2
            assert (risen <= (1 + tolerance) * bound + 1e-9 * (1 + expansion.value)).all(), (risen, bound)
            shares.append((risen / bound.clamp_min(1e-12)).max())
        assert max(shares) > tightness

    return check
