"""D3DP: K hypotheses by conditional diffusion with clean-pose prediction (Shan et al., ICCV 2023, arXiv 2303.11579)."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from probpose.geometry import Camera, reexpress_keypoints
from probpose.guidance import Energy, GaussNewtonGuide, GuideOutput
from probpose.skeletons import get_skeleton

from .noise import NoiseSource
from .pipeline_output import ProbPosePipelineOutput
from .pipeline_probpose import PreparedInputs, ProbPosePipeline, check_call, check_eta, checked_count, mirrored_points
from .scene import Scene, check_guidance
from .windows import Windows, window_starts

FLIP_MODES = ("every_step", "last_step", "alternate", False)

_NOISY_POSE_LIMIT = 1.1  # metres; what no noisy pose exceeded in D3DP's training, for schedulers that say nothing of it

_OWN_ERROR = 0.05
"""Metres: how far off the joints of a network that saw the keypoints are, however noisy the pose that it was given."""

_ROOT_GUIDE = GaussNewtonGuide(substeps=5, spread=0.3)
"""Moves the root alone, by as much as its estimate from one camera is off."""


class D3DPPipeline(ProbPosePipeline):
    """Diffusion-based 3D pose with joint-wise aggregation.

    The clip is the state of the sampler: at every step each window's clean pose is predicted and the predictions are blended, so that
    hypothesis k is one consistent motion however long the clip is.

    Args:
        denoiser: any probpose denoiser.
        scheduler: `D3DPScheduler`, or a diffusers scheduler with `prediction_type="sample"` and the noise schedule that the denoiser was
            trained with (D3DP: `beta_schedule="squaredcos_cap_v2"`); one network call per step.
        aggregator: learned aggregator (`probpose.models.AttentionAggregator`), what `aggregation="attention"` means; or None.
        calibrator: `probpose.calibration.Recalibration`, or None.
        default_num_hypotheses, default_num_inference_steps, default_flip, default_share_first_step, default_aggregation: what a call
            uses that does not say. A constructed pipeline defaults to the published sampler; a saved one brings its own choice.
        window_overlap: frames that neighbouring windows of a long clip share; default a third of the model's window.
        hidden_when_converted: joints that are treated as not observed when the keypoints had to be converted from another skeleton,
            because the conversion only approximates what the model was trained on.
    """

    _optional_components = ["aggregator", "calibrator"]  # noqa: RUF012  (diffusers reads it from the class)

    def __init__(
        self,
        denoiser,
        scheduler,
        aggregator=None,
        calibrator=None,
        default_num_hypotheses: int = 20,
        default_num_inference_steps: int = 10,
        default_flip: str | bool = "every_step",
        default_share_first_step: bool = False,
        default_aggregation: str | None = "jpma",
        window_overlap: int | None = None,
        hidden_when_converted: list[int] | None = None,
    ):
        super().__init__()
        self.register_modules(denoiser=denoiser, scheduler=scheduler, aggregator=aggregator, calibrator=calibrator)
        self.register_to_config(
            default_num_hypotheses=default_num_hypotheses,
            default_num_inference_steps=default_num_inference_steps,
            default_flip=default_flip,
            default_share_first_step=default_share_first_step,
            default_aggregation=default_aggregation,
            window_overlap=window_overlap,
            hidden_when_converted=list(hidden_when_converted or ()),
        )

    @torch.no_grad()
    def __call__(
        self,
        keypoints_2d: Any,
        confidence: Any = None,
        image_size: tuple[int, int] | None = None,
        camera: Camera | None = None,
        skeleton: str | None = None,
        conversion: str | None = None,
        num_hypotheses: int | None = None,
        num_inference_steps: int | None = None,
        flip: str | bool | None = None,
        share_first_step: bool | None = None,
        eta: float | None = None,
        aggregation: str | nn.Module | None = "default",
        calibrated: bool | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        noise: Tensor | None = None,
        root: Any = None,
        fps: float = 30.0,
        guidance: Energy | None = None,
        guide: Callable[..., GuideOutput] | None = None,
        max_batch_size: int = 256,
        output_type: str = "pt",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, int, dict[str, Tensor]], dict[str, Tensor] | None] | None = None,
    ) -> ProbPosePipelineOutput | tuple:
        """Sample 3D motions.

        Args:
            keypoints_2d: `(batch, frames, joints, 2)` or `(frames, joints, 2)` pixels; any number type; NaN = not observed. Any length.
            confidence: `(batch, frames, joints)` in 0..1, 0 = not observed; default 1 where a keypoint is given.
            image_size: (width, height) in pixels. Needed unless the camera has it.
            camera: the camera if known (also one per clip); else one with a 55° field of view over the longer image side is assumed.
            skeleton: joint set of the keypoints, e.g. "coco_17"; default the model's.
            conversion: formula of the skeleton conversion where there are several ("simple", "demo", "gast").
            num_hypotheses: K, at least 1.
            num_inference_steps: sampling steps, 1..1000.
            flip: average with the mirrored prediction "every_step" (published), at the "last_step" only, or False; or "alternate":
                every other hypothesis is predicted from the mirrored view, so that averages over hypotheses have the benefit for nothing.
                Network passes per window with K hypotheses and S steps: 2KS, K(S+1), KS, KS.
            share_first_step: predict the first clean pose once per window instead of K times (its input is pure noise to 5e-5).
                Replaces the first step's K passes by one, or by two where it is averaged with its mirror ("every_step", "alternate").
            aggregation: "attention" (if the pipeline has a learned aggregator), "jpma", "mean", "median", "weighted", an `Aggregator`, or
                None for hypotheses only.
            calibrated: spread the hypotheses as far as the truth lies from them, and give `uncertainty` and `radius` accordingly. False: as
                sampled. None: if the pipeline has a calibrator and nothing guides the sampling. The pose is the same either way.
            generator: random source; a list gives every clip its own, so that a clip's result does not depend on its batch.
            noise: standard normal noise to use: `(batch, K, frames, joints, 3)` for the start, the steps' being drawn; or
                `(draws, batch, K, frames, joints, 3)` for the start and every stochastic step in order (without `batch` for an unbatched
                clip). Same noise, same answer.
            root: root trajectory `(batch, frames, 3)` metres in camera axes, if known; used by the reprojecting aggregators.
            fps: frame rate of the clip, used by the root estimate.
            guidance: what else is known of the motion: any energy, e.g. of further cameras, which the network need not know of:
                `ReprojectionEnergy.from_detections([camera2], [keypoints2])`. It should be a negative log-likelihood, since it is weighed
                against how sure the network is. It sees the world's axes if the camera has rotation and translation, otherwise the
                camera's, joints relative to the root, and in the root's place the root's trajectory, which is estimated from the keypoints
                for every hypothesis unless it is given. The likelihood of the call's own keypoints is added. For a batch, what belongs to
                clips needs an axis of size one for the hypotheses: keypoints `(batch, 1, frames, joints, 2)`.
            guide: how an energy moves predicted poses; default `GaussNewtonGuide(substeps=3, spread=0.05)`, the network's own error.
            max_batch_size: largest number of windows × hypotheses per network call; bounds the memory.
            output_type: "pt" or "np".
            return_dict: False gives a tuple (hypotheses, pose, uncertainty, root, camera).
            callback_on_step_end: called as (pipeline, step index, timestep, {"sample", "clean"}) after every step of every group of
                hypotheses; may return a dict with a new "sample".

        Returns:
            `ProbPosePipelineOutput`: metres, camera axes, root-relative.

        Raises:
            ValueError: any input of the wrong shape or range; the message names the value and what is allowed. An energy that is not
                finite, with the step.
        """
        settings = self.settings(num_hypotheses, num_inference_steps, flip, share_first_step, eta)
        aggregator = self.choose_aggregator(aggregation)
        calibrated = self.check_calibrated(False if guidance is not None and calibrated is None else calibrated)
        check_call(output_type, max_batch_size, fps)
        check_guidance(guidance)
        inputs = self.prepare_inputs(keypoints_2d, confidence, image_size, camera, skeleton, conversion, root)
        hypotheses = self.sample_clips(
            inputs.network_2d, inputs.confidence, settings, generator, self.check_noise(noise, inputs, settings.num_hypotheses, 3),
            int(max_batch_size), callback_on_step_end, None if guidance is None else _Steering(self, inputs, guidance, guide, fps),
        )  # fmt: skip
        return self.finish(hypotheses, inputs, aggregator, fps, output_type, return_dict, calibrated)

    def count_passes(
        self,
        num_frames: int,
        num_hypotheses: int | None = None,
        num_inference_steps: int | None = None,
        flip: str | bool | None = None,
        share_first_step: bool | None = None,
    ) -> int:
        """Network passes (one window, one hypothesis, one orientation each) that a call on a clip of this length costs."""
        settings = self.settings(num_hypotheses, num_inference_steps, flip, share_first_step)
        windows = len(window_starts(num_frames, self.denoiser.config.num_frames, self.overlap))
        return windows * sum(
            (1 if settings.shared(i) else settings.num_hypotheses) * (2 if settings.flipped(i) else 1)
            for i in range(settings.num_inference_steps)
        )

    @torch.no_grad()
    def sample_clips(
        self,
        network_2d: Tensor,
        confidence: Tensor,
        settings: SamplerSettings,
        generator: torch.Generator | list[torch.Generator] | None = None,
        noise: Tensor | None = None,
        max_batch_size: int = 256,
        callback: Callable | None = None,
        steering: _Steering | None = None,
    ) -> Tensor:
        """The sampler in the network's units: `(batch, frames, joints, 2)` to `(batch, K, frames, joints, 3)`, the root joint at zero.

        Hypotheses are worked through in groups, and windows within a group, so that no more than `max_batch_size` are in the network
        at once. Each hypothesis of each clip has its own random stream, so the grouping never changes the result. `steering`, which only a
        call can make, guides the clean poses of every step.
        """
        batch, frames = network_2d.shape[:2]
        count = settings.num_hypotheses
        timesteps = self._set_timesteps(settings, noise)
        windows = Windows.cut(self.denoiser.config, network_2d, confidence, self.overlap)
        length = windows.clip_length
        noise = NoiseSource(noise, generator, batch, count, (length, self.num_output_joints, 3), network_2d.device)
        group = max(1, min(count, max_batch_size // len(windows)))
        if steering is not None and steering.guide.couples_hypotheses:
            group = count
        out = torch.empty(batch, count, frames, self.num_output_joints, 3, device=network_2d.device)
        shared = None
        if settings.shared(0):
            x = noise.draw(0, slice(0, 1)) * self.scheduler.init_noise_sigma
            shared = self._predict(x, timesteps[0], windows, settings.flipped(0), max_batch_size)
        with self.progress_bar(total=-(-count // group) * len(timesteps)) as bar:
            for first in range(0, count, group):
                members = slice(first, min(first + group, count))
                x = self._sample_group(noise, members, timesteps, windows, settings, shared, max_batch_size, callback, bar, steering)
                if not torch.isfinite(x).all():
                    raise ValueError(
                        f"sampling left the range of numbers: check the denoiser's weights ({self.denoiser.dtype}) and the scheduler "
                        f"({type(self.scheduler).__name__}; with eta=1 a float32 noise schedule is too coarse for the first step)"
                    )
                out[:, members] = x[:, :, :frames]
        out /= self.scheduler.config.get("scale", 1.0)
        out[..., self.root_index, :] = 0  # which the network leaves free
        return out

    def _set_timesteps(self, settings: SamplerSettings, noise: Tensor | None) -> list[int | float]:
        """Timesteps of a call, once it is certain that the scheduler can do what is asked for."""
        scheduler = self.scheduler
        name, accepted = type(scheduler).__name__, inspect.signature(scheduler.step).parameters
        if scheduler.config.get("prediction_type", "sample") != "sample":
            raise ValueError(f"{name} must have prediction_type='sample', got {scheduler.config.prediction_type!r}")
        if settings.eta is not None and "eta" not in accepted:
            raise ValueError(f"{name} has no eta, got eta={settings.eta}")
        scheduler.set_timesteps(settings.num_inference_steps)
        timesteps = scheduler.timesteps.tolist()
        if len(timesteps) != settings.num_inference_steps:
            raise ValueError(f"{name} calls the network {len(timesteps)} times in {settings.num_inference_steps} steps; it must do so once")
        if noise is not None and len(noise) > 1:
            if "variance_noise" not in accepted:
                raise ValueError(f"{name} takes no noise for its steps: noise may only hold 1 draw, got {len(noise)}")
            needed = 1 + sum(self._is_stochastic(i, timesteps, settings) for i in range(len(timesteps)))
            if len(noise) < needed:
                raise ValueError(f"noise must hold 1 draw or at least {needed} in {len(timesteps)} steps, got {len(noise)}")
        return timesteps

    def _sample_group(
        self, noise: NoiseSource, members: slice, timesteps: list[int | float], windows: Windows, settings: SamplerSettings,
        shared: Tensor | None, max_batch_size: int, callback: Callable | None, bar: Any, steering: _Steering | None,
    ) -> Tensor:  # fmt: skip
        scheduler = self.scheduler
        scheduler.set_timesteps(settings.num_inference_steps)  # multistep schedulers remember their past outputs
        accepted = inspect.signature(scheduler.step).parameters
        # The predicted noise follows from the clamped clean pose, as published.
        options = {k: v for k, v in {"eta": settings.eta, "use_clipped_model_output": True}.items() if k in accepted and v is not None}
        x = noise.draw(0, members) * scheduler.init_noise_sigma
        for i, t in enumerate(timesteps):
            if settings.shared(i):
                clean = shared.expand_as(x)
            else:
                mirrored = slice((1 - members.start) % 2, None, 2) if settings.alternates(i) else None
                clean = self._predict(x, t, windows, settings.flipped(i), max_batch_size, mirrored)
            if steering is not None:
                try:
                    clean = steering(clean, t)
                except ValueError as error:
                    raise ValueError(f"step {i} (timestep {t}): {error}") from error
            random: dict[str, Any] = {}
            if "variance_noise" in accepted and self._is_stochastic(i, timesteps, settings):
                random["variance_noise"] = noise.draw(i + 1, members).flatten(0, 1)
            elif "generator" in accepted:  # one for each row, so that no scheduler turns to the global one
                random["generator"] = noise.streams(i + 1, members)
            x = scheduler.step(clean.flatten(0, 1), t, x.flatten(0, 1), **options, **random).prev_sample.unflatten(0, x.shape[:2])
            if callback is not None:
                x = (callback(self, i, t, {"sample": x, "clean": clean}) or {}).get("sample", x)
            bar.update()
        return x

    def _predict(self, x: Tensor, t: float, windows: Windows, average: bool, max_batch_size: int, mirrored: slice | None = None) -> Tensor:
        """Clean pose of clips `(batch, K, length, joints, 3)`: every window through the network, blended."""
        config = self.scheduler.config
        limit = config.get("clip_range") or config.get("clip_sample_range") or _NOISY_POSE_LIMIT
        x = self.scheduler.scale_model_input(x, t).clamp(-limit, limit)

        def predict(rows: Tensor, cut: Tensor) -> Tensor:
            return self._denoise(windows.keypoints[rows], cut, t, windows.confidence[rows], average, mirrored)

        return windows.blended(x, predict, max_batch_size)

    def _denoise(self, keypoints: Tensor, noisy: Tensor, t: float, confidence: Tensor, average: bool, mirrored: slice | None) -> Tensor:
        """Clean pose of windows `(windows, K, frames, joints, 3)`: as they are, averaged with their mirror, or some from the mirror."""
        if average:
            return sum(self._view(keypoints, noisy, t, confidence, mirror) for mirror in (False, True)) / 2
        if mirrored is None:
            return self._view(keypoints, noisy, t, confidence, False)
        clean = torch.empty_like(noisy)
        for mirror, members in ((False, slice(1 - mirrored.start, None, 2)), (True, mirrored)):
            if noisy[:, members].numel():
                clean[:, members] = self._view(keypoints, noisy[:, members], t, confidence, mirror)
        return clean

    def _view(self, keypoints: Tensor, noisy: Tensor, t: float, confidence: Tensor, mirror: bool) -> Tensor:
        """One network call; a mirrored one sees the mirrored person, and its answer is mirrored back."""
        if not mirror:
            return self._call(keypoints, noisy, t, confidence)
        canonical = self.canonical_camera
        centre = 0.0 if canonical is None else canonical[2]
        order_2d, order_3d = (list(get_skeleton(name).flip_index) for name in (self.input_skeleton, self.skeleton))
        clean = self._call(mirrored_points(keypoints, order_2d, centre), mirrored_points(noisy, order_3d), t, confidence[..., order_2d])
        return mirrored_points(clean, order_3d)

    def _call(self, keypoints: Tensor, noisy: Tensor, t: float, confidence: Tensor) -> Tensor:
        dtype, unit = self.denoiser.dtype, self.denoiser.config.get("unit_scale", 1.0)
        keypoints, noisy, confidence = (tensor.to(dtype) for tensor in (keypoints, noisy * unit, confidence))
        return self.denoiser(keypoints, noisy, t, confidence=confidence, return_dict=False)[0].float() / unit

    def _is_stochastic(self, step: int, timesteps: list[int | float], settings: SamplerSettings) -> bool:
        if hasattr(self.scheduler, "is_stochastic"):
            return self.scheduler.is_stochastic(timesteps[step], settings.eta)
        return step + 1 < len(timesteps)

    def settings(
        self,
        num_hypotheses: int | None = None,
        num_inference_steps: int | None = None,
        flip: str | bool | None = None,
        share_first_step: bool | None = None,
        eta: float | None = None,
    ) -> SamplerSettings:
        """How a call with these arguments samples; None: the pipeline's default."""
        config = self.config
        return SamplerSettings(
            config.default_num_hypotheses if num_hypotheses is None else num_hypotheses,
            config.default_num_inference_steps if num_inference_steps is None else num_inference_steps,
            config.default_flip if flip is None else flip,
            config.default_share_first_step if share_first_step is None else share_first_step,
            eta,
        )


class _Steering:
    """One call's guidance: moves clean poses to where an energy is lower.

    Args:
        pipe, inputs, energy, guide, fps: of the call.
    """

    def __init__(self, pipe: D3DPPipeline, inputs: PreparedInputs, energy: Energy, guide: Callable[..., GuideOutput] | None, fps: float):
        if pipe.root_index != 0:
            raise ValueError(f"guidance needs a model whose root is joint 0, that of {pipe.skeleton!r} is {pipe.root_index}")
        if pipe.input_skeleton != pipe.skeleton:
            raise ValueError(f"guidance needs keypoints of the joints that are predicted: {pipe.input_skeleton!r} is not {pipe.skeleton!r}")
        self.scheduler, self.guide = pipe.scheduler, guide or GaussNewtonGuide(substeps=3, spread=_OWN_ERROR)
        self.frames = inputs.keypoints_2d.shape[1]
        lens = Scene.behind_canonical_lens(inputs.camera).to(pipe.device)
        seen = reexpress_keypoints(inputs.keypoints_2d, inputs.camera, lens)
        self.scene = Scene([lens], [torch.nan_to_num(seen)], [inputs.confidence], fps)
        self.root = None if inputs.root is None else self.scene.place_in_scene(inputs.root)[:, None]
        # Joints should not leave the rays that the network's own keypoints put them on.
        self.energy = energy + self.scene.likelihood()

    def __call__(self, clean: Tensor, timestep: float) -> Tensor:
        """Clean poses `(batch, k, length, joints, 3)`, guided; frames beyond the clip, with which short ones are padded, stay."""
        scene, noise_level = self.scene, self.noise_level(timestep)
        seen, padding = clean[:, :, : self.frames], clean[:, :, self.frames :]
        joints = scene.from_camera_axes(seen)[..., 1:, :]  # the network leaves the root free
        if self.root is None:
            root = scene.estimate_root(nn.functional.pad(joints, (0, 0, 1, 0)), min(noise_level, _OWN_ERROR))
        else:
            root = self.root.expand_as(joints[..., 0, :])
        motion = torch.cat([root[..., None, :], joints], dim=-2)
        if self.root is None:
            motion = _ROOT_GUIDE(motion, _OfRoot(self.energy), noise_level=1.0).pose
        guided = scene.to_camera_axes(self.guide(motion, self.energy, noise_level).pose)
        return torch.cat([torch.cat([seen[..., :1, :], guided[..., 1:, :]], dim=-2), padding], dim=2)

    def noise_level(self, timestep: float) -> float:
        """Standard deviation in metres of a noisy pose about the clean one."""
        if hasattr(self.scheduler, "noise_level"):
            return self.scheduler.noise_level(timestep)
        alpha = max(self.scheduler.alphas_cumprod[int(timestep)].item(), 1e-12)  # some end in nothing but noise
        return math.sqrt((1 - alpha) / alpha) / self.scheduler.config.get("scale", 1.0)


class _OfRoot(Energy):
    """An energy of motions whose root alone can move.

    One camera leaves the root's depth uncertain by more than the joints are, in the same way for all of them. What says where the person
    is, has to move the root before it can say anything of the joints.
    """

    def __init__(self, energy: Energy):
        self.energy, self.terms = energy, energy.terms

    def __call__(self, motion: Tensor) -> Tensor:
        return self.energy(torch.cat([motion[..., :1, :], motion[..., 1:, :].detach()], dim=-2))

    def curvature(self, motion: Tensor) -> Tensor:
        curvature = self.energy.curvature(motion)
        return torch.cat([curvature[..., :1, :, :], torch.zeros_like(curvature[..., 1:, :, :])], dim=-3)


@dataclass(frozen=True)
class SamplerSettings:
    """How one call samples; checked on construction."""

    num_hypotheses: int = 20
    num_inference_steps: int = 10
    flip: str | bool = "every_step"
    share_first_step: bool = False
    eta: float | None = None

    def __post_init__(self) -> None:
        for name, most in (("num_hypotheses", math.inf), ("num_inference_steps", 1000)):
            object.__setattr__(self, name, checked_count(name, getattr(self, name), most))
        if self.flip is True:
            object.__setattr__(self, "flip", "every_step")
        if self.flip not in FLIP_MODES:
            raise ValueError(f"flip must be one of {FLIP_MODES}, got {self.flip!r}")
        if not isinstance(self.share_first_step, bool):
            raise ValueError(f"share_first_step must be True or False, got {self.share_first_step!r}")
        check_eta(self.eta)

    def flipped(self, step: int) -> bool:
        """Whether this step averages with the mirrored prediction."""
        if self.flip == "alternate":
            return self.shared(step) and self.num_hypotheses > 1
        return self.flip == "every_step" or (self.flip == "last_step" and step == self.num_inference_steps - 1)

    def alternates(self, step: int) -> bool:
        """Whether this step predicts every other hypothesis from the mirrored view."""
        return self.flip == "alternate" and not self.shared(step)

    def shared(self, step: int) -> bool:
        """Whether this step's prediction is made once for all hypotheses (never the last step: all hypotheses would coincide)."""
        return self.share_first_step and step == 0 and self.num_inference_steps > 1
