"""DiffPose: a short reverse diffusion from a pose-specific uncertain guess (Gong et al., CVPR 2023, arXiv 2211.16940).

A lifter turns the detector's uncertain 2D into an uncertain (u, v, x, y, z); a denoiser takes that uncertainty away in a few steps, told by
the lifter's features what was observed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn

from probpose.geometry import Camera
from probpose.mixtures import PoseMixture
from probpose.skeletons import get_skeleton

from .noise import NoiseSource
from .pipeline_output import ProbPosePipelineOutput
from .pipeline_probpose import PreparedInputs, ProbPosePipeline, as_tensor, check_call, check_eta, checked_count, mirrored_points
from .windows import Windows

START_MODES = ("mixture", "noisy", "released", "prior")
DIFFPOSE_FLIP_MODES = ("alternate", "lifter", False)

_COMPONENTS = 999  # the draw that chooses mixture components; steps have smaller numbers
_FRAMES_PER_WINDOW = 4  # a network of single frames takes as many of them for each window of `max_batch_size`
_FRAMES_AT_ONCE = 64  # as many, of all hypotheses together, go through the chain at the same time
_PRIOR_DRAWS = 64  # lifted draws that a prior mixture is fitted to


class DiffPosePipeline(ProbPosePipeline):
    """Diffusion from an uncertain lifted pose.

    Args:
        denoiser: `GraFormerDenoiser`, or a network of the same calling convention.
        lifter: `GraFormerLifter`, or `MixSTEModel` or `FrameTransformerModel` as a lifter (`in_channels=2`). If the denoiser takes context,
            the lifter's features are it.
        scheduler: `GMMScheduler`.
        aggregator, calibrator: as in `D3DPPipeline`.
        default_num_hypotheses, default_num_inference_steps, default_start, default_flip, default_aggregation: what a call uses that does
            not say. Defaults are the paper's 5 hypotheses and their mean, two steps, and the start from the mixture.
        window_overlap, hidden_when_converted: as in `D3DPPipeline`; windows are the lifter's.

    Raises:
        ValueError: parts that do not fit each other, or defaults out of range.
    """

    _optional_components = ["aggregator", "calibrator"]  # noqa: RUF012  (diffusers reads it from the class)

    def __init__(
        self,
        denoiser,
        lifter,
        scheduler,
        aggregator=None,
        calibrator=None,
        default_num_hypotheses: int = 5,
        default_num_inference_steps: int = 2,
        default_start: str = "mixture",
        default_flip: str | bool = False,
        default_aggregation: str | None = "mean",
        window_overlap: int | None = None,
        hidden_when_converted: list[int] | None = None,
    ):
        super().__init__()
        check_fit(lifter, denoiser)
        if not hasattr(scheduler, "noise_map"):
            raise ValueError(f"scheduler must be a GMMScheduler, got {type(scheduler).__name__}")
        self.register_modules(denoiser=denoiser, lifter=lifter, scheduler=scheduler, aggregator=aggregator, calibrator=calibrator)
        self.register_to_config(
            default_num_hypotheses=default_num_hypotheses,
            default_num_inference_steps=default_num_inference_steps,
            default_start=default_start,
            default_flip=default_flip,
            default_aggregation=default_aggregation,
            window_overlap=window_overlap,
            hidden_when_converted=list(hidden_when_converted or ()),
        )
        self.settings()

    @torch.no_grad()
    def __call__(
        self,
        keypoints_2d: Any = None,
        confidence: Any = None,
        image_size: tuple[int, int] | None = None,
        camera: Camera | None = None,
        skeleton: str | None = None,
        conversion: str | None = None,
        mixture: PoseMixture | None = None,
        num_hypotheses: int | None = None,
        num_inference_steps: int | None = None,
        start: str | None = None,
        flip: str | bool | None = None,
        eta: float | None = None,
        aggregation: str | nn.Module | None = "default",
        calibrated: bool | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        noise: Tensor | None = None,
        root: Any = None,
        fps: float = 30.0,
        max_batch_size: int = 256,
        output_type: str = "pt",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, int, dict[str, Tensor]], dict[str, Tensor] | None] | None = None,
    ) -> ProbPosePipelineOutput | tuple:
        """Sample 3D motions. Arguments that are not listed are those of `D3DPPipeline`.

        Args:
            keypoints_2d: as in `D3DPPipeline`; may be left out if a mixture is given, whose mean it then is.
            mixture: what the detector knows of the 2D pose, in pixels and in the model's joint set: `PoseMixture` of dimension 2 over
                `([batch,] frames)`. Default: one component around every keypoint, as wide as its confidence says (full confidence where
                none is given).
            num_inference_steps: sampling steps, see `GMMScheduler.set_timesteps`.
            start: "mixture": each hypothesis draws its own 2D pose, which is lifted, and noise is added; "noisy": one lifted pose and
                noise; "released": one lifted pose and no noise, as in the published code, so that all hypotheses (of one view) are equal
                unless eta > 0; "prior": a mixture is fitted by EM to lifted draws, and hypotheses are drawn from it (the paper; slow,
                needs scikit-learn if the scheduler has more than one component).
            flip: "lifter": lifted poses are averaged with those of the mirrored view (the published video code); "alternate": every other
                hypothesis is made in the mirrored view, and so is its own lifted pose; those that hypotheses share are averaged; or False.
            noise: standard normal noise: `(batch, K, frames, joints, 5)` for the start, or `(draws, batch, K, frames, joints, 5)` for the
                start and every stochastic step in order. Otherwise every hypothesis has one draw, held over its frames: frames are denoised
                each for itself, and independent noise would make motions flicker.
            max_batch_size: largest number of windows × hypotheses in a lifter call. Networks of single frames, as the denoiser is one, take
                up to four times as many frames × hypotheses.

        Returns:
            `ProbPosePipelineOutput`, with `lifted`, the lifter's own pose (averaged with that of the mirrored view if there is a flip).

        Raises:
            ValueError: any input of the wrong shape or range; the message names the value and what is allowed.
        """
        settings = self.settings(num_hypotheses, num_inference_steps, start, flip, eta)
        aggregator = self.choose_aggregator(aggregation)
        calibrated = self.check_calibrated(calibrated)
        check_call(output_type, max_batch_size, fps)
        if mixture is not None:
            keypoints_2d = self._check_mixture(mixture, keypoints_2d, skeleton)
        elif keypoints_2d is None:
            raise ValueError("pass keypoints_2d, or a mixture")
        inputs = self.prepare_inputs(keypoints_2d, confidence, image_size, camera, skeleton, conversion, root)
        hypotheses, lifted = self._sample(
            inputs.network_2d, inputs.confidence, settings, generator, self.check_noise(noise, inputs, settings.num_hypotheses, 5),
            int(max_batch_size), callback_on_step_end, self._network_mixture(mixture, inputs),
        )  # fmt: skip
        return self.finish(hypotheses, inputs, aggregator, fps, output_type, return_dict, calibrated, lifted)

    @torch.no_grad()
    def sample_clips(
        self,
        network_2d: Tensor,
        confidence: Tensor,
        settings: DiffPoseSettings,
        generator: torch.Generator | list[torch.Generator] | None = None,
        noise: Tensor | None = None,
        max_batch_size: int = 256,
        callback: Callable | None = None,
    ) -> Tensor:
        """The sampler in the network's units: `(batch, frames, joints, 2)` to `(batch, K, frames, joints, 3)`, the root joint at zero."""
        return self._sample(network_2d, confidence, settings, generator, noise, max_batch_size, callback)[0]

    @property
    def num_frames(self) -> int | None:
        return self.lifter.config.get("num_frames")

    def settings(
        self,
        num_hypotheses: int | None = None,
        num_inference_steps: int | None = None,
        start: str | None = None,
        flip: str | bool | None = None,
        eta: float | None = None,
    ) -> DiffPoseSettings:
        """How a call with these arguments samples; None: the pipeline's default."""
        config = self.config
        return DiffPoseSettings(
            config.default_num_hypotheses if num_hypotheses is None else num_hypotheses,
            config.default_num_inference_steps if num_inference_steps is None else num_inference_steps,
            config.default_start if start is None else start,
            config.default_flip if flip is None else flip,
            eta,
        )

    def _sample(
        self, network_2d: Tensor, confidence: Tensor, settings: DiffPoseSettings, generator: Any, noise: Tensor | None,
        max_batch_size: int, callback: Callable | None, mixture: PoseMixture | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Hypotheses, and the lifter's pose `(batch, frames, joints, 3)`.

        Hypotheses are worked through in groups, so that memory stays bounded. Each has its own random stream, so the grouping never
        changes the result.
        """
        batch, frames = network_2d.shape[:2]
        scheduler, count = self.scheduler, settings.num_hypotheses
        scheduler.set_timesteps(settings.num_inference_steps)
        timesteps = scheduler.timesteps.tolist()
        stochastic = [scheduler.is_stochastic(t, settings.eta) for t in timesteps]
        if noise is not None and 1 < len(noise) < 1 + sum(stochastic):
            raise ValueError(f"noise must hold 1 draw or at least {1 + sum(stochastic)} in {len(timesteps)} steps, got {len(noise)}")
        source = NoiseSource(noise, generator, batch, count, (frames, self.num_output_joints, 5), network_2d.device, held=True)
        mixture = PoseMixture.from_keypoints(network_2d, confidence) if mixture is None else mixture
        observed = _Observed(self, network_2d, confidence, mixture, settings, max_batch_size)
        distinct = count if settings.start != "released" or any(stochastic) else min(count, 2 if settings.flip == "alternate" else 1)
        group = min(distinct, _FRAMES_PER_WINDOW * max_batch_size, max(1, _FRAMES_AT_ONCE * max_batch_size // (batch * frames)))
        out = torch.empty(batch, distinct, frames, self.num_output_joints, 3, device=network_2d.device)
        with self.progress_bar(total=-(-distinct // group) * len(timesteps)) as bar:
            for first in range(0, distinct, group):
                members = slice(first, min(first + group, distinct))
                x, mean, scale = observed.start(members, source)
                for i, t in enumerate(timesteps):
                    step = scheduler.step(
                        observed.denoise(members, x, t), t, x, settings.eta, source.draw(i + 1, members) if stochastic[i] else None,
                        component_mean=scheduler.anchored(mean), component_scale=scale,
                    )  # fmt: skip
                    x = step.prev_sample
                    if callback is not None:
                        x = (callback(self, i, t, {"sample": x, "clean": step.pred_original_sample}) or {}).get("sample", x)
                    bar.update()
                if not torch.isfinite(x).all():
                    raise ValueError(f"sampling left the range of numbers: check the networks' weights ({self.denoiser.dtype})")
                out[:, members] = x[..., 2:]
        out -= out[..., self.root_index, None, :].clone()
        return out if distinct == count else out[:, torch.arange(count) % distinct], observed.pose

    @torch.no_grad()
    def lift(
        self, network_2d: Tensor, confidence: Tensor, max_batch_size: int = 256, output_features: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """The lifter over clips of any length, in the network's units.

        Args:
            network_2d: `(clips, frames, joints, 2)`, finite.
            confidence: `(clips, frames, joints)`.

        Returns:
            Pose `(clips, frames, joints, 3)`, root-relative: the windows' predictions blended; and, if asked for, the features
            `(clips, frames, joints or 1, channels)` of the window that has a frame nearest to its middle.
        """
        config, dtype = self.lifter.config, self.lifter.dtype
        clips, frames = network_2d.shape[:2]
        if config.get("num_frames") is None:  # every frame for itself
            rows = (t.flatten(0, 1)[:, None].to(dtype).split(_FRAMES_PER_WINDOW * max_batch_size) for t in (network_2d, confidence))
            parts = [self._lifter_call(*row, output_features) for row in zip(*rows)]
            pose, features = (None if p[0] is None else torch.cat(p)[:, 0].unflatten(0, (clips, frames)) for p in zip(*parts))
        else:
            windows = Windows.cut(config, network_2d, confidence, self.overlap)
            owner = windows.owners()
            pose, features = torch.zeros(clips, windows.clip_length, self.num_output_joints, 3, device=network_2d.device), None
            for rows in torch.arange(len(windows)).split(max_batch_size):
                lifted, seen = self._lifter_call(windows.keypoints[rows].to(dtype), windows.confidence[rows].to(dtype), output_features)
                for n, (row, (clip, start)) in enumerate(zip(rows.tolist(), windows.places(rows))):
                    pose[clip, start : start + windows.window] += windows.weight(row) * lifted[n]
                    if output_features:
                        features = seen.new_empty(clips, windows.clip_length, *seen.shape[2:]) if features is None else features
                        own = (owner == start).nonzero().flatten()
                        features[clip, own] = seen[n, own - start]
            pose, features = pose[:, :frames], None if features is None else features[:, :frames]
        return pose - pose[..., self.root_index, None, :], features

    def _lifter_call(self, keypoints: Tensor, confidence: Tensor, output_features: bool) -> tuple[Tensor, Tensor | None]:
        out = self.lifter(keypoints, confidence=confidence, output_features=output_features)
        return out.sample.float() / self.lifter.config.get("unit_scale", 1.0), out.features

    def _check_mixture(self, mixture: Any, keypoints_2d: Any, skeleton: str | None) -> Any:
        """The 2D pose of a call with a mixture; ValueError if they do not fit each other or the model."""
        if not isinstance(mixture, PoseMixture):
            raise ValueError(f"mixture must be a probpose.mixtures.PoseMixture, got {type(mixture).__name__}")
        mixture.check_joints(get_skeleton(self.input_skeleton).num_joints)
        if mixture.dim != 2:
            raise ValueError(f"mixture must be one of 2D positions in pixels, got dimension {mixture.dim}")
        for name, value in (("skeleton", skeleton), ("mixture.skeleton", mixture.skeleton)):
            if value not in (None, self.input_skeleton):
                raise ValueError(f"a mixture must be in the model's joint set {self.input_skeleton!r}, got {name}={value!r}")
        over = tuple(mixture.shape)
        if len(over) not in (1, 2):
            raise ValueError(f"mixture must be over ([batch,] frames), got one over {over}")
        if keypoints_2d is None:
            return mixture.mean()
        keypoints_2d = as_tensor(keypoints_2d, "keypoints_2d")
        if tuple(keypoints_2d.shape[:-2]) != over:
            raise ValueError(f"mixture is over {over}, but keypoints_2d has shape {tuple(keypoints_2d.shape)}")
        return keypoints_2d

    def _network_mixture(self, mixture: PoseMixture | None, inputs: PreparedInputs) -> PoseMixture | None:
        """A mixture in pixels as the network sees it."""
        if mixture is None:
            return None
        if not inputs.batched:
            mixture = mixture[None]
        return mixture.to(self.device, torch.float32).transformed(lambda points: self.to_network(points, inputs.camera, inputs.image_size))


def check_fit(lifter: Any, denoiser: Any) -> None:
    """ValueError unless these are a lifter and a denoiser, and the lifter's features and joints are what the denoiser takes."""
    if not hasattr(lifter, "context_shape") or lifter.config.get("in_channels", 2) != 2:
        raise ValueError(f"lifter must be a network that takes 2D positions alone (in_channels=2), got a denoiser, {type(lifter).__name__}")
    if "context_channels" not in denoiser.config:
        raise ValueError(f"denoiser must be a network of (u, v, x, y, z) as GraFormerDenoiser is, got {type(denoiser).__name__}")
    ours, theirs = (_joints_and_camera(network.config) for network in (lifter, denoiser))
    if differing := [
        f"{name} is {ours[name]} in the lifter and {theirs[name]} in the denoiser" for name in ours if ours[name] != theirs[name]
    ]:
        raise ValueError(f"lifter and denoiser do not fit each other: {'; '.join(differing)}")
    if denoiser.config.context_channels is not None:
        given, taken = tuple(lifter.context_shape), (denoiser.config.context_level, denoiser.config.context_channels)
        if given != taken:
            raise ValueError(
                f"the lifter's features are {given[1]} per {given[0]}, but the denoiser takes context_channels={taken[1]} with "
                f"context_level={taken[0]!r}"
            )


def _joints_and_camera(config: Any) -> dict[str, Any]:
    camera = config.get("canonical_camera")  # a list once it has been saved
    return {
        "num_joints": config.num_joints,
        "skeleton": config.skeleton,
        "input_skeleton": config.get("input_skeleton") or config.skeleton,
        "canonical_camera": None if camera is None else [float(value) for value in camera],
    }


@dataclass(frozen=True)
class DiffPoseSettings:
    """How one call samples; checked on construction."""

    num_hypotheses: int = 5
    num_inference_steps: int = 2
    start: str = "mixture"
    flip: str | bool = False
    eta: float | None = None

    def __post_init__(self) -> None:
        for name, most in (("num_hypotheses", math.inf), ("num_inference_steps", _COMPONENTS - 1)):
            object.__setattr__(self, name, checked_count(name, getattr(self, name), most))
        if self.start not in START_MODES:
            raise ValueError(f"start must be one of {START_MODES}, got {self.start!r}")
        if self.flip not in DIFFPOSE_FLIP_MODES:
            raise ValueError(f"flip must be one of {DIFFPOSE_FLIP_MODES}, got {self.flip!r}")
        check_eta(self.eta)

    def mirrored(self, hypotheses: range) -> list[tuple[bool, slice]]:
        """Which of some hypotheses are made in the view as it is and which in the mirrored one, as slices of their axis."""
        if self.flip != "alternate":
            return [(False, slice(None))]
        odd = 1 - hypotheses.start % 2
        return [(mirror, part) for mirror, part in ((False, slice(1 - odd, None, 2)), (True, slice(odd, None, 2))) if hypotheses[part]]


class _Observed:
    """The clips of a call, and what the lifter says of them.

    Args:
        keypoints, confidence: `(batch, frames, joints, 2)` in the network's units and `(batch, frames, joints)`.
        mixture: of the 2D pose, in the network's units.

    `pose` is the lifter's `(batch, frames, joints, 3)`, root-relative; `context` its features `(batch · frames, 1, joints or 1, channels)`
    in each view (mirrored or not), None if the denoiser takes none; `prior` the mixture over `(u, v, x, y, z)` of start "prior".
    """

    def __init__(
        self, pipe: DiffPosePipeline, keypoints: Tensor, confidence: Tensor, mixture: PoseMixture, settings: DiffPoseSettings,
        max_batch_size: int,
    ):  # fmt: skip
        self.pipe, self.confidence, self.mixture, self.settings, self.max_batch_size = pipe, confidence, mixture, settings, max_batch_size
        canonical = pipe.denoiser.config.get("canonical_camera")
        self.order, self.centre = list(get_skeleton(pipe.skeleton).flip_index), 0.0 if canonical is None else canonical[2]
        self.views = (False, True) if settings.flip else (False,)
        takes_context = pipe.denoiser.config.context_channels is not None
        poses, features = zip(*(self._lift(keypoints, mirror, takes_context) for mirror in self.views))
        self.pose = sum(poses) / len(poses)
        self.context = {view: f.flatten(0, 1)[:, None] if takes_context else None for view, f in zip(self.views, features)}
        self.prior = self._fit_prior() if settings.start == "prior" else None

    def start(self, members: slice, source: NoiseSource) -> tuple[Tensor, Tensor, Tensor]:
        """Where some hypotheses begin `(batch, k, frames, joints, 5)`, and the mixture components that they are drawn from: m and S."""
        scheduler, mode = self.pipe.scheduler, self.settings.start
        noise = source.draw(0, members)
        uniform = torch.stack([torch.rand(noise.shape[-2], generator=g) for g in source.streams(_COMPONENTS, members)])
        uniform = uniform.unflatten(0, noise.shape[:2])[:, :, None].to(noise.device)  # one component per joint, held over the frames
        if mode == "prior":
            mean, scale = _components(self.prior, uniform)
            return mean + (scale @ noise[..., None])[..., 0], mean, scale
        uv, factor = _components(self.mixture, uniform)
        if mode == "mixture":
            drawn = uv + (factor @ noise[..., :2, None])[..., 0]
            pose = drawn.new_empty(*drawn.shape[:-1], 3)
            for mirror, part in self.settings.mirrored(range(members.start, members.stop)):
                pose[:, part] = self._lift_draws(drawn[:, part], self.views if self.settings.flip == "lifter" else (mirror,))
        elif self.mixture.num_components > 1:
            pose = self._lift_draws(uv, self.views)
        else:
            pose = self.pose[:, None].expand(*uv.shape[:-1], 3)
        mean, scale = torch.cat([uv, pose], dim=-1), scheduler.noise_map(factor)
        if mode == "released":
            return mean, mean, scale
        return scheduler.add_noise(mean, noise, scheduler.start_timestep, scheduler.anchored(mean), scale), mean, scale

    def denoise(self, members: slice, x: Tensor, t: int) -> Tensor:
        """The denoiser's prediction for `x (batch, k, frames, joints, 5)`."""
        denoiser, out = self.pipe.denoiser, torch.empty_like(x)
        for mirror, part in self.settings.mirrored(range(members.start, members.stop)):
            seen = self._turned(x[:, part], mirror).transpose(1, 2)  # (batch, frames, k, joints, 5)
            rows, context = seen.flatten(0, 1)[:, :, None].to(denoiser.dtype), self.context[mirror]
            step = max(1, _FRAMES_PER_WINDOW * self.max_batch_size // rows.shape[1])
            parts = zip(rows.split(step), repeat(None) if context is None else context.split(step))
            predicted = torch.cat([denoiser(None, noisy, t, context=known).sample for noisy, known in parts])
            out[:, part] = self._turned(predicted.float()[:, :, 0].unflatten(0, seen.shape[:2]).transpose(1, 2), mirror)
        return out

    def _lift_draws(self, uv: Tensor, views: tuple[bool, ...]) -> Tensor:
        """Lift several 2D poses of each clip `(batch, k, frames, joints, 2)`, averaged over views."""
        return sum(self._lift(uv.flatten(0, 1), mirror)[0] for mirror in views).unflatten(0, uv.shape[:2]) / len(views)

    def _lift(self, keypoints: Tensor, mirror: bool, features: bool = False) -> tuple[Tensor, Tensor | None]:
        """Pose and features of clips, one or several for each clip of the call; the pose of a mirrored view is mirrored back."""
        confidence = self.confidence.repeat_interleave(len(keypoints) // len(self.confidence), dim=0)
        if mirror:
            keypoints, confidence = mirrored_points(keypoints, self.order, self.centre), confidence[..., self.order]
        pose, seen = self.pipe.lift(keypoints, confidence, self.max_batch_size, features)
        return mirrored_points(pose, self.order) if mirror else pose, seen

    def _fit_prior(self) -> PoseMixture:
        """A mixture over (u, v, x, y, z), fitted to lifted draws of the 2D pose, which are the same for every clip."""
        generator = torch.Generator().manual_seed(0)
        shape = (1, _PRIOR_DRAWS, 1, self.mixture.num_joints)
        uniform, noise = torch.rand(shape, generator=generator), torch.randn(*shape, 2, 1, generator=generator)
        uv, factor = _components(self.mixture, uniform.to(self.confidence))
        uv = uv + (factor @ noise.to(uv))[..., 0]
        samples = torch.cat([uv, self._lift_draws(uv, self.views)], dim=-1).transpose(0, 1)
        progress = not getattr(self.pipe, "_progress_bar_config", {}).get("disable", False)
        return PoseMixture.fit(samples, self.pipe.scheduler.config.num_components, progress=progress)

    def _turned(self, uvxyz: Tensor, mirror: bool) -> Tensor:
        """Poses of the mirrored view, or as they are."""
        if not mirror:
            return uvxyz
        parts = mirrored_points(uvxyz[..., :2], self.order, self.centre), mirrored_points(uvxyz[..., 2:], self.order)
        return torch.cat(parts, dim=-1)


def _components(mixture: PoseMixture, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Means and factors of the components that uniform numbers `(batch, k, frames or 1, joints)` choose."""
    index = mixture.components_at(uniform.transpose(0, 1))
    return tuple(value.transpose(0, 1) for value in mixture.gather(index))
