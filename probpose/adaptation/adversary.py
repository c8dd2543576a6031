"""The game between a pose augmentor and its two judges, one step at a time (PoseAug, arXiv 2105.02465; PoseDA, arXiv 2303.16456, §3.3).

One judge anchors the bent poses to the source's: bones must stand to each other as people's bones do. The other anchors what the camera
would see of the finished poses to the target's 2D keypoints.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from probpose.skeletons import get_skeleton

from .augmentor import AugmentedPose, PoseAugmentor
from .discriminators import KeypointDiscriminator, StructureDiscriminator
from .losses import bend_loss, discriminator_loss, generator_loss, rectified_loss
from .pool import ReplayPool

_FRAMES_APART = 6  # neighbouring frames say the same
_TOO_CERTAIN = 0.98  # share of right verdicts above which a judge teaches nothing


class PoseAdversary(nn.Module):
    """Augmentor, judges, their memories and optimisers; `state_dict` of the modules and `optimiser_state` are all of its state.

    Args:
        skeleton: name of the joint order.
        learning_rate: of the augmentor (Adam; published 1e-4); the judges learn four times as fast, and before it.
        head_start: turns that the judges have before the augmentor begins: one that listens to judges who know nothing goes astray.
        output_gain: of the augmentor's last layers; small, so that it starts from the source's own poses.
        weight_2d, weight_3d, weight_limits: of the judges and of the limits to bends, lengths (published 1, 6 and 3) and turns (ours).
    """

    def __init__(
        self,
        skeleton: str = "h36m_17",
        learning_rate: float = 1e-4,
        head_start: int = 60,
        output_gain: float = 0.02,
        weight_2d: float = 1.0,
        weight_3d: float = 6.0,
        weight_limits: float = 3.0,
    ):
        super().__init__()
        self.augmentor = PoseAugmentor(skeleton, output_gain=output_gain)
        self.structure = StructureDiscriminator(skeleton)
        self.keypoints = KeypointDiscriminator(skeleton, centre=True)
        joints = get_skeleton(skeleton).num_joints
        self.bent_pool, self.seen_pool = ReplayPool((joints, 3)), ReplayPool((joints, 2))
        self.register_buffer("certainty", torch.tensor(0.5))
        self.register_buffer("turns", torch.tensor(0))
        self.weights, self.head_start = (weight_2d, weight_3d, weight_limits), head_start
        judges = [*self.structure.parameters(), *self.keypoints.parameters()]
        rates = (self.augmentor.parameters(), learning_rate), (judges, 4 * learning_rate)
        self.optimisers = [torch.optim.Adam(parameters, rate) for parameters, rate in rates]

    def step(
        self, pose: Tensor, target_2d: Tensor, view: Callable[[Tensor], Tensor], generator: torch.Generator | None = None
    ) -> AugmentedPose:
        """One turn of the augmentor, and one of the judges.

        Args:
            pose: source clips `(clips, frames, joints, 3)`, metres, relative to the root.
            target_2d: fully observed poses of the target `(any, joints, 2)`, in the unit of `view`.
            view: places poses in front of the target's cameras and projects them, `(clips, frames, joints, 2)`.
            generator: source of all randomness.

        Returns:
            The augmented clips, detached.
        """
        self.train()
        augmented = self.augmentor(pose, generator=generator)
        seen = view(augmented.pose)[:, ::_FRAMES_APART].flatten(0, 1)
        bent = augmented.bent[:, ::_FRAMES_APART].flatten(0, 1)
        if self.turns >= self.head_start and self.certainty < _TOO_CERTAIN:
            weight_2d, weight_3d, weight_limits = self.weights
            limits = bend_loss(augmented.bend.flatten(0, -2)) + rectified_loss(augmented.ratio) + turn_loss(augmented.rotation)
            loss = weight_2d * generator_loss(self.keypoints(seen)) + weight_3d * generator_loss(self.structure(bent))
            self._update(0, loss + weight_limits * limits)
        self.turns += 1
        if len(target_2d):
            real = pose[:, ::_FRAMES_APART].flatten(0, 1)
            verdicts = [
                (self.keypoints(target_2d), self.keypoints(self.seen_pool(seen, generator))),
                (self.structure(real), self.structure(self.bent_pool(bent, generator))),
            ]
            self._update(1, sum(discriminator_loss(*pair) for pair in verdicts))
            right = torch.stack([((real > 0.5).float().mean() + (fake < 0.5).float().mean()) / 2 for real, fake in verdicts]).max()
            self.certainty.lerp_(right, 0.02)
        return AugmentedPose(*(value.detach() for value in augmented))

    def optimiser_state(self) -> list[dict]:
        return [optimiser.state_dict() for optimiser in self.optimisers]

    def load_optimiser_state(self, states: list[dict]) -> None:
        for optimiser, state in zip(self.optimisers, states):
            optimiser.load_state_dict(state)

    def _update(self, which: int, loss: Tensor) -> None:
        optimiser = self.optimisers[which]
        self.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([p for group in optimiser.param_groups for p in group["params"]], 1.0)
        optimiser.step()


def turn_loss(rotation: Tensor, limit: float = 30.0) -> Tensor:
    """Keeps turns `(..., 3, 3)` small: the squared 1 - cos of those beyond `limit` degrees, mean."""
    versine = (3 - rotation.diagonal(dim1=-2, dim2=-1).sum(-1)) / 2
    return rectified_loss(versine, 1 - math.cos(math.radians(limit)))
