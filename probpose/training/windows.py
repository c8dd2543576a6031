"""What trainings on rendered windows have in common: the windows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from probpose.data.dataset import TrainingWindows
from probpose.pipelines import fill_missing

from .loop import TrainingLoop, split_clips, windows_for


class WindowLoop(TrainingLoop):
    """A training whose batches are windows of motion capture, see `TrainingWindows`."""

    training_windows: TrainingWindows
    validation_windows: TrainingWindows | None

    def set_windows(
        self, network: Any, section: str, name: str, window: int | None, short_window_share: float = 0.0,
        any_length: bool | None = None, axes: str | None = None,
    ) -> None:  # fmt: skip
        """Make the windows of the recipe's data as a network of this configuration takes them.

        Args:
            network: the network's config.
            section: of the recipe that it was built by.
            name: class of the network whose windows they are.
            window: frames that it sees at once; None: every frame for itself.
            short_window_share: of the recipe.
            any_length: whether it takes shorter windows, too; None: as `network` says.
            axes: of the motions that a network without 2D input sees, "camera" or "world".

        Raises:
            ValueError: windows that the network could not take; the message names the fields.
        """
        data, optim = self.config.data, self.config.optim
        clips, held_out = split_clips(data)
        num_frames = data.num_frames or window or 1
        skeletons = (network.skeleton, network.get("input_skeleton") or network.skeleton, network.num_joints)
        any_length = window is None or (network.get("any_length") if any_length is None else any_length)
        problems = [
            (
                skeletons != ("h36m_17", "h36m_17", 17),
                f"{section}.config: training windows hold the 17 joints of h36m_17, but the network is made for {skeletons}",
            ),
            (
                axes is None and network.canonical_camera is None,
                f"{section}.config.canonical_camera: training windows need the [fx, fy, cx, cy] of a camera, got null",
            ),
            (
                network.fps not in (None, clips.fps),
                f"{section}.config.fps: {network.fps}, but the clips of data.paths have {clips.fps:g} frames per second",
            ),
            (
                window is not None and num_frames > window,
                f"data.num_frames: {num_frames} frames are more than this {name}'s window of {window}",
            ),
            (
                not any_length and (num_frames != window or short_window_share > 0),
                f"data.num_frames, optim.short_window_share: this {name} takes windows of {window} frames only",
            ),
        ]
        for wrong, message in problems:
            if wrong:
                raise ValueError(message)
        seen = num_frames, network.get("canonical_camera"), axes or "camera"
        self.training_windows = windows_for(data, clips, optim.steps * optim.batch_size, self.config.seed, *seen)
        self.validation_windows = None
        if held_out is not None:
            data, count, seed = data.model_copy(update={"source_weights": None}), self.config.evaluation_windows, self.config.seed + 1
            self.validation_windows = windows_for(data, held_out, count, seed, *seen)

    def batches(self) -> Iterable[dict[str, Tensor]]:
        optim, workers = self.config.optim, self.config.data.num_workers
        remaining = Subset(self.training_windows, range(self.step * optim.batch_size, optim.steps * optim.batch_size))
        loader = DataLoader(
            remaining,
            batch_size=optim.batch_size,
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            worker_init_fn=_one_thread,
            collate_fn=_collate,
        )
        return self.accelerator.prepare(loader)

    @staticmethod
    def shortened(batch: dict[str, Tensor], share: float, generator: torch.Generator, evenly: bool = True) -> dict[str, Tensor]:
        """In a share of the steps, windows cut to a random length: evenly distributed, or its logarithm (single frames are then common)."""
        if torch.rand((), generator=generator) >= share:
            return batch
        longest = batch["pose"].shape[1]
        if evenly:
            length = int(torch.randint(1, longest + 1, (), generator=generator))
        else:
            length = min(longest, int((longest + 1) ** torch.rand((), generator=generator).item()))
        return {key: value[:, :length] for key, value in batch.items()}


def rendered(windows: TrainingWindows, rows: list[int]) -> dict[str, Tensor]:
    """Windows as one batch, unobserved keypoints being filled in as a pipeline does it."""
    return observed_only(windows.render(rows))


def observed_only(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """A batch whose unobserved keypoints are filled in from the observed ones: a network must not learn from what it will not see."""
    if "keypoints_2d" not in batch:  # motions in world axes, at which nobody looks
        return batch
    observed = (batch["confidence"] > 0)[..., None]
    keypoints = fill_missing(torch.where(observed, batch["keypoints_2d"], torch.nan))
    return {**batch, "keypoints_2d": torch.nan_to_num(keypoints)}  # a window without any observation


def _collate(items: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return observed_only({key: torch.stack([item[key] for item in items]) for key in items[0]})


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)
