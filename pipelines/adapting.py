"""Adapting a denoiser to a new scene from 2D keypoints: what `PoSynDAPipeline.adapt` does, round by round.

A round looks at the target first: the teacher (the moving average of the adapter) lifts it, which gives the build of its people and, where
the hypotheses reproject, pseudo-labels. Then the adapter is trained on source poses that were made to look like the target's (their build,
where they stand, what an adversary thinks of them, a detector's errors) and on the pseudo-labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor
from tqdm.auto import tqdm

from probpose.adaptation import (
    Build,
    PoseAdversary,
    anatomy,
    best_hypothesis_composite,
    body_size,
    change_build,
    fit_build,
    global_position_alignment,
    plausible_depth,
)
from probpose.calibration import coverage_curve, ece_of_curve
from probpose.data.augmentation import DetectorNoise, WindowRandom
from probpose.data.bridge import TargetTrack
from probpose.files import replacing
from probpose.geometry import Camera, reprojection_error, root_of_hypotheses
from probpose.shards import seed_of
from probpose.skeletons import bone_lengths, conversion_matrix

from .pipeline_d3dp import SamplerSettings
from .pipeline_probpose import fill_missing
from .windows import cut_windows, window_starts

_NEAREST = 0.5  # metres; nothing is projected that is nearer
_LEAST_CONFIDENCE = 0.3
_FAR = 0.5  # metres; what reprojects farther off is as wrong as can be
_FRAMES_OF_BUILD = 3  # every third frame of a window tells the build


@dataclass(frozen=True)
class AdaptationSettings:
    """What an adaptation does, and for how long.

    Args:
        alignment: source poses stand where target people stand (global position alignment, PoseDA).
        augmentation: source poses are bent, stretched and turned by an adversarial augmentor (local pose augmentation, PoseDA).
        build: source poses get the build of the target's people (see `probpose.adaptation.fit_build`).
        pseudo_labels: the teacher's hypotheses that reproject best are labels of the target (teacher and student, PoSynDA). Off by default:
            they confirm what the teacher is wrong about, and measured worse.
        rounds: at most so many looks at the target.
        patience: rounds without a better `criterion` after which it stops.
        steps: optimiser steps in each round.
        batch_size: source windows in each step; half as many target windows come on top where there are pseudo-labels.
        learning_rate: AdamW's, with warm-up, falling to a twentieth along a cosine.
        rank: of the adapter; None trains all weights.
        momentum: of the teacher.
        num_hypotheses: that the teacher draws.
        label_error: metres at the person's distance by which the keypoint of a pseudo-label may reproject off.
        label_weight, reprojection_weight: of the distance to pseudo-labels and of the students' own reprojection, against the source loss.
        torso_variation, limb_variation: standard deviations of builds about the fitted one, in metres and of the lengths' logarithm.
        label_windows: target windows that the teacher looks at in a round.
        held_out: share of the target that only the criterion sees.
        warm_up: steps that the augmentor trains alone, before the first round.

    Raises:
        ValueError: a number outside its range.
    """

    alignment: bool = True
    augmentation: bool = True
    build: bool = True
    pseudo_labels: bool = False
    rounds: int = 6
    patience: int = 3
    steps: int = 60
    batch_size: int = 64
    learning_rate: float = 1e-3
    rank: int | None = 8
    momentum: float = 0.98
    num_hypotheses: int = 5
    label_error: float = 0.05
    label_weight: float = 0.15
    reprojection_weight: float = 0.0
    torso_variation: float = 0.02
    limb_variation: float = 0.06
    label_windows: int = 256
    held_out: float = 0.15
    warm_up: int = 120

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(field.default, bool):
                fine, allowed = isinstance(value, bool), "True or False"
            elif field.name == "rank":
                fine = value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 1)
                allowed = "None or at least 1"
            elif isinstance(field.default, int):
                least = 0 if field.name == "warm_up" else 2 if field.name == "batch_size" else 1
                fine, allowed = isinstance(value, int) and not isinstance(value, bool) and value >= least, f"an integer of at least {least}"
            else:
                bounded = field.name in ("momentum", "held_out")
                allowed = "in 0..1, below 1" if bounded else "a number of at least 0"
                fine = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < (1 if bounded else math.inf)
            if not fine:
                raise ValueError(f"{field.name} must be {allowed}, got {value!r}")


class SourceWindows(Protocol):
    """Labelled motions in front of cameras: `probpose.data.TrainingWindows`, or `SourcePoses`."""

    def render(self, indices: list[int]) -> dict[str, Tensor]:
        """`pose (windows, frames, joints, 3)` relative to the root, `root (windows, frames, 3)`, metres, camera axes."""


class SourcePoses:
    """Windows of absolute poses `(windows, frames, joints, 3)`, metres, camera axes (see `probpose.data.source_motions`)."""

    def __init__(self, poses: Tensor, root_index: int = 0):
        self.poses, self.root_index = poses.float(), root_index

    def render(self, indices: list[int]) -> dict[str, Tensor]:
        order = torch.as_tensor([seed_of(0, str(index)) % len(self.poses) for index in indices])
        poses = self.poses[order]
        root = poses[:, :, self.root_index]
        return {"pose": poses - root[:, :, None], "root": root}


@dataclass(frozen=True)
class TargetWindows:
    """The target as the network sees it; there is no 3D in it.

    Args:
        keypoints_2d: `(windows, frames, joints, 2)`, NaN = not observed.
        confidence: `(windows, frames, joints)`.
        focal, centre: of each window's camera in the keypoints' unit, `(windows, 2)`.
        fps: frame rate.
    """

    keypoints_2d: Tensor
    confidence: Tensor
    focal: Tensor
    centre: Tensor
    fps: float

    def __len__(self) -> int:
        return len(self.keypoints_2d)

    @property
    def camera(self) -> Camera:
        return Camera(self.focal, self.centre, slope_limit=math.inf)

    def __getitem__(self, rows: Tensor | slice) -> TargetWindows:
        return TargetWindows(self.keypoints_2d[rows], self.confidence[rows], self.focal[rows], self.centre[rows], self.fps)

    def to(self, device: torch.device) -> TargetWindows:
        return TargetWindows(*(value.to(device) for value in (self.keypoints_2d, self.confidence, self.focal, self.centre)), self.fps)

    @property
    def filled(self) -> Tensor:
        """Keypoints as a network takes them: unobserved ones filled in."""
        return torch.nan_to_num(fill_missing(self.keypoints_2d))

    @classmethod
    def of_tracks(cls, pipe: Any, tracks: Sequence[TargetTrack]) -> TargetWindows:
        """All windows of the tracks in which somebody is seen.

        Raises:
            ValueError: there is none.
        """
        length, rows = pipe.denoiser.config.num_frames, []
        for track in tracks:
            confidence = torch.where(track.keypoints_2d.isfinite().all(-1), track.confidence, 0.0)
            points = torch.where((confidence > 0)[..., None], track.keypoints_2d, torch.nan)
            network = pipe.to_network(points[None], track.camera, track.camera.image_size)[0]
            starts = window_starts(len(network), length)
            lens = pipe.network_camera(track.camera)
            windows = [cut_windows(value, starts, length, 0) for value in (network, confidence)]
            rows.append([*windows, *(value.expand(len(starts), 2) for value in (lens.focal, lens.centre))])
        columns = [torch.cat(values) for values in zip(*rows)]
        seen = columns[1] > _LEAST_CONFIDENCE
        shown = (seen.sum(-1) >= 4).float().mean(-1) >= 0.5
        shown &= seen[..., pipe.root_index].any(-1) & seen[:, ::_FRAMES_OF_BUILD].any(-1).any(-1)
        if not shown.any():
            raise ValueError(f"none of {len(shown)} windows of the target shows a person and the root joint for half of its frames")
        return cls(*(value[shown] for value in columns), tracks[0].fps)

    def split(self, held_out: float) -> tuple[TargetWindows, TargetWindows]:
        """To adapt to, and to judge by: blocks of neighbouring windows; all of them for both where there are too few."""
        period = max(2, round(1 / held_out)) if held_out else len(self) + 1
        apart = torch.arange(len(self)) // 8 % period == period - 1
        return (self[~apart], self[apart]) if apart.any() and not apart.all() else (self, self)


class Adaptation:
    """One run of adaptation.

    Args:
        pipe: a pipeline that samples as D3DP does; its denoiser gets the adapter. Everything else stays.
        target: what the new scene shows.
        source: labelled motions.
        settings: what is done.
        adapter_name: of the adapter, new.
        seed: of all randomness.

    Raises:
        ValueError: a denoiser that cannot be trained in this way.
    """

    def __init__(
        self, pipe: Any, target: TargetWindows, source: SourceWindows, settings: AdaptationSettings, adapter_name: str, seed: int = 0
    ):
        self.pipe, self.settings, self.source, self.adapter_name, self.seed = pipe, settings, source, adapter_name, seed
        self.device = pipe.device
        self.target, self.judged = (part.to(self.device) for part in target.split(settings.held_out))
        self.denoiser, self.scheduler, self.skeleton = pipe.denoiser, pipe.scheduler, pipe.skeleton
        self.sampler = SamplerSettings(num_hypotheses=settings.num_hypotheses, num_inference_steps=2, flip=False, share_first_step=True)
        self.detector = DetectorNoise()
        self.order = _human36m_order(self.skeleton)
        self.round = self.drawn = 0
        self.history: list[dict[str, float]] = []
        self.build = Build(*(value.to(self.device) for value in Build.unchanged(self.skeleton)))
        self.parameters = self._trainable()
        self.optimiser = torch.optim.AdamW(self.parameters, settings.learning_rate, weight_decay=0.0)
        self.teacher = EMAModel(self.parameters, decay=settings.momentum, use_ema_warmup=True, power=3 / 4)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.adversary = PoseAdversary(self.skeleton).to(self.device) if settings.augmentation else None
        self.start = [p.detach().clone() for p in self.parameters]
        self.best: list[Tensor] = self.start

    def _trainable(self) -> list[Tensor]:
        rank, self.active = self.settings.rank, self.denoiser.active_adapters()
        if rank is None:
            self.denoiser.requires_grad_(True)
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                self.denoiser.add_adapter(self.denoiser.lora_config(rank=rank), self.adapter_name)
        return [p for p in self.denoiser.parameters() if p.requires_grad]

    # -----------------------------------------------------------------------------------------------------------------
    # Rounds
    # -----------------------------------------------------------------------------------------------------------------

    def run(self, after_round: Callable[[Adaptation], None] | None = None, progress_bar: Callable[..., Any] = tqdm) -> None:
        """All rounds that are left; the adapter ends as the teacher of the best one.

        Args:
            after_round: called after every round, which is where a run can be saved.
            progress_bar: makes a bar of `total` steps.
        """
        settings = self.settings
        with progress_bar(total=settings.rounds * settings.steps) as bar, self._sampling_quietly():
            bar.update(self.round * settings.steps)
            if self.round == 0 and not self.history:
                self.history.append({"round": 0, **self.criterion()})
                if self.adversary is not None:
                    for _ in range(settings.warm_up):
                        self._augmented(self._draw_source())
            while not self.finished:
                self._one_round(bar)
                if after_round is not None:
                    after_round(self)
        self._set(self.best)
        self.denoiser.eval()

    @contextmanager
    def _sampling_quietly(self) -> Iterator[None]:
        """One bar is enough: none for the samples that are drawn on the way."""
        shown = dict(getattr(self.pipe, "_progress_bar_config", {}))
        self.pipe.set_progress_bar_config(**{**shown, "disable": True})
        try:
            yield
        finally:
            self.pipe.set_progress_bar_config(**shown)

    @property
    def finished(self) -> bool:
        """All rounds are done, or none of the last ones was better."""
        since_best = len(self.history) - 1 - self.best_round
        return self.round >= self.settings.rounds or since_best >= self.settings.patience

    @property
    def best_round(self) -> int:
        """The round with the best criterion, 0 for the model as it was."""
        values = [entry["reprojection_mm"] for entry in self.history]
        return values.index(min(values))

    def _one_round(self, bar: tqdm) -> None:
        settings = self.settings
        with self._as_teacher():
            labels = self._look_at_target()
        losses = []
        for _ in range(settings.steps):
            losses.append(1000 * self._train_step(labels))
            bar.update()
            bar.set_postfix(source_mm=f"{fmean(losses):.1f}", target_mm=f"{self.history[-1]['reprojection_mm']:.1f}", refresh=False)
        self.round += 1
        with self._as_teacher():
            self.history.append({"round": self.round, "source_mm": fmean(losses), **self.criterion()})
            if self.best_round == self.round:
                self.best = [p.detach().clone() for p in self.parameters]

    @contextmanager
    def _as_teacher(self) -> Iterator[None]:
        """The denoiser with the moving average of its trained weights, to sample from."""
        self.denoiser.eval()
        if self.round == 0:  # nothing to average yet
            yield
            return
        self.teacher.store(self.parameters)
        self.teacher.copy_to(self.parameters)
        try:
            yield
        finally:
            self.teacher.restore(self.parameters)

    def undo(self) -> None:
        """The denoiser as it was before this run."""
        self._set(self.start)
        if self.settings.rank is not None:
            self.denoiser.delete_adapters(self.adapter_name)
        if self.active:
            self.denoiser.set_adapters(self.active)
        self.denoiser.eval()

    def _set(self, values: Sequence[Tensor]) -> None:
        with torch.no_grad():
            for parameter, value in zip(self.parameters, values):
                parameter.copy_(value)

    # -----------------------------------------------------------------------------------------------------------------
    # What the teacher sees in the target
    # -----------------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _lifted(self, target: TargetWindows, seed: int) -> Tensor:
        """Hypotheses `(windows, K, frames, joints, 3)`."""
        filled, parts = target.filled, []
        for first in range(0, len(target), 128):
            rows = slice(first, first + 128)
            generator = torch.Generator().manual_seed(seed_of(seed, str(first)))
            parts.append(self.pipe.sample_clips(filled[rows], target.confidence[rows], self.sampler, generator, max_batch_size=1024))
        return torch.cat(parts)

    def _look_at_target(self) -> tuple[TargetWindows, Tensor, Tensor] | None:
        """Windows, pseudo-labels `(windows, frames, joints, 3)` and which joints of them count; the build on the way."""
        settings = self.settings
        if not (settings.build or settings.pseudo_labels):
            return None
        generator = torch.Generator().manual_seed(seed_of(self.seed, f"labels {self.round}"))
        target = self.target[torch.randperm(len(self.target), generator=generator)[: settings.label_windows]]
        hypotheses = self._lifted(target, seed_of(self.seed, f"teacher {self.round}"))
        change = None
        if settings.build:
            frames = slice(None, None, _FRAMES_OF_BUILD)
            change = fit_build(
                hypotheses.mean(1)[:, frames], target.keypoints_2d[:, frames], target.camera, target.confidence[:, frames],
                skeleton=self.skeleton, fps=target.fps / _FRAMES_OF_BUILD, size=self._source_size(),
            )  # fmt: skip
            self.build = self.build.plus(change)
        if not settings.pseudo_labels:
            return None
        if change is not None:
            hypotheses = change_build(hypotheses, change, self.skeleton)
        root = root_of_hypotheses(hypotheses, target.keypoints_2d, target.camera, target.confidence, target.fps)
        errors = self._errors(hypotheses, target, root[:, None])
        label, errors = best_hypothesis_composite(hypotheses, errors)
        counts = (target.confidence > _LEAST_CONFIDENCE) & (errors < settings.label_error)
        return target, label, counts

    @staticmethod
    def _errors(pose: Tensor, target: TargetWindows, root: Tensor) -> Tensor:
        """Metres at the person's distance by which joints `(windows, [K,] frames, joints, 3)` reproject off; 0 where nothing is seen."""
        camera = target.camera
        focal = camera.focal.mean(-1).reshape(-1, *[1] * (pose.ndim - 2))
        errors = reprojection_error(pose, target.keypoints_2d, camera, root)
        depth = root[..., 2:].clamp_min(_NEAREST)
        return torch.where(errors.isfinite(), errors * depth / focal, 0.0)

    def criterion(self) -> dict[str, float]:
        """How well the mean hypothesis reprojects onto keypoints that nothing was trained on, and what else is known without 3D."""
        hypotheses = self._lifted(self.judged, seed_of(self.seed, "criterion"))
        pose, target = hypotheses.mean(1), self.judged
        root = root_of_hypotheses(hypotheses, target.keypoints_2d, target.camera, target.confidence, target.fps)
        errors = self._errors(pose, target, root).clamp_max(_FAR)
        seen = target.confidence > _LEAST_CONFIDENCE
        return {
            "reprojection_mm": 1000 * errors[seen].mean().item(),
            **plausibility(hypotheses, self.skeleton),
            "ece_2d": self._calibration(hypotheses, target, root),
        }

    @staticmethod
    def _calibration(hypotheses: Tensor, target: TargetWindows, root: Tensor) -> float:
        """Expected calibration error of the reprojected hypotheses against keypoints, the detector's errors included."""
        joints = hypotheses.movedim(1, 0)
        shape = joints.shape[:-1]
        seen = (
            target.camera.project((joints + root[:, :, None]).movedim(0, -2).flatten(-3, -2)).unflatten(-2, (-1, shape[0])).movedim(-2, 0)
        )
        seen = torch.nn.functional.pad(seen, (0, 1)).flatten(1, 2)
        points = torch.where((target.confidence > _LEAST_CONFIDENCE)[..., None], target.keypoints_2d, torch.nan)
        return ece_of_curve(coverage_curve(seen, torch.nn.functional.pad(points, (0, 1)).flatten(0, 1)))

    # -----------------------------------------------------------------------------------------------------------------
    # A step
    # -----------------------------------------------------------------------------------------------------------------

    def _generator(self, purpose: str) -> torch.Generator:
        return torch.Generator().manual_seed(seed_of(self.seed, f"{purpose} {self.drawn}"))

    def _draw_source(self) -> tuple[dict[str, Tensor], TargetWindows, torch.Generator]:
        """Source windows of other builds, and the target windows that they are paired with."""
        settings, generator = self.settings, self._generator("source")
        rows = list(range(self.drawn, self.drawn + settings.batch_size))
        self.drawn += settings.batch_size
        source = {name: value.to(self.device) for name, value in self.source.render(rows).items() if name in ("pose", "root")}
        if settings.build:
            builds = self.build.varied(len(rows), settings.torso_variation, settings.limb_variation, generator)
            builds = Build(*(value[:, None] for value in builds))
            source["pose"] = change_build(source["pose"], builds, self.skeleton)
        partner = self.target[torch.randint(len(self.target), (len(rows),), generator=generator)]
        return source, partner, generator

    def _placed(self, pose: Tensor, root: Tensor, partner: TargetWindows) -> Tensor:
        """Absolute poses: where the target's people stand, or where they were."""
        absolute = pose + root[:, :, None]
        if self.settings.alignment:
            aligned = global_position_alignment(
                absolute, partner.keypoints_2d, partner.camera, root_index=self.pipe.root_index, trajectory="source"
            )
            fine = plausible_depth(aligned, self.pipe.root_index).all(-1)
            absolute = torch.where(fine[:, None, None, None], aligned, absolute)
        return torch.cat([absolute[..., :2], absolute[..., 2:].clamp_min(_NEAREST)], dim=-1)

    def _augmented(self, drawn: tuple[dict[str, Tensor], TargetWindows, torch.Generator]) -> Tensor:
        """Source poses after a turn of the adversary."""
        source, partner, generator = drawn

        def view(pose: Tensor) -> Tensor:
            return self._detected(self._placed(pose, source["root"], partner), partner)[0]

        whole = (partner.confidence > _LEAST_CONFIDENCE).all(-1)
        return self.adversary.step(source["pose"], partner.keypoints_2d[whole][::4], view, generator).pose

    def _train_step(self, labels: tuple[TargetWindows, Tensor, Tensor] | None) -> float:
        """One step of the optimiser; returns the source loss in metres."""
        settings = self.settings
        drawn = self._draw_source()
        source, partner, generator = drawn
        pose = source["pose"] if self.adversary is None else self._augmented(drawn)
        keypoints, confidence = self._detected(self._placed(pose, source["root"], partner), partner)
        keypoints = torch.nan_to_num(fill_missing(torch.where((confidence > 0)[..., None], keypoints, torch.nan)))
        count = len(pose)
        if labels is not None:
            windows, label, counts = labels
            rows = torch.randint(len(windows), (count // 2,), generator=generator)
            chosen = windows[rows]
            keypoints, confidence = torch.cat([keypoints, chosen.filled]), torch.cat([confidence, chosen.confidence])
            pose, counts = torch.cat([pose, label[rows]]), counts[rows]
        timestep = torch.randint(len(self.scheduler), (len(pose),), generator=generator)
        noisiest = torch.rand(len(pose), generator=generator) < 0.5  # from which sampling starts
        timestep = torch.where(noisiest, len(self.scheduler) - 1, timestep).to(self.device)
        noisy = self.scheduler.add_noise(pose, torch.randn(pose.shape, generator=generator).to(pose), timestep)
        self.denoiser.train()
        unit = self.denoiser.config.get("unit_scale", 1.0)
        devices = [] if self.device.type == "cpu" else [self.device]
        with torch.autocast(self.device.type, torch.bfloat16), torch.random.fork_rng(devices):
            torch.manual_seed(seed_of(self.seed, f"dropped {self.drawn}"))
            sample = self.denoiser(keypoints, noisy * unit, timestep, confidence=confidence, return_dict=False)[0]
        sample = sample.float() / unit
        errors = (sample - pose).norm(dim=-1)
        loss = source_loss = errors[:count].mean()
        if pose.shape[1] > 1:
            loss = loss + 0.5 * (sample[:count].diff(dim=1) - pose[:count].diff(dim=1)).norm(dim=-1).mean()
        if labels is not None:
            loss = loss + settings.label_weight * (errors[count:] * counts).sum() / counts.sum().clamp_min(1)
            if settings.reprojection_weight:
                loss = loss + settings.reprojection_weight * self._reprojection(sample[count:], chosen, counts)
        rate = settings.learning_rate * self._schedule()
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimiser.step()
        self.teacher.step(self.parameters)
        return source_loss.item()

    def _reprojection(self, sample: Tensor, target: TargetWindows, counts: Tensor) -> Tensor:
        """Mean reprojection error in metres at the person's distance."""
        with torch.no_grad():
            root = root_of_hypotheses(sample[:, None].detach(), target.keypoints_2d, target.camera, target.confidence, target.fps)
        return (self._errors(sample, target, root) * counts).sum() / counts.sum().clamp_min(1)

    def _detected(self, absolute: Tensor, partner: TargetWindows) -> tuple[Tensor, Tensor]:
        """What a detector sees of poses in front of the target's cameras; a joint of confidence 0 is where it would have seen it."""
        slopes = absolute[..., :2] / absolute[..., 2:]
        random = WindowRandom(seed_of(self.seed, "detector"), list(range(self.drawn, self.drawn + len(slopes))))
        slopes, confidence = self.detector(slopes.cpu()[..., self.order, :], random)
        back = self.order.argsort()
        slopes, confidence = slopes[..., back, :], confidence[..., back]
        focal, centre = partner.focal[:, None, None], partner.centre[:, None, None]
        keypoints = slopes.to(self.device) * focal + centre
        return keypoints, confidence.to(self.device)

    def _schedule(self) -> float:
        step = self.teacher.optimization_step
        total = self.settings.rounds * self.settings.steps
        return min(1.0, (step + 1) / 20) * (0.05 + 0.475 * (1 + math.cos(math.pi * min(1.0, step / total))))

    def _source_size(self) -> Tensor:
        """Leg and spine of the source's people in metres: what the target's cannot tell."""
        return body_size(self.source.render(list(range(256)))["pose"], self.skeleton).mean().to(self.device)

    # -----------------------------------------------------------------------------------------------------------------
    # Saving
    # -----------------------------------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """All of the run's state, so that a later one goes on as if nothing had happened."""
        state = {
            "settings": asdict(self.settings), "seed": self.seed, "round": self.round, "drawn": self.drawn, "history": self.history,
            "build": list(self.build), "parameters": [p.detach() for p in self.parameters], "best": self.best,
            "optimiser": self.optimiser.state_dict(), "teacher": self.teacher.state_dict(),
        }  # fmt: skip
        if self.adversary is not None:
            state["adversary"] = self.adversary.state_dict()
            state["adversary_optimisers"] = self.adversary.optimiser_state()
        with replacing(path, overwrite=True) as unfinished:
            torch.save(state, unfinished)

    def load(self, path: Path) -> None:
        """Go on where a saved run stopped.

        Raises:
            ValueError: a run with other settings, of another model or target, or a damaged file.
        """
        try:
            state = torch.load(path, weights_only=True, map_location=self.device)
        except Exception as error:
            raise ValueError(f"{path} is damaged: {error}") from None
        if not isinstance(state, dict) or not {"settings", "seed", "parameters", "history", "optimiser", "teacher"} <= state.keys():
            raise ValueError(f"{path} is damaged: it holds no run of adaptation")
        own = {**asdict(self.settings), "seed": self.seed}
        saved = {**state["settings"], "seed": state["seed"]}
        if differing := [f"{name} {saved.get(name)!r} there, {value!r} now" for name, value in own.items() if saved.get(name) != value]:
            raise ValueError(f"{path} is of a run with other settings: {'; '.join(differing)}")
        if [p.shape for p in state["parameters"]] != [p.shape for p in self.parameters]:
            raise ValueError(f"{path} is of a run with another model")
        with self._sampling_quietly():
            before = self.criterion()
        if not math.isclose(state["history"][0]["reprojection_mm"], before["reprojection_mm"], rel_tol=1e-3):
            raise ValueError(f"{path} is of a run with another target or other weights: the model reprojects differently onto this target")
        self._set(state["parameters"])
        self.best, self.build, self.history = state["best"], Build(*state["build"]), state["history"]
        self.round, self.drawn = state["round"], state["drawn"]
        self.optimiser.load_state_dict(state["optimiser"])
        self.teacher.load_state_dict(state["teacher"])
        if self.adversary is not None:
            self.adversary.load_state_dict(state["adversary"])
            self.adversary.load_optimiser_state(state["adversary_optimisers"])


def _human36m_order(skeleton: str) -> Tensor:
    """Where Human3.6M's joints, whose mistakes `DetectorNoise` makes, stand in a skeleton `(17,)`."""
    matrix = torch.eye(17) if skeleton == "h36m_17" else torch.as_tensor(conversion_matrix(skeleton, "h36m_17"))
    if matrix.shape != (17, 17) or not all(((matrix == 1).sum(axis) == 1).all() for axis in (0, 1)):
        raise ValueError(f"a detector's errors are known for the joints of h36m_17 in any order, not for {skeleton}")
    return matrix.argmax(1)


def plausibility(hypotheses: Tensor, skeleton: str) -> dict[str, float]:
    """What can be said of poses `(windows, K, frames, joints, 3)` without the truth, all in mm.

    Returns:
        `asymmetry_mm`, by which the lengths of left and right bones differ; `stretch_mm`, standard deviation of bone lengths over time;
        `spread_mm`, root-mean-square distance of the hypotheses from their mean.
    """
    pose = hypotheses.mean(1)
    lengths = bone_lengths(pose, skeleton)
    groups = anatomy(skeleton).length_groups
    pairs = [[bone for bone, group in enumerate(groups) if group == which] for which in sorted(set(groups)) if groups.count(which) == 2]
    left, right = zip(*pairs)
    return {
        "asymmetry_mm": 1000 * (lengths[..., left] - lengths[..., right]).abs().mean().item(),
        "stretch_mm": 1000 * lengths.std(1, correction=0).mean().item(),
        "spread_mm": 1000 * (hypotheses - pose[:, None]).square().sum(-1).mean().sqrt().item(),
    }
