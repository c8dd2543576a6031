"""D3DP: K hypotheses by conditional diffusion with clean-pose prediction (Shan et al., ICCV 2023, arXiv 2303.11579)."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from probpose.aggregation import Aggregator, get_aggregator
from probpose.geometry import Camera
from probpose.skeletons import get_skeleton

from .pipeline_output import ProbPosePipelineOutput
from .pipeline_probpose import ProbPosePipeline
from .windows import blend_weights, cut_windows, window_starts

FLIP_MODES = ("every_step", "last_step", False)


class D3DPPipeline(ProbPosePipeline):
    """Diffusion-based 3D pose with joint-wise aggregation.

    The clip is the state of the sampler: at every step each window's clean pose is predicted and the predictions are blended, so that
    hypothesis k is one consistent motion however long the clip is.

    Args:
        denoiser: any probpose denoiser.
        scheduler: `D3DPScheduler`, or a diffusers scheduler with clean-sample prediction.
        default_num_hypotheses, default_num_inference_steps, default_flip, default_share_first_step, default_aggregation: what a call
            uses that does not say. A constructed pipeline defaults to the published sampler; a saved one brings its own choice.
        window_overlap: frames that neighbouring windows of a long clip share; default a third of the model's window.
        hidden_when_converted: joints that are treated as not observed when the keypoints had to be converted from another skeleton,
            because the conversion only approximates what the model was trained on.
    """

    _callback_tensor_inputs = ("sample", "clean")

    def __init__(
        self,
        denoiser,
        scheduler,
        default_num_hypotheses: int = 20,
        default_num_inference_steps: int = 10,
        default_flip: str | bool = "every_step",
        default_share_first_step: bool = False,
        default_aggregation: str | None = "jpma",
        window_overlap: int | None = None,
        hidden_when_converted: list[int] | None = None,
    ):
        super().__init__()
        self.register_modules(denoiser=denoiser, scheduler=scheduler)
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
        aggregation: str | Aggregator | None = "default",
        generator: torch.Generator | list[torch.Generator] | None = None,
        noise: Tensor | None = None,
        root: Any = None,
        fps: float = 30.0,
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
            flip: average with the mirrored prediction "every_step" (published), at the "last_step" only, or False.
                Network passes per window with K hypotheses and S steps: 2KS, K(S+1), KS.
            share_first_step: predict the first clean pose once per window instead of K times (the input is pure noise to 5e-5). Replaces
                the first step's K passes by one.
            aggregation: "jpma", "mean", "median", "weighted", an `Aggregator`, or None for hypotheses only.
            generator: random source; a list gives every clip its own, so that a clip's result does not depend on its batch.
            noise: standard normal noise to use: `(batch, K, frames, joints, 3)` for the start, or `(draws, batch, K, frames, joints, 3)` for
                the start and every stochastic step in order (without `batch` for an unbatched clip). Same noise, same answer.
            root: root trajectory `(batch, frames, 3)` metres in camera axes, if known; used by the reprojecting aggregators.
            fps: frame rate of the clip, used by the root estimate.
            max_batch_size: largest number of windows × hypotheses per network call; bounds the memory.
            output_type: "pt" or "np".
            return_dict: False gives a tuple (hypotheses, pose, uncertainty, root, camera).
            callback_on_step_end: called as (pipeline, step index, timestep, {"sample", "clean"}) after every step of every group of
                hypotheses; may return a dict with a new "sample".

        Returns:
            `ProbPosePipelineOutput`: metres, camera axes, root-relative.

        Raises:
            ValueError: any input of the wrong shape or range; the message names the value and what is allowed.
        """
        settings = self._settings(num_hypotheses, num_inference_steps, flip, share_first_step)
        aggregator = get_aggregator(self.config.default_aggregation if aggregation == "default" else aggregation)
        if output_type not in ("pt", "np"):
            raise ValueError(f"output_type must be 'pt' or 'np', got {output_type!r}")
        if not isinstance(max_batch_size, int) or max_batch_size < 1:
            raise ValueError(f"max_batch_size must be a positive integer, got {max_batch_size!r}")
        if not fps > 0:
            raise ValueError(f"fps must be positive, got {fps!r}")
        inputs = self.prepare_inputs(keypoints_2d, confidence, image_size, camera, skeleton, conversion, root)
        hypotheses = self.sample_clips(
            inputs.network_2d, inputs.confidence, settings, generator, self._check_noise(noise, inputs, settings), max_batch_size,
            callback_on_step_end,
        )  # fmt: skip
        return self.finish(hypotheses, inputs, aggregator, fps, output_type, return_dict)

    def count_passes(
        self,
        num_frames: int,
        num_hypotheses: int | None = None,
        num_inference_steps: int | None = None,
        flip: str | bool | None = None,
        share_first_step: bool | None = None,
    ) -> int:
        """Network passes (one window, one hypothesis, one orientation each) that a call on a clip of this length costs."""
        settings = self._settings(num_hypotheses, num_inference_steps, flip, share_first_step)
        windows = len(window_starts(num_frames, self.denoiser.config.num_frames, self._overlap))
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
    ) -> Tensor:
        """The sampler in the network's units: `(batch, frames, joints, 2)` to `(batch, K, frames, joints, 3)`.

        Hypotheses are worked through in groups, and windows within a group, so that no more than `max_batch_size` are in the network
        at once. Each hypothesis of each clip has its own random stream, so the grouping never changes the result.
        """
        batch, frames = network_2d.shape[:2]
        count = settings.num_hypotheses
        windows = _Windows.cut(self.denoiser.config, network_2d, confidence, self._overlap)
        length = windows.clip_length
        noise = _NoiseSource(noise, generator, batch, count, (length, self._num_output_joints, 3), network_2d.device)
        group = max(1, min(count, max_batch_size // len(windows)))
        out = torch.empty(batch, count, frames, self._num_output_joints, 3, device=network_2d.device)
        self.scheduler.set_timesteps(settings.num_inference_steps)
        timesteps = self.scheduler.timesteps.tolist()
        shared = None
        if settings.shared(0):
            x = noise.draw(0, slice(0, 1)) * self.scheduler.init_noise_sigma
            shared = self._predict(x, timesteps[0], windows, settings.flipped(0), max_batch_size)
        with self.progress_bar(total=-(-count // group) * len(timesteps)) as bar:
            for first in range(0, count, group):
                members = slice(first, min(first + group, count))
                out[:, members] = self._sample_group(noise, members, timesteps, windows, settings, shared, max_batch_size, callback, bar)[
                    :, :, :frames
                ]
        return out

    def _sample_group(
        self, noise: _NoiseSource, members: slice, timesteps: list[int], windows: _Windows, settings: SamplerSettings,
        shared: Tensor | None, max_batch_size: int, callback: Callable | None, bar: Any,
    ) -> Tensor:  # fmt: skip
        x = noise.draw(0, members) * self.scheduler.init_noise_sigma
        draws, has_noise_argument = 1, "variance_noise" in inspect.signature(self.scheduler.step).parameters
        if hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_timesteps(settings.num_inference_steps)  # multistep schedulers remember their past outputs
        for i, t in enumerate(timesteps):
            if settings.shared(i):
                clean = shared.expand_as(x)
            else:
                clean = self._predict(x, t, windows, settings.flipped(i), max_batch_size)
            arguments = {}
            if has_noise_argument and self._draws_noise(i, t, len(timesteps)):
                arguments["variance_noise"] = noise.draw(draws, members)
                draws += 1
            x = self.scheduler.step(clean, t, x, **arguments).prev_sample
            if callback is not None:
                x = (callback(self, i, t, {"sample": x, "clean": clean}) or {}).get("sample", x)
            bar.update()
        return x

    def _predict(self, x: Tensor, t: int, windows: _Windows, flip: bool, max_batch_size: int) -> Tensor:
        """Clean pose of clips `(batch, K, length, joints, 3)`: every window through the network, blended."""
        limit = self.scheduler.config.get("clip_range") or self.scheduler.config.get("clip_sample_range")
        x = self.scheduler.scale_model_input(x, t)
        if limit is not None:  # the network never saw anything beyond this while training
            x = x.clamp(-limit, limit)
        total = torch.zeros_like(x)
        step = max(1, max_batch_size // x.shape[1])
        for rows in torch.arange(len(windows)).split(step):
            cut = torch.stack([x[c, :, s : s + windows.window] for c, s in windows.places(rows)])
            clean = self._denoise(windows.keypoints[rows], cut, t, windows.confidence[rows], flip)
            for row, (c, s), prediction in zip(rows.tolist(), windows.places(rows), clean):
                total[c, :, s : s + windows.window] += windows.weight(row) * prediction
        return total

    def _denoise(self, keypoints: Tensor, noisy: Tensor, t: int, confidence: Tensor, flip: bool) -> Tensor:
        """One or two network calls on windows; the mirrored call sees the mirrored person and its answer is mirrored back."""
        dtype = self.denoiser.dtype
        clean = self._call(keypoints.to(dtype), noisy.to(dtype), t, confidence.to(dtype))
        if not flip:
            return clean
        swap_2d, swap_3d = (list(get_skeleton(s).flip_index) for s in (self.input_skeleton, self.skeleton))
        mirror_2d, mirror_3d = keypoints.new_tensor([-1.0, 1.0]), clean.new_tensor([-1.0, 1.0, 1.0])
        mirrored = self._call(
            (keypoints * mirror_2d)[..., swap_2d, :].to(dtype), (noisy * mirror_3d)[..., swap_3d, :].to(dtype), t,
            confidence[..., swap_2d].to(dtype),
        )  # fmt: skip
        return (clean + (mirrored * mirror_3d)[..., swap_3d, :]) / 2

    def _call(self, keypoints: Tensor, noisy: Tensor, t: int, confidence: Tensor) -> Tensor:
        return self.denoiser(keypoints, noisy, t, confidence=confidence, return_dict=False)[0].float()

    def _draws_noise(self, index: int, timestep: int, steps: int) -> bool:
        if hasattr(self.scheduler, "is_stochastic"):
            return self.scheduler.is_stochastic(timestep)
        return index + 1 < steps

    @property
    def _num_output_joints(self) -> int:
        return get_skeleton(self.skeleton).num_joints

    @property
    def _overlap(self) -> int:
        window = self.denoiser.config.num_frames
        overlap = self.config.window_overlap
        return window // 3 if overlap is None else min(overlap, window - 1)

    def _settings(self, num_hypotheses, num_inference_steps, flip, share_first_step) -> SamplerSettings:
        config = self.config
        return SamplerSettings(
            config.default_num_hypotheses if num_hypotheses is None else num_hypotheses,
            config.default_num_inference_steps if num_inference_steps is None else num_inference_steps,
            config.default_flip if flip is None else flip,
            config.default_share_first_step if share_first_step is None else share_first_step,
        )

    def _check_noise(self, noise: Tensor | None, inputs: Any, settings: SamplerSettings) -> Tensor | None:
        if noise is None:
            return None
        batch, frames = inputs.network_2d.shape[:2]
        noise = torch.as_tensor(noise).to(inputs.network_2d)
        start = (settings.num_hypotheses, frames, self._num_output_joints, 3)
        shapes = [(batch, *start)] if inputs.batched else [start]
        if noise.shape == shapes[0] or noise.shape[1:] == shapes[0]:
            if not inputs.batched:
                noise = noise.unsqueeze(-5)
            if not torch.isfinite(noise).all():
                raise ValueError("noise must be finite")
            return noise if noise.ndim == 6 else noise[None]
        raise ValueError(f"noise must have shape {shapes[0]} or (draws, *{shapes[0]}), got {tuple(noise.shape)}")


@dataclass(frozen=True)
class SamplerSettings:
    """How one call samples; checked on construction."""

    num_hypotheses: int = 20
    num_inference_steps: int = 10
    flip: str | bool = "every_step"
    share_first_step: bool = False

    def __post_init__(self) -> None:
        for name, most in (("num_hypotheses", None), ("num_inference_steps", 1000)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1 or (most and value > most):
                raise ValueError(f"{name} must be an integer of at least 1{f' and at most {most}' if most else ''}, got {value!r}")
        if self.flip is True:
            object.__setattr__(self, "flip", "every_step")
        if self.flip not in FLIP_MODES:
            raise ValueError(f"flip must be one of {FLIP_MODES}, got {self.flip!r}")

    def flipped(self, step: int) -> bool:
        """Whether this step averages with the mirrored prediction."""
        return self.flip == "every_step" or (self.flip == "last_step" and step == self.num_inference_steps - 1)

    def shared(self, step: int) -> bool:
        """Whether this step's prediction is made once for all hypotheses (never the last step: all hypotheses would coincide)."""
        return self.share_first_step and step == 0 and self.num_inference_steps > 1


@dataclass
class _Windows:
    """All windows of all clips, in one list: rows are clip-major."""

    keypoints: Tensor
    confidence: Tensor
    starts: list[int]
    weights: Tensor
    window: int
    clip_length: int

    @classmethod
    def cut(cls, config: Any, network_2d: Tensor, confidence: Tensor, overlap: int) -> _Windows:
        frames, window = network_2d.shape[1], config.num_frames
        if frames < window and config.get("any_length"):
            window = frames
        starts = window_starts(frames, window, min(overlap, window - 1))
        keypoints = cut_windows(network_2d, starts, window, dim=1).transpose(0, 1).flatten(0, 1)
        confidence = cut_windows(confidence, starts, window, dim=1).transpose(0, 1).flatten(0, 1)
        length = max(frames, window)
        return cls(keypoints, confidence, starts, blend_weights(starts, window, length, network_2d.device), window, length)

    def __len__(self) -> int:
        return len(self.keypoints)

    def places(self, rows: Tensor) -> list[tuple[int, int]]:
        """(clip, first frame) of each row."""
        return [(row // len(self.starts), self.starts[row % len(self.starts)]) for row in rows.tolist()]

    def weight(self, row: int) -> Tensor:
        """Blend weights `(window, 1, 1)` of a row."""
        return self.weights[row % len(self.starts), :, None, None]


class _NoiseSource:
    """Start and step noise per hypothesis: given, or drawn from one random stream per (clip, hypothesis)."""

    def __init__(self, given: Tensor | None, generator: Any, batch: int, count: int, shape: tuple[int, ...], device: torch.device):
        self.given, self.shape, self.device = given, shape, device
        generators = generator if isinstance(generator, list) else None
        if generators is not None and len(generators) != batch:
            raise ValueError(f"generator must be one generator or one per clip ({batch}), got {len(generators)}")
        if generators is None:
            self.seeds = _seeds((batch, count), generator)
        else:
            self.seeds = torch.stack([_seeds((count,), g) for g in generators])

    def draw(self, draw: int, members: slice) -> Tensor:
        """Noise number `draw` of some hypotheses, `(batch, members, *shape)`."""
        if self.given is not None and (draw < len(self.given) or len(self.given) > 1):
            if draw >= len(self.given):
                raise ValueError(f"noise holds {len(self.given)} draws, but this sampling needs more than {draw}")
            return self._padded(self.given[draw][:, members])
        rows = []
        for clip_seeds in self.seeds[:, members].tolist():
            # Draw number d of a hypothesis has its own stream, so nothing has to be kept between steps.
            streams = [torch.Generator().manual_seed((seed + 7919 * draw) % 2**63) for seed in clip_seeds]
            rows.append(torch.stack([torch.randn(self.shape, generator=g) for g in streams]))
        return torch.stack(rows).to(self.device)

    def _padded(self, noise: Tensor) -> Tensor:
        """Noise for a clip shorter than the window: the padding repeats the given frames in order."""
        if noise.shape[2] == self.shape[0]:
            return noise
        return noise[:, :, torch.arange(self.shape[0], device=noise.device) % noise.shape[2]]


def _seeds(shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    device = "cpu" if generator is None else generator.device
    return torch.randint(2**62, shape, generator=generator, device=device).cpu()
