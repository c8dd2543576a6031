"""The common ground of all pipelines: loading, input checks, cameras, skeletons, aggregation."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from probpose.aggregation import AGGREGATORS, get_aggregator
from probpose.geometry import Camera, check_image_size, normalise_screen, reexpress_keypoints, root_of_hypotheses
from probpose.hub.bundled import bundled_model
from probpose.hub.client import download
from probpose.hub.push import HubMixin
from probpose.hub.repository import check_parts, read_index
from probpose.skeletons import convert_with_confidence, get_skeleton

from .adapters import AdapterPipelineMixin
from .pipeline_output import ProbPosePipelineOutput


@dataclass
class PreparedInputs:
    """Checked inputs, always batched.

    Args:
        keypoints_2d: `(batch, frames, joints, 2)` pixels in the model's skeleton, NaN = not observed.
        confidence: `(batch, frames, joints)`, 0 where not observed.
        network_2d: `(batch, frames, joints, 2)` keypoints as the network sees them; finite, unobserved joints are filled in.
        camera: the camera given or guessed.
        image_size: (width, height) in pixels, or None.
        root: the root trajectory given `(batch, frames, 3)`, or None.
        batched: whether the caller's input had a batch axis.
    """

    keypoints_2d: Tensor
    confidence: Tensor
    network_2d: Tensor
    camera: Camera
    image_size: tuple[int, int] | None
    root: Tensor | None
    batched: bool


class ProbPosePipeline(HubMixin, AdapterPipelineMixin, DiffusionPipeline):
    """Base class. `ProbPosePipeline.from_pretrained` returns the pipeline class that the saved folder names.

    A subclass registers a `denoiser` and implements `__call__` out of the steps below: `prepare_inputs`, its own sampling,
    `finish`.
    """

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> ProbPosePipeline:
        """Load a pipeline: from a folder, by the name of a bundled one, or from the Hub.

        Args:
            pretrained_model_name_or_path: folder with a `model_index.json`; else one of `probpose.hub.list_bundled_models()`; else a
                Hub id such as "user/model".
            subfolder: of that folder or Hub repository.
            dtype: weights are converted to it; default float32.
            revision, cache_dir, local_files_only, token, force_download: of a Hub repository, see `probpose.hub.download`.
            **kwargs: as for `diffusers.DiffusionPipeline.from_pretrained`, such as other components.

        Raises:
            FileNotFoundError: a folder or one of its parts is missing, or nothing of that name is on the Hub or in the cache.
            ValueError: not a probpose pipeline, one of another kind than this class, or a damaged file.
            OSError: the Hub cannot be reached, or refuses.
        """
        import probpose.pipelines as public

        hub_options = {name: kwargs.pop(name) for name in _HUB_OPTIONS if name in kwargs}
        path = _find(str(pretrained_model_name_or_path), kwargs.pop("subfolder", None), hub_options)
        index = read_index(path)
        known = {name: getattr(public, name) for name in public.__all__ if name.endswith("Pipeline") and name != "ProbPosePipeline"}
        if cls is not ProbPosePipeline:
            known[cls.__name__] = cls
        name = index.get("_class_name")
        if not isinstance(name, str) or name not in known:
            raise ValueError(f"{pretrained_model_name_or_path} holds a {name!r}, which is no probpose pipeline; known: {sorted(known)}")
        if not (issubclass(cls, known[name]) or issubclass(known[name], cls)):
            raise ValueError(f"{pretrained_model_name_or_path} holds a {name}, which cannot be loaded as a {cls.__name__}")
        stored = check_parts(path, index)
        if "torch_dtype" not in kwargs:
            kwargs.setdefault("dtype", torch.float32)
        kwargs.setdefault("use_safetensors", True)  # other weight files are pickles
        target = known[name] if cls is ProbPosePipeline else cls
        pipe = super(ProbPosePipeline, target).from_pretrained(str(path), **kwargs)
        for part, names in stored.items():  # diffusers only warns, and leaves the others random
            missing = [] if part in kwargs else sorted(getattr(pipe, part).state_dict().keys() - names)
            if missing:
                raise ValueError(f"{path / part} is damaged: it lacks the weights {', '.join(missing)}")
        return pipe

    @property
    def skeleton(self) -> str:
        """Joint set of the output."""
        return self.denoiser.config.skeleton

    @property
    def input_skeleton(self) -> str:
        """Joint set that the network reads; the output's unless the model was trained otherwise."""
        return self.denoiser.config.get("input_skeleton") or self.skeleton

    @property
    def root_index(self) -> int:
        """Joint that the output is relative to."""
        index = self.denoiser.config.get("root_index")
        return (get_skeleton(self.skeleton).root or 0) if index is None else index

    @property
    def num_output_joints(self) -> int:
        """Joints of the output."""
        return get_skeleton(self.skeleton).num_joints

    @property
    def num_frames(self) -> int | None:
        """Frames of a clip that a network sees at once; None: every frame for itself."""
        return self.denoiser.config.get("num_frames")

    @property
    def needs_gravity(self) -> bool:
        """Whether hypotheses depend on where up is, as a camera's rotation says or `sample_clips` is told."""
        return False

    @property
    def canonical_camera(self) -> Any:
        """`[fx, fy, cx, cy]` in screen units of the lens that the network's keypoints are re-expressed in; None: divided by the width."""
        return self.denoiser.config.get("canonical_camera")

    @property
    def overlap(self) -> int:
        """Frames that neighbouring windows of a long clip share."""
        window, overlap = self.num_frames, self.config.window_overlap
        return window // 3 if overlap is None else min(overlap, window - 1)

    def choose_aggregator(self, aggregation: str | nn.Module | None) -> nn.Module | None:
        """The aggregator that a call asks for; "default" is the pipeline's own choice, "attention" its learned one.

        Raises:
            ValueError: an unknown one, or one that compares reprojections where input and output are different joint sets.
        """
        if isinstance(aggregation, str):
            if aggregation == "default":
                aggregation = self.config.default_aggregation
            if aggregation == "attention":
                if getattr(self, "aggregator", None) is None:
                    names = ", ".join(map(repr, sorted(AGGREGATORS)))
                    raise ValueError(f"aggregation='attention' needs a pipeline with a learned aggregator; this one has {names}")
                aggregation = self.aggregator
        aggregator = get_aggregator(aggregation)
        if getattr(aggregator, "needs_camera", False) and self.input_skeleton != self.skeleton:
            raise ValueError(
                f"{type(aggregator).__name__} compares reprojections with the keypoints, but this model reads {self.input_skeleton} "
                f"and produces {self.skeleton}: use aggregation='mean'"
            )
        return aggregator

    def check_calibrated(self, calibrated: bool | None) -> bool:
        """Whether a call recalibrates; None: if the pipeline can.

        Raises:
            ValueError: asked for without a calibrator, or no boolean.
        """
        able = getattr(self, "calibrator", None) is not None
        if calibrated not in (None, True, False):
            raise ValueError(f"calibrated must be True, False or None, got {calibrated!r}")
        if calibrated and not able:
            raise ValueError("calibrated=True needs a pipeline with a calibrator; `probpose calibrate` fits one")
        return able if calibrated is None else calibrated

    def is_calibrated_for(self, aggregator: nn.Module | None) -> bool:
        """Whether the calibrator knows a `radius` about this aggregator's poses."""
        calibrator = getattr(self, "calibrator", None)
        if calibrator is None or aggregator is None or calibrator.radius_factor.isnan().any():
            return False
        fitted_for = calibrator.config.aggregation
        return aggregator is self.aggregator if fitted_for == "attention" else type(aggregator) is AGGREGATORS.get(fitted_for)

    def promise(self, aggregated: Any, recalibrated: Tensor, aggregator: nn.Module) -> tuple[Tensor, Tensor, Tensor | None]:
        """Pose, uncertainty and conformal radius of a calibrated call.

        Args:
            aggregated: what the aggregator made of the hypotheses as sampled.
            recalibrated: the hypotheses after the calibrator.
            aggregator: the aggregator. A learned one knows its uncertainty; that of others is the spread about their pose.
        """
        learned = aggregator is getattr(self, "aggregator", None)
        uncertainty = aggregated.uncertainty if learned else _radius_of(recalibrated, aggregated.pose)
        radius = self.calibrator.radius(uncertainty) if self.is_calibrated_for(aggregator) else None
        return aggregated.pose, uncertainty, radius

    def prepare_inputs(
        self,
        keypoints_2d: Any,
        confidence: Any = None,
        image_size: tuple[int, int] | None = None,
        camera: Camera | None = None,
        skeleton: str | None = None,
        conversion: str | None = None,
        root: Any = None,
        allow_empty: bool = False,
    ) -> PreparedInputs:
        """Check everything the caller gave and bring it into the network's units. See `D3DPPipeline.__call__` for the arguments.

        With `allow_empty` a clip may be without any observed keypoint; what stands in its place is NaN.
        """
        keypoints, batched = _as_keypoints(keypoints_2d, self.device)
        source = get_skeleton(skeleton or self.input_skeleton)
        batch, frames, joints, _ = keypoints.shape
        if joints != source.num_joints:
            raise ValueError(
                f"skeleton {source.name!r} has {source.num_joints} joints, but keypoints_2d has shape {tuple(np.shape(keypoints_2d))}; "
                "pass the skeleton your detector produces, e.g. skeleton='coco_17'"
            )
        confidence = self._check_confidence(confidence, keypoints, batched)
        camera, image_size = self._check_camera(camera, image_size, batch)
        self._check_pixels(keypoints, confidence, image_size)
        if source.name != self.input_skeleton:
            keypoints, confidence, _ = convert_with_confidence(keypoints, confidence, source.name, self.input_skeleton, method=conversion)
            hidden = list(self.config.get("hidden_when_converted") or ())
            confidence[..., hidden] = 0
        elif conversion is not None:
            raise ValueError(f"conversion={conversion!r} was given, but the keypoints already are {source.name!r}")
        keypoints = torch.where((confidence > 0)[..., None], keypoints, torch.nan)
        empty = (~(confidence > 0).any(-1).any(-1)).nonzero().flatten().tolist()
        if empty and not allow_empty:
            raise ValueError(f"clip {empty[0]} of the batch has no observed keypoint (all NaN or zero confidence)")
        if root is not None:
            root = self._check_root(root, batch, frames, batched)
        network_2d = fill_missing(self.to_network(keypoints, camera, image_size))
        return PreparedInputs(keypoints, confidence, network_2d, camera, image_size, root, batched)

    def to_network(self, keypoints: Tensor, camera: Camera, image_size: tuple[int, int] | None) -> Tensor:
        """Keypoints in pixels `(batch, frames, joints, 2)` as the network sees them: in its canonical camera, or divided by the width."""
        canonical = self.canonical_camera
        if canonical is None:
            return normalise_screen(keypoints, image_size)
        fx, fy, cx, cy = canonical
        return reexpress_keypoints(keypoints, camera, Camera((fx, fy), (cx, cy), slope_limit=math.inf))

    def network_camera(self, camera: Camera) -> Camera:
        """The lens that sees what `to_network` makes of this camera's pixels; a distortion that is not removed is left out."""
        canonical = self.canonical_camera
        if canonical is not None:
            return Camera(canonical[:2], canonical[2:], slope_limit=math.inf)
        screen = camera.normalised()
        return Camera(screen.focal, screen.centre, slope_limit=math.inf)

    def finish(
        self,
        hypotheses: Tensor,
        inputs: PreparedInputs,
        aggregator: nn.Module | None,
        fps: float = 30.0,
        output_type: str = "pt",
        return_dict: bool = True,
        calibrated: bool = False,
        lifted: Tensor | None = None,
    ) -> ProbPosePipelineOutput | tuple:
        """Aggregate, recalibrate, estimate the root and hand out tensors or arrays, with or without the batch axis.

        The pose is made of the hypotheses as they were sampled: recalibration moves them about their median, which says nothing new about
        where the pose is.
        """
        pose = uncertainty = radius = None
        root = inputs.root
        if root is None and self.input_skeleton == self.skeleton:
            root = root_of_hypotheses(hypotheses, inputs.keypoints_2d, inputs.camera, inputs.confidence, fps)
        sampled = hypotheses
        if calibrated:
            hypotheses = self.calibrator(hypotheses)
        if aggregator is not None:
            learned = aggregator is getattr(self, "aggregator", None)
            # Others treat a root that was given and one that they have to estimate differently.
            out = aggregator(sampled, inputs.keypoints_2d, inputs.camera, root if learned else inputs.root, inputs.confidence, fps)
            pose, uncertainty = out.pose, _radius_of(hypotheses, out.pose)
            if calibrated:
                _, uncertainty, radius = self.promise(out, hypotheses, aggregator)
        values = [hypotheses, pose, uncertainty, root, radius, lifted]
        if not inputs.batched:
            values = [None if v is None else v[0] for v in values]
        if output_type == "np":
            values = [None if v is None else v.cpu().numpy() for v in values]
        hypotheses, pose, uncertainty, root, radius, lifted = values
        if not return_dict:
            return hypotheses, pose, uncertainty, root, inputs.camera
        return ProbPosePipelineOutput(hypotheses, pose, uncertainty, root, inputs.camera, radius, lifted)

    def check_noise(self, noise: Any, inputs: PreparedInputs, num_hypotheses: int, channels: int) -> Tensor | None:
        """Noise that a caller brings, `(draws, batch, num_hypotheses, frames, joints, channels)`.

        Raises:
            ValueError: another shape, or noise that is not finite.
        """
        if noise is None:
            return None
        noise = as_tensor(noise, "noise").to(inputs.network_2d)
        batch, frames = inputs.network_2d.shape[:2]
        expected = (*([batch] if inputs.batched else []), num_hypotheses, frames, self.num_output_joints, channels)
        shape = tuple(noise.shape)
        if len(shape) == len(expected):
            noise = noise[None]
        if tuple(noise.shape[1:]) != expected or not len(noise):
            raise ValueError(f"noise must have shape {expected}, or that behind an axis of draws, got {shape}")
        if not torch.isfinite(noise).all():
            raise ValueError(f"noise must be finite, but {(~torch.isfinite(noise)).sum().item()} of its values are not")
        return noise if inputs.batched else noise[:, None]

    def _check_confidence(self, confidence: Any, keypoints: Tensor, batched: bool) -> Tensor:
        observed = torch.isfinite(keypoints).all(-1)
        if confidence is None:
            return observed.float()
        confidence = as_tensor(confidence, "confidence").to(keypoints)
        if not batched:
            confidence = confidence[None]
        if confidence.shape != keypoints.shape[:-1]:
            expected, got = (tuple(t.shape) if batched else tuple(t.shape[1:]) for t in (observed, confidence))
            raise ValueError(f"confidence must have shape {expected} to go with keypoints_2d, got {got}")
        confidence = torch.where(confidence.isnan(), 0.0, confidence)
        if (confidence < 0).any() or (confidence > 1).any():
            low, high = confidence.min().item(), confidence.max().item()
            raise ValueError(f"confidence must lie in 0..1, got values from {low:.3g} to {high:.3g}")
        return torch.where(observed, confidence, 0.0)

    def _check_camera(self, camera: Camera | None, image_size: Any, batch: int) -> tuple[Camera, tuple[int, int] | None]:
        if image_size is not None:
            image_size = check_image_size(image_size)
        if camera is None:
            if image_size is None:
                raise ValueError("pass image_size=(width, height) in pixels, or camera=Camera(...)")
            return Camera.from_image_size(*image_size).to(self.device), image_size
        if not isinstance(camera, Camera):
            raise ValueError(f"camera must be a probpose.geometry.Camera, got {type(camera).__name__}")
        leading = camera.focal.shape[:-1]
        if leading not in ((), (1,), (batch,)):
            raise ValueError(f"camera must be one camera or one per clip ({batch}), got parameters of shape {tuple(camera.focal.shape)}")
        if image_size is not None and camera.image_size not in (None, image_size):
            raise ValueError(f"image_size={image_size} contradicts the camera's, which is {camera.image_size}: pass one of them")
        image_size = image_size or camera.image_size
        if image_size is None and self.canonical_camera is None:
            raise ValueError("this model normalises by the image width: pass image_size=(width, height), or a camera that has it")
        return camera.to(self.device), image_size

    @staticmethod
    def _check_pixels(keypoints: Tensor, confidence: Tensor, image_size: tuple[int, int] | None) -> None:
        values = keypoints[confidence > 0]
        if image_size is not None and min(image_size) > 16 and values.numel() and values.abs().max() <= 2:
            raise ValueError(
                f"keypoints_2d must be in pixels of the {image_size[0]}x{image_size[1]} image, but no coordinate exceeds "
                f"{values.abs().max().item():.3g}: they look normalised already"
            )

    def _check_root(self, root: Any, batch: int, frames: int, batched: bool) -> Tensor:
        root = as_tensor(root, "root").to(device=self.device, dtype=torch.float32)
        if not batched:
            root = root[None]
        if root.shape == (batch, frames, 1, 3):
            root = root[:, :, 0]
        if root.shape != (batch, frames, 3):
            expected, got = (batch, frames, 3), tuple(root.shape)
            raise ValueError(f"root must have shape {expected if batched else expected[1:]}, got {got if batched else got[1:]}")
        if not torch.isfinite(root).all():
            raise ValueError(f"root must be finite, but {(~torch.isfinite(root)).sum().item()} of its values are not")
        if (root[..., 2] <= 0).any():
            raise ValueError(f"root must lie in front of the camera (z > 0 metres), but its smallest z is {root[..., 2].min().item():.3g}")
        return root


_HUB_OPTIONS = ("revision", "cache_dir", "local_files_only", "token", "force_download")


def _find(name: str, subfolder: str | None, hub_options: dict[str, Any]) -> Path:
    """The folder that a pipeline is in, fetched if it has to be."""
    if subfolder and (Path(subfolder).is_absolute() or ".." in Path(subfolder).parts):
        raise ValueError(f"subfolder must be inside of {name}, got {subfolder!r}")
    folder = Path(name)
    if not folder.exists():
        folder = bundled_model(name) or folder
    if folder.is_dir():
        return folder / (subfolder or "")
    if folder.exists() or not re.fullmatch(r"\w[\w.-]*/[\w.-]+", name):
        raise FileNotFoundError(f"no model folder at {folder} (a Hub id looks like 'user/model')")
    return download(name, subfolder, **hub_options)


def _radius_of(hypotheses: Tensor, pose: Tensor) -> Tensor:
    """Root-mean-square distance of the hypotheses from a pose `(batch, frames, joints)`."""
    return (hypotheses - pose[:, None]).square().sum(-1).mean(1).sqrt()


def is_a(value: Any, kind: type) -> bool:
    """Whether it is a number of this kind; True and False are no numbers."""
    return isinstance(value, kind) and not isinstance(value, bool)


def checked_count(name: str, value: Any, most: float = math.inf) -> int:
    """A whole number from 1 to `most`; ValueError names it otherwise."""
    if not is_a(value, Integral) or not 1 <= value <= most:
        limits = "of at least 1" if most == math.inf else f"from 1 to {most}"
        raise ValueError(f"{name} must be an integer {limits}, got {value!r}")
    return int(value)


def check_eta(eta: Any) -> None:
    """ValueError unless η is None or lies in 0..1."""
    if eta is not None and not (is_a(eta, Real) and 0 <= eta <= 1):
        raise ValueError(f"eta must lie in 0..1, got {eta!r}")


def mirrored_points(points: Tensor, order: list[int], centre: float = 0.0) -> Tensor:
    """Points `(..., joints, 2 or 3)` with x mirrored about `centre` and left and right exchanged."""
    return torch.cat([2 * centre - points[..., :1], points[..., 1:]], dim=-1)[..., order, :]


def check_call(output_type: Any, max_batch_size: Any, fps: Any) -> None:
    """Arguments that every pipeline's call has; ValueError names the one that is wrong."""
    if output_type not in ("pt", "np"):
        raise ValueError(f"output_type must be 'pt' or 'np', got {output_type!r}")
    checked_count("max_batch_size", max_batch_size)
    if not is_a(fps, Real) or not 0 < fps < math.inf:
        raise ValueError(f"fps must be a positive number, got {fps!r}")


def as_tensor(value: Any, name: str) -> Tensor:
    """Anything array-like as a tensor; ValueError names what is not."""
    try:
        tensor = torch.as_tensor(np.array(value) if isinstance(value, np.ndarray) else value)  # a copy takes views of any stride
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} must be a numeric array, got {type(value).__name__}: {error}") from None
    if tensor.is_complex():
        raise ValueError(f"{name} must hold real numbers, got {tensor.dtype}")
    return tensor


def _as_keypoints(value: Any, device: torch.device) -> tuple[Tensor, bool]:
    keypoints = as_tensor(value, "keypoints_2d")
    if keypoints.ndim not in (3, 4) or keypoints.shape[-1] != 2:
        hint = "; pass confidences separately" if keypoints.ndim in (3, 4) and keypoints.shape[-1] == 3 else ""
        raise ValueError(f"keypoints_2d must have shape ([batch,] frames, joints, 2), got {tuple(keypoints.shape)}{hint}")
    if keypoints.dtype == torch.bool:
        raise ValueError("keypoints_2d must hold pixel coordinates, got booleans")
    for axis, name in ((0, "frames" if keypoints.ndim == 3 else "clips"), (-3, "frames")):
        if keypoints.shape[axis] == 0:
            raise ValueError(f"keypoints_2d has no {name}: shape {tuple(keypoints.shape)}")
    keypoints = keypoints.to(device=device, dtype=torch.float32)
    if torch.isinf(keypoints).any():
        where = torch.isinf(keypoints).nonzero()[0].tolist()
        raise ValueError(f"keypoints_2d holds an infinite value at index {where}; mark missing joints with NaN")
    batched = keypoints.ndim == 4
    return (keypoints if batched else keypoints[None]), batched


def fill_missing(keypoints: Tensor) -> Tensor:
    """Replace NaN in `(clips, frames, joints, 2)`.

    In time by the nearest observed frame of the joint, else by the mean of the frame's, else of the clip's joints. Networks that read
    confidences ignore these values; those that do not get something plausible.
    """
    missing = torch.isnan(keypoints).any(-1)
    if not missing.any():
        return keypoints
    frames = torch.arange(keypoints.shape[1], device=keypoints.device)[None, :, None].expand_as(missing)
    before = torch.where(missing, -1, frames).cummax(dim=1).values
    after = torch.where(missing, len(frames[0]) * 4, frames).flip(1).cummin(dim=1).values.flip(1)
    nearest = torch.where((frames - before <= after - frames) & (before >= 0), before, after)
    never = nearest >= keypoints.shape[1]
    nearest = nearest.clamp(0, keypoints.shape[1] - 1)
    filled = keypoints.gather(1, nearest[..., None].expand_as(keypoints))
    frame_mean = filled.masked_fill(never[..., None], torch.nan).nanmean(dim=2, keepdim=True)
    return torch.where(never[..., None], frame_mean, filled)
