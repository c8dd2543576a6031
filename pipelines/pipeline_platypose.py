"""Platypose: K hypotheses from a motion prior that is guided towards what cameras saw (Pierzchlewicz et al., arXiv 2403.06164)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from probpose.geometry import Camera, rotation_between_z_and
from probpose.guidance import Energy, GaussNewtonGuide, GuideOutput, ReprojectionEnergy
from probpose.guidance.energies import absolute
from probpose.schedulers import EnergyGuidedDDIMScheduler
from probpose.skeletons import get_skeleton

from .noise import NoiseSource
from .pipeline_output import ProbPosePipelineOutput
from .pipeline_probpose import PreparedInputs, ProbPosePipeline, as_tensor, check_call, check_eta, checked_count, is_a
from .scene import CANONICAL, Scene, check_guidance, tilted, with_bones
from .windows import Windows, cut_windows

ROOTS = ("estimate", "state")
LIKELIHOODS = ("confidence", "published", None)

_SIZE_KNOWN = 0.1
"""Metres: noise below which a prediction has the person's own size rather than that of a mean."""

_UNSEEN_DEPTH = 4.0
"""Metres in front of the camera, where a motion is put while nothing says where it is."""


class PlatyposePipeline(ProbPosePipeline):
    """Motion prior, guided: no 2D-3D pairs in training, any number of cameras when sampling.

    At every step the prior predicts the clean motion, and a guide moves that to where it agrees with the keypoints; sampling goes on there.
    Hypotheses differ by the noise that they begin with. Nothing is known of the ground truth: where the person stands is estimated anew in
    every step, for every hypothesis.

    Args:
        denoiser: `MotionPriorModel`.
        scheduler: `EnergyGuidedDDIMScheduler`.
        aggregator: learned aggregator (`probpose.models.AttentionAggregator`), what `aggregation="attention"` means; or None.
        calibrator: `probpose.calibration.Recalibration`, or None.
        default_num_hypotheses, default_num_inference_steps, default_aggregation: what a call uses that does not say.
        default_energy_scale: factor on the energy of the keypoints.
        guide_substeps, guide_trust: of the `GaussNewtonGuide` that a call uses which brings no guide.
        window_overlap: frames that neighbouring windows of a long clip share; default a third of the model's window.
        hidden_when_converted: joints that are treated as not observed when the keypoints had to be converted from another skeleton.
    """

    _optional_components = ["aggregator", "calibrator"]  # noqa: RUF012  (diffusers reads it from the class)

    def __init__(
        self,
        denoiser,
        scheduler,
        aggregator=None,
        calibrator=None,
        default_num_hypotheses: int = 50,
        default_num_inference_steps: int | None = None,
        default_aggregation: str | None = "mean",
        default_energy_scale: float = 1.0,
        guide_substeps: int = 2,
        guide_trust: float = 1.0,
        window_overlap: int | None = None,
        hidden_when_converted: list[int] | None = None,
    ):
        super().__init__()
        if "axes" not in denoiser.config or not isinstance(scheduler, EnergyGuidedDDIMScheduler):
            raise ValueError(
                "PlatyposePipeline guides a MotionPriorModel by an EnergyGuidedDDIMScheduler, got "
                f"{type(denoiser).__name__} and {type(scheduler).__name__}"
            )
        GaussNewtonGuide(guide_substeps, guide_trust)
        self.register_modules(denoiser=denoiser, scheduler=scheduler, aggregator=aggregator, calibrator=calibrator)
        self.register_to_config(
            default_num_hypotheses=default_num_hypotheses,
            default_num_inference_steps=default_num_inference_steps or scheduler.config.num_inference_steps,
            default_aggregation=default_aggregation,
            default_energy_scale=default_energy_scale,
            guide_substeps=guide_substeps,
            guide_trust=guide_trust,
            window_overlap=window_overlap,
            hidden_when_converted=list(hidden_when_converted or ()),
        )
        self.settings()

    @torch.no_grad()
    def __call__(
        self,
        keypoints_2d: Any,
        confidence: Any = None,
        image_size: Any = None,
        camera: Camera | None = None,
        skeleton: str | None = None,
        conversion: str | None = None,
        num_hypotheses: int | None = None,
        num_inference_steps: int | None = None,
        eta: float | None = None,
        aggregation: str | nn.Module | None = "default",
        calibrated: bool | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        noise: Tensor | None = None,
        root: Any = "estimate",
        fps: float = 30.0,
        cameras: Sequence[Camera] | None = None,
        guidance: Energy | None = None,
        guide: Callable[..., GuideOutput] | None = None,
        likelihood: str | None = "confidence",
        energy_scale: float | None = None,
        estimate_focal: bool = False,
        estimate_tilt: bool | None = None,
        init_pose: Any = None,
        max_batch_size: int = 256,
        output_type: str = "pt",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, int, dict[str, Tensor]], dict[str, Tensor] | None] | None = None,
    ) -> ProbPosePipelineOutput | tuple:
        """Sample 3D motions. Arguments that are not listed are those of `D3DPPipeline`.

        Args:
            keypoints_2d: `(batch, frames, joints, 2)` or `(frames, joints, 2)` pixels, NaN = not observed; of several cameras a list, one
                entry for each. A clip that no camera saw anything of is drawn from the prior alone, with a warning. Any length.
            confidence, image_size: of several cameras a list, too.
            camera: the camera if known (also one per clip).
            cameras: several cameras, each with rotation and translation. The output is in the axes of the first.
            num_inference_steps: steps of the scheduler's list, of which it skips the noisiest; None: the pipeline's default.
            root: "estimate" (or None): where the person is, is estimated from the keypoints at every step, for every hypothesis; "state":
                the prior's own trajectory is sampled along; or a trajectory `(batch, frames, 3)` in metres in the first camera's axes, if
                it is known. (Platypose's published runs were given the true one. Of a prior with absolute trajectories it is then added to
                all joints and the prior's own is driven to zero, as published.)
            guidance: what else is known of the motion: any energy. It sees the world's axes if the camera has extrinsics, otherwise the
                camera's (with a prior in world axes turned so that z is up), and the root's trajectory in the root's place.
            guide: `GaussNewtonGuide` (default) or `GradientGuide` (published).
            likelihood: "confidence": keypoints are as far off as their confidence says, outliers are let go of; "published": squared
                distances in units of 500 pixels, weighted by confidence, through the real lens; None: only `guidance` counts.
            energy_scale: factor on the energy of the keypoints.
            estimate_focal: correct the focal length of an unknown camera while sampling; of one camera. `out.camera` has the estimate.
            estimate_tilt: find out while sampling by how much one camera looks up or down, for priors in world axes, which know where up
                is. None: if the camera has no rotation and no root is given. `out.camera` has the estimate. Hypotheses share the camera, so
                that each then depends on how many there are.
            init_pose: `(batch, frames, joints, 3)` root-relative metres, first camera's axes, to begin from instead of noise alone.
            noise: as in `D3DPPipeline`; in the axes of the prior.

        Returns:
            `ProbPosePipelineOutput`: metres, axes of the first camera, root-relative.

        Raises:
            ValueError: any input of the wrong shape or range; cameras and keypoints that are not equally many or long; a camera with the
                person behind it; an energy that is not finite, with the step. The message names the value and what is allowed.
        """
        mode = "estimate" if root is None else root if isinstance(root, str) else "given"
        if isinstance(root, str) and root not in ROOTS:
            raise ValueError(f"root must be one of {ROOTS}, or a trajectory, got {root!r}")
        settings = self.settings(num_hypotheses, num_inference_steps, eta, mode, energy_scale)
        several = isinstance(cameras, (list, tuple)) and len(cameras) > 1
        aggregator = self.choose_aggregator(self._aggregation_of(aggregation, several))
        calibrated = self.check_calibrated(False if several and calibrated is None else calibrated)
        check_call(output_type, max_batch_size, fps)
        if likelihood not in LIKELIHOODS:
            raise ValueError(f"likelihood must be one of {LIKELIHOODS}, got {likelihood!r}")
        check_guidance(guidance, guide)
        if likelihood is None and guidance is None:
            raise ValueError("likelihood=None needs a guidance: nothing would tie the motion to the keypoints")
        if estimate_focal and several:
            raise ValueError(f"estimate_focal corrects the focal length of one camera, got {len(cameras)} cameras")
        if estimate_tilt and (several or not self.needs_gravity):
            raise ValueError("estimate_tilt is for one camera and a prior in world axes")
        if estimate_tilt and mode == "given":
            raise ValueError("estimate_tilt needs the root to be estimated: pass a root or estimate_tilt=True, not both")
        views = self._prepare_views(
            keypoints_2d, confidence, image_size, camera, cameras, skeleton, conversion, None if isinstance(root, str) else root
        )
        inputs = views[0]
        noise = self.check_noise(noise, inputs, settings.num_hypotheses, 3)
        init_pose = self._check_init_pose(init_pose, inputs)
        scene = self._scene([v.network_2d for v in views], [v.confidence for v in views], [v.camera for v in views], fps)
        for clip in (~scene.observed).nonzero().flatten().tolist():
            warnings.warn(f"clip {clip} has no observed keypoint: its hypotheses are drawn from the prior alone", stacklevel=3)
        seen = {"confidence": Scene.likelihood, "published": partial(_published_likelihood, views), None: None}[likelihood]
        if estimate_tilt is None:
            estimate_tilt = self.needs_gravity and inputs.camera.rotation is None and inputs.root is None
        sampler = _Sampler(
            self, scene, settings, guide or self.guide(), guidance, int(max_batch_size), seen, inputs.root, estimate_focal, estimate_tilt
        )
        hypotheses, roots = self._sample(sampler, generator, noise, init_pose, callback_on_step_end)
        if inputs.root is None and (several or not scene.observed.all()):
            inputs = replace(inputs, root=roots.mean(1))
        if estimate_focal:
            factor = scene.focal_factor[:, None] if inputs.batched else scene.focal_factor
            inputs = replace(inputs, camera=replace(inputs.camera, focal=inputs.camera.focal * factor))
        if estimate_tilt:
            stand = scene.cameras[0] if inputs.batched else _only(scene.cameras[0])
            inputs = replace(inputs, camera=replace(inputs.camera, rotation=stand.rotation, translation=stand.translation))
        return self.finish(hypotheses, inputs, aggregator, fps, output_type, return_dict, calibrated)

    @torch.no_grad()
    def generate(
        self,
        num_frames: int,
        num_motions: int = 1,
        guidance: Energy | None = None,
        guide: Callable[..., GuideOutput] | None = None,
        num_inference_steps: int | None = None,
        eta: float | None = None,
        generator: torch.Generator | None = None,
        max_batch_size: int = 256,
        fps: float = 30.0,
    ) -> tuple[Tensor, Tensor]:
        """Draw motions that no camera saw: from the prior alone, or guided by what is known of them.

        Args:
            num_frames, num_motions: any length; how many.
            guidance: an energy in the prior's axes, e.g. an `InpaintingEnergy` of known joints or frames; None: anything goes.
            generator, num_inference_steps, eta, guide, max_batch_size, fps: as in a call.

        Returns:
            Motions `(num_motions, num_frames, joints, 3)` relative to the root, and the root's trajectories `(num_motions, num_frames, 3)`,
            metres, both in the prior's axes. Of a prior with relative trajectories these are about their mean.

        Raises:
            ValueError: a number out of its range, or an energy that is not finite.
        """
        settings = self.settings(checked_count("num_motions", num_motions), num_inference_steps, eta, "state")
        check_call("pt", max_batch_size, fps)
        check_guidance(guidance, guide)
        shape = (1, checked_count("num_frames", num_frames), self.num_output_joints)
        nothing = torch.zeros(shape, device=self.device)
        scene = Scene([Scene.behind_canonical_lens(None)], [nothing[..., None].expand(*shape, 2)], [nothing], fps)
        sampler = _Sampler(self, scene, settings, guide or self.guide(), guidance, int(max_batch_size), None, unseen_depth=0.0)
        hypotheses, roots = self._sample(sampler, generator, turn=False)
        return hypotheses[0], roots[0]

    @torch.no_grad()
    def sample_clips(
        self,
        network_2d: Tensor,
        confidence: Tensor,
        settings: PlatyposeSettings,
        generator: torch.Generator | list[torch.Generator] | None = None,
        noise: Tensor | None = None,
        max_batch_size: int = 256,
        callback: Callable | None = None,
        up: Tensor | None = None,
    ) -> Tensor:
        """The sampler in the network's units: `(batch, frames, joints, 2)` to `(batch, K, frames, joints, 3)`, the root joint at zero.

        Args:
            up: `(batch, 3)`, the vertical in camera axes, for priors in world axes; None: estimated.
        """
        camera = None if up is None else Camera(CANONICAL[:2], CANONICAL[2:], rotation=rotation_between_z_and(up), translation=0 * up)
        scene = self._scene([network_2d], [confidence], [camera])
        sampler = _Sampler(self, scene, settings, self.guide(), None, max_batch_size, estimate_tilt=self.needs_gravity and up is None)
        return self._sample(sampler, generator, noise, None, callback)[0]

    def settings(
        self,
        num_hypotheses: int | None = None,
        num_inference_steps: int | None = None,
        eta: float | None = None,
        root: str = "estimate",
        energy_scale: float | None = None,
    ) -> PlatyposeSettings:
        """How a call with these arguments samples; None: the pipeline's default."""
        config = self.config
        return PlatyposeSettings(
            config.default_num_hypotheses if num_hypotheses is None else num_hypotheses,
            config.default_num_inference_steps if num_inference_steps is None else num_inference_steps,
            eta,
            root,
            config.default_energy_scale if energy_scale is None else energy_scale,
        )

    def guide(self) -> GaussNewtonGuide:
        """The guide of a call that brings none."""
        return GaussNewtonGuide(self.config.guide_substeps, self.config.guide_trust)

    @property
    def needs_gravity(self) -> bool:
        return self.denoiser.config.axes == "world"

    @property
    def canonical_camera(self) -> tuple[float, float, float, float]:
        return CANONICAL

    def _aggregation_of(self, aggregation: Any, several: bool) -> Any:
        """Learned aggregators have met hypotheses of one camera only."""
        return "mean" if several and aggregation == "default" and self.config.default_aggregation == "attention" else aggregation

    def _prepare_views(
        self,
        keypoints_2d: Any,
        confidence: Any,
        image_size: Any,
        camera: Camera | None,
        cameras: Any,
        skeleton: Any,
        conversion: Any,
        root: Any,
    ) -> list[PreparedInputs]:
        """The checked inputs of every camera."""
        if cameras is None:
            if isinstance(camera, (list, tuple)):
                raise ValueError(f"camera must be one Camera, got {len(camera)}: pass several as cameras, with a list of keypoints_2d")
            return [self.prepare_inputs(keypoints_2d, confidence, image_size, camera, skeleton, conversion, root, allow_empty=True)]
        if camera is not None:
            raise ValueError("pass camera or cameras, not both")
        if not isinstance(cameras, (list, tuple)) or not cameras:
            raise ValueError(f"cameras must be a list of probpose.geometry.Camera, got {type(cameras).__name__} {cameras!r:.50}")
        count = len(cameras)
        for name, value in (("keypoints_2d", keypoints_2d), ("confidence", confidence)):
            if not (value is None and name == "confidence") and (not hasattr(value, "__len__") or len(value) != count):
                entries = len(value) if hasattr(value, "__len__") else "no"
                raise ValueError(f"{name} must be a list with one entry for each camera: {count} cameras, {entries} entries")
        listed = isinstance(image_size, (list, tuple)) and not all(isinstance(side, Real) for side in image_size)
        sizes = image_size if listed else [image_size] * count
        if len(sizes) != count:
            raise ValueError(f"image_size must be one or a list with one for each camera: {count} cameras, {len(sizes)} sizes")
        views: list[PreparedInputs] = []
        for number, each in enumerate(cameras):
            if count > 1 and (not isinstance(each, Camera) or each.rotation is None or each.translation is None):
                raise ValueError(f"camera {number} has no rotation and translation: several cameras must say where they stand")
            known = None if confidence is None else confidence[number]
            place = root if number == 0 else None
            try:
                view = self.prepare_inputs(keypoints_2d[number], known, sizes[number], each, skeleton, conversion, place, allow_empty=True)
            except ValueError as error:
                raise ValueError(f"camera {number}: {error}") from error
            views.append(view)
            shapes = [tuple(v.keypoints_2d.shape[:2]) for v in (views[0], view)]
            if shapes[0] != shapes[1]:
                raise ValueError(
                    f"all cameras must have as many clips and frames, got {shapes[0]} of camera 0 and {shapes[1]} of camera {number}"
                )
        return views

    def _scene(self, keypoints: list[Tensor], confidence: list[Tensor], cameras: list[Camera | None], fps: float = 30.0) -> Scene:
        lenses = [Scene.behind_canonical_lens(camera) for camera in cameras]
        if self.needs_gravity and lenses[0].rotation is None:
            lenses = [replace(lenses[0], rotation=tilted(torch.zeros(())), translation=torch.zeros(3))]
        return Scene([lens.to(self.device) for lens in lenses], [torch.nan_to_num(k) for k in keypoints], confidence, fps)

    def _check_init_pose(self, init_pose: Any, inputs: PreparedInputs) -> Tensor | None:
        if init_pose is None:
            return None
        pose = as_tensor(init_pose, "init_pose").to(inputs.network_2d)
        pose = pose if inputs.batched else pose[None]
        expected = (*inputs.network_2d.shape[:2], self.num_output_joints, 3)
        if tuple(pose.shape) != expected or not torch.isfinite(pose).all():
            raise ValueError(
                f"init_pose must be finite and have shape {expected if inputs.batched else expected[1:]}, got {tuple(pose.shape)}"
            )
        return pose

    def _sample(
        self, sampler: _Sampler, generator: Any, noise: Tensor | None = None, init_pose: Tensor | None = None,
        callback: Callable | None = None, turn: bool = True,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Hypotheses `(batch, K, frames, joints, 3)`, root-relative, and their roots `(batch, K, frames, 3)`: first camera's axes."""
        batch, count = len(sampler.observed), sampler.settings.num_hypotheses
        shape = (sampler.windows.clip_length, self.num_output_joints, 3)
        needed = 1 + sum(self.scheduler.is_stochastic(t, sampler.settings.eta) for t in self.scheduler.timesteps)
        if noise is not None and 1 < len(noise) < needed:
            raise ValueError(f"noise must hold 1 draw or at least {needed} in {len(self.scheduler.timesteps)} steps, got {len(noise)}")
        source = NoiseSource(noise, generator, batch, count, shape, self.device)
        group = count if sampler.couples_hypotheses else max(1, min(count, sampler.max_batch_size // len(sampler.windows)))
        parts, scene = [], sampler.scene
        total = -(-count // group) * len(self.scheduler.timesteps)
        # Autocast is for the network; half precision would be too coarse for what comes after it.
        with self.progress_bar(total=total) as bar, torch.autocast(self.device.type, enabled=False):
            for first in range(0, count, group):
                parts.append(sampler.run(source, slice(first, min(first + group, count)), init_pose, callback, bar))
            motions, roots = (torch.cat(part, dim=1)[:, :, : sampler.frames] for part in zip(*parts))
            motions[..., 0, :] = 0
            if turn and self.needs_gravity:
                motions = scene.to_camera_axes(motions)
            return motions, scene.place_in_camera(roots) if turn else roots


class _Sampler:
    """One call's way from noise to motions.

    Args:
        pipe, scene, settings, guide, guidance, max_batch_size: of the call.
        likelihood: makes the energy of the keypoints of (scene, whether the trajectory is held, root or None); None: there is none.
        root: `(batch, frames, 3)` in the first camera's axes, if it is known.
        estimate_focal, estimate_tilt: whether the scene's focal length and tilt are corrected on the way.
        unseen_depth: metres in front of the camera, where unseen clips are put.
    """

    def __init__(
        self, pipe: PlatyposePipeline, scene: Scene, settings: PlatyposeSettings, guide: Callable[..., GuideOutput],
        guidance: Energy | None, max_batch_size: int, likelihood: Callable[..., Energy] | None = Scene.likelihood,
        root: Tensor | None = None, estimate_focal: bool = False, estimate_tilt: bool = False, unseen_depth: float = _UNSEEN_DEPTH,
    ):  # fmt: skip
        self.pipe, self.scene, self.settings, self.guide = pipe, scene, settings, guide
        self.max_batch_size, self.estimate_focal, self.estimate_tilt = max_batch_size, estimate_focal, estimate_tilt
        # Hypotheses share the camera; guides that say nothing of it may let them share anything.
        self.couples_hypotheses = estimate_focal or estimate_tilt or getattr(guide, "couples_hypotheses", True)
        device = pipe.device.type
        self.autocast = partial(torch.autocast, device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))
        config = pipe.denoiser.config
        self.scheduler = pipe.scheduler
        self.scheduler.set_timesteps(settings.num_inference_steps)
        self.relative, self.in_camera = config.trajectory == "relative", config.axes == "camera"
        self.windows = Windows.cut(config, scene.keypoints[0], scene.confidence[0], pipe.overlap)
        self.likelihood, self.unseen_depth = likelihood, unseen_depth
        self.observed = scene.observed
        self.root = None if root is None else scene.place_in_scene(root)[:, None]
        if self.root is not None:
            scene.check_in_front(self.root)
        # Of a known root, a prior with absolute trajectories was published as never being told.
        self.tells_root = settings.root != "state" and not (settings.root == "given" and not self.relative)
        self.in_space = likelihood is not None and (self.root is None or self.tells_root)
        self.frames = scene.keypoints[0].shape[1]
        padded = self.windows.clip_length > self.frames
        self.guidance = _Beginning(guidance, self.frames) if padded and guidance is not None else guidance
        scene.pad(self.windows.clip_length)
        self.energy = self._energy()

    def run(
        self, noise: NoiseSource, members: slice, init_pose: Tensor | None, callback: Callable | None, bar: Any
    ) -> tuple[Tensor, Tensor]:
        """Motions `(batch, k, frames, joints, 3)` in the prior's axes and their roots `(batch, k, frames, 3)` in the scene's."""
        scheduler, pipe = self.scheduler, self.pipe
        start = noise.draw(0, members)
        if init_pose is not None:
            init_pose = cut_windows(init_pose if self.in_camera else self.scene.from_camera_axes(init_pose), [0], start.shape[2], dim=1)
            init_pose = init_pose[0][:, None]
        x = scheduler.init_latents(start, init_pose)
        trajectory = torch.zeros_like(start[..., 0, :])
        if self.root is not None and self.tells_root:
            trajectory = self._as_trajectory(self._padded(self.root)).expand_as(trajectory)
        for i, t in enumerate(scheduler.timesteps.tolist()):
            if self.tells_root and (i > 0 or self.root is not None):
                told = scheduler.add_noise(trajectory, start[..., 0, :], torch.tensor(t)) * scheduler.config.scale
                x = torch.cat([told[..., None, :], x[..., 1:, :]], dim=-2)
            random = noise.draw(i + 1, members) if scheduler.is_stochastic(t, self.settings.eta) else None
            try:
                clean = self._predict(x, t, trajectory)
                out = scheduler.step(clean, t, x, self._guide, eta=self.settings.eta, variance_noise=random)
            except ValueError as error:
                raise ValueError(f"step {i} (timestep {t}): {error}") from error
            x, trajectory = out.prev_sample, out.pred_original_sample[..., 0, :]
            if callback is not None:
                seen = {"sample": x, "clean": out.pred_original_sample, "energy": (out.trace or {}).get("energy")}
                x = (callback(pipe, i, t, seen) or {}).get("sample", x)
            bar.update()
        return scheduler.scale_model_input(x), self.places  # the last state is the clean motion, or what a callback made of it

    def _predict(self, x: Tensor, t: int, trajectory: Tensor) -> Tensor:
        """The prior's clean motion of clips `(batch, k, frames, joints, 3)`."""
        pipe, windows = self.pipe, self.windows
        dtype = pipe.denoiser.dtype
        signal = math.sqrt(self.scheduler.alphas_cumprod[t].item())

        def predict(rows: Tensor, cut: Tensor) -> Tensor:
            # Every window has its own mean to which its trajectory is relative.
            shift = torch.zeros_like(cut[:, :, :1, :1])
            if self.relative and len(windows.starts) > 1:
                places = windows.places(rows)
                shift = torch.stack([trajectory[c, :, s : s + windows.window].mean(1) for c, s in places])[:, :, None, None]
            told = torch.cat([cut[..., :1, :] - signal * shift, cut[..., 1:, :]], dim=-2)
            parts = told.to(dtype).split(self.max_batch_size, dim=1)
            with self.autocast():
                clean = torch.cat([pipe.denoiser(None, part, t, return_dict=False)[0].float() for part in parts], dim=1)
            if not torch.isfinite(clean).all():
                raise ValueError(f"sampling left the range of numbers: check the denoiser's weights ({dtype})")
            return torch.cat([clean[..., :1, :] + shift, clean[..., 1:, :]], dim=-2)

        return windows.blended(self.scheduler.scale_model_input(x, t), predict, self.max_batch_size)

    def _guide(self, clean: Tensor, noise_level: float) -> GuideOutput:
        """Guide the prior's clean motion; both are in the prior's axes, the trajectory as the prior has it."""
        scene = self.scene
        pose = self._in_scene(torch.cat([torch.zeros_like(clean[..., :1, :]), clean[..., 1:, :]], dim=-2))
        drift = self._in_scene(clean[..., 0, :])
        sized = self._sized(pose, noise_level)
        if self.estimate_tilt:
            scene.retilt(sized, noise_level)
        if self.estimate_focal:
            scene.refocus(sized, noise_level)
        if self.estimate_tilt or self.estimate_focal:
            self.energy = self._energy()
        if self.root is not None:
            places = self._padded(self.root).expand_as(drift)
        else:
            places = self._locate(sized, drift, noise_level)
        self.places = places
        untold = self.root is not None and not self.tells_root
        motion = torch.cat([(drift if untold else places)[..., None, :], pose[..., 1:, :]], dim=-2)
        if self.in_space:
            # Joints that cameras saw are guided in space, each for itself: the root's keypoint says where the root is as any other's does.
            # Likelihoods are stiff, strict about a joint's ray and silent about its depth, where single precision would show.
            motion = absolute(motion).double()
        out = GuideOutput(motion) if self.energy is None else self.guide(motion, self.energy, noise_level)
        guided, trace = out.pose, {name: value.to(clean) for name, value in (out.trace or {}).items()}
        if untold:  # as published: the energies add the root, the prior's own is left over
            return GuideOutput(self._out_of_scene(guided), trace)
        if self.root is None:
            self.places = guided[..., 0, :].to(clean)
        pose = guided[..., 1:, :] - self.places[..., None, :] if self.in_space else guided[..., 1:, :]
        return GuideOutput(torch.cat([self._as_trajectory(self.places)[..., None, :], self._out_of_scene(pose.to(clean))], dim=-2), trace)

    def _locate(self, pose: Tensor, drift: Tensor, noise_level: float) -> Tensor:
        """Root `(batch, k, frames, 3)` in the scene of root-relative poses, given the prior's own trajectory, both in the scene's axes."""
        scene, observed = self.scene, self.observed
        if self.relative:
            ahead = scene.place_in_scene(drift.new_tensor([0.0, 0.0, self.unseen_depth]).expand(len(drift), 1, 1, 3))
            own = drift - drift.mean(2, keepdim=True) + ahead
        else:
            own = drift if not self.in_camera else scene.place_in_scene(scene.to_camera_axes(drift))
        if not observed.any() or (self.settings.root == "state" and not self.relative):
            return own
        root = own.clone()
        root[observed] = scene.select(observed).estimate_root(pose[observed], noise_level)
        scene.check_in_front(root)
        if self.settings.root == "state":
            return torch.where(observed[:, None, None, None], drift + (root - drift).mean(2, keepdim=True), own)
        return root

    def _sized(self, pose: Tensor, noise_level: float) -> Tensor:
        """Poses that are as large as people are, the more so the less is known of them."""
        config = self.pipe.denoiser.config
        if config.bone_lengths is None:
            return pose
        share = noise_level**2 / (noise_level**2 + _SIZE_KNOWN**2)
        return with_bones(pose, get_skeleton(config.skeleton).bones, pose.new_tensor(config.bone_lengths), share)

    def _energy(self) -> Energy | None:
        untold = self.root is not None and not self.tells_root
        seen, guidance = None, self.guidance
        if self.likelihood is not None and self.observed.any():
            root = self._padded(self.root) if untold else self.scene.keypoints[0].new_zeros(1, 3)  # or joints that are in space already
            seen = self.settings.energy_scale * self.likelihood(self.scene, False, root)
        if guidance is not None and self.in_space:
            guidance = _OfJointsInSpace(guidance)
        terms = [term for term in (seen, guidance) if term is not None]
        return None if not terms else terms[0] if len(terms) == 1 else terms[0] + terms[1]

    def _padded(self, root: Tensor) -> Tensor:
        """A known root for as many frames as are sampled."""
        return cut_windows(root, [0], self.windows.clip_length, dim=2)[0]

    def _as_trajectory(self, places: Tensor) -> Tensor:
        """Places in the scene as what the prior has in the root's place."""
        if self.relative:
            return self._out_of_scene(places - places.mean(2, keepdim=True))
        return self.scene.place_in_camera(places) if self.in_camera else places

    def _in_scene(self, vectors: Tensor) -> Tensor:
        return self.scene.from_camera_axes(vectors) if self.in_camera else vectors

    def _out_of_scene(self, vectors: Tensor) -> Tensor:
        return self.scene.to_camera_axes(vectors) if self.in_camera else vectors


@dataclass(frozen=True)
class PlatyposeSettings:
    """How one call samples; checked on construction."""

    num_hypotheses: int = 50
    num_inference_steps: int = 20
    eta: float | None = None
    root: str = "estimate"
    energy_scale: float = 1.0

    def __post_init__(self) -> None:
        for name, most in (("num_hypotheses", math.inf), ("num_inference_steps", 1000)):
            object.__setattr__(self, name, checked_count(name, getattr(self, name), most))
        check_eta(self.eta)
        if self.root not in (*ROOTS, "given"):
            raise ValueError(f"root must be one of {ROOTS}, or a trajectory, got {self.root!r}")
        if not is_a(self.energy_scale, Real) or not 0 < self.energy_scale < math.inf:
            raise ValueError(f"energy_scale must be a positive number, got {self.energy_scale!r}")
        object.__setattr__(self, "energy_scale", float(self.energy_scale))


class _Beginning(Energy):
    """An energy of the first frames of motions: it knows nothing of those that a short clip is padded with."""

    def __init__(self, energy: Energy, frames: int):
        self.energy, self.frames = energy, frames

    def __call__(self, motion: Tensor) -> Tensor:
        return self.energy(motion[..., : self.frames, :, :])

    @torch.no_grad()
    def curvature(self, motion: Tensor) -> Tensor:
        curvature = self.energy.curvature(motion[..., : self.frames, :, :])
        return nn.functional.pad(curvature, (0, 0, 0, 0, 0, 0, 0, motion.shape[-3] - self.frames))

    @property
    def name(self) -> str:
        return self.energy.name

    def terms(self) -> Iterator[Energy]:
        yield from (_Beginning(term, self.frames) for term in self.energy.terms())


class _OfJointsInSpace(Energy):
    """An energy of motions, in terms of joints in space: relative to their root, which stands in its own place, they are the motion."""

    def __init__(self, energy: Energy):
        self.energy = energy

    def __call__(self, space: Tensor) -> Tensor:
        return self.energy(self._motion(space))

    @torch.no_grad()
    def curvature(self, space: Tensor) -> Tensor:
        # A root that moves alone moves all the others relative to it; two places of the motion for each, hence the factor.
        curvature = self.energy.curvature(self._motion(space))
        return 2 * torch.cat([curvature.sum(-3, keepdim=True), curvature[..., 1:, :, :]], dim=-3)

    @staticmethod
    def _motion(space: Tensor) -> Tensor:
        root = space[..., :1, :]
        return torch.cat([root, space[..., 1:, :] - root], dim=-2).float()  # as the sampled motions are, whatever the guide reckons in

    @property
    def name(self) -> str:
        return self.energy.name

    def terms(self) -> Iterator[Energy]:
        yield from (_OfJointsInSpace(term) for term in self.energy.terms())


def _only(camera: Camera) -> Camera:
    """The camera of the only clip."""
    return replace(camera, rotation=camera.rotation[0], translation=camera.translation[0])


def _published_likelihood(views: list[PreparedInputs], scene: Scene, hold_trajectory: bool, root: Tensor | None) -> Energy:
    """Squared distances in units of 500 pixels through the real lenses, weighted by confidence."""
    # Where they stand the scene knows, which also has what the focal length has been corrected by, and padded frames.
    cameras = [replace(v.camera, rotation=lens.rotation, translation=lens.translation) for v, lens in zip(views, scene.cameras)]
    cameras[0] = replace(cameras[0], focal=cameras[0].focal * scene.focal_factor[:, None].to(cameras[0].focal))
    missing = scene.keypoints[0].shape[1] - views[0].keypoints_2d.shape[1]
    keypoints = [nn.functional.pad(v.keypoints_2d, (0, 0, 0, 0, 0, missing))[:, None] for v in views]
    weights = [c[:, None] / 500**2 for c in scene.confidence]
    return ReprojectionEnergy(cameras, keypoints, weights, root, hold_trajectory=hold_trajectory)
