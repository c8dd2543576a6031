"""PoSynDA: D3DP's sampler, adapted to a new scene that shows people in 2D only (Liu et al., ACM Multimedia 2023, arXiv 2308.09678)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from probpose.data import CameraVariation, MocapClips, TargetTrack, TrainingWindows, target_tracks
from probpose.geometry import Camera

from .adapting import Adaptation, AdaptationSettings, SourcePoses, SourceWindows, TargetWindows
from .pipeline_d3dp import D3DPPipeline

_ENDLESS = 10**9


@dataclass(frozen=True)
class AdaptationReport:
    """What an adaptation did; all of it is known without 3D.

    Attributes:
        before, after: `reprojection_mm`, by which the mean hypothesis reprojects off on keypoints that nothing was trained on, at the
            person's distance; what tells whether poses are bodies: see `probpose.pipelines.adapting.plausibility`; and `ece_2d`, the
            expected calibration error of the reprojected hypotheses.
        history: the same after every round, and the loss on the source.
        best_round: the round whose adapter was kept; 0: none was better than the model as it was, which the adapter then leaves as it is.
        build: change of the source's bones that the target's people need: displacements of torso bones `(groups, 3)` in mm, factors on the
            lengths of limbs and on the whole body.
        windows: of the target, that were adapted to.
        adapter_name: of the adapter, active in the pipeline; None if all weights were trained.
    """

    before: dict[str, float]
    after: dict[str, float]
    history: list[dict[str, float]]
    best_round: int
    build: dict[str, Any]
    windows: int
    adapter_name: str | None

    def to_dict(self) -> dict[str, Any]:
        """Plain Python types."""
        return dict(vars(self))

    def to_text(self) -> str:
        rows = [
            f"{name.replace('_', ' '):<18}{value:>8.{digits}f}{self.after[name]:>8.{digits}f}"
            for name, value in self.before.items()
            for digits in (1 if name.endswith("_mm") else 3,)
        ]
        return "\n".join([f"{'':<18}{'before':>8}{'after':>8}", *rows, f"{self.windows} windows; kept round {self.best_round}"])


class PoSynDAPipeline(D3DPPipeline):
    """A D3DP pipeline that can be adapted to a new scene without its 3D.

    Sampling is D3DP's, as in the publication; arguments and components are those of `D3DPPipeline`.
    """

    def adapt(
        self,
        target_keypoints: Any,
        cameras: Camera | Mapping[str, Camera] | None = None,
        image_size: tuple[int, int] | None = None,
        *,
        source: str | Path | Sequence[str | Path] | Tensor | SourceWindows,
        settings: AdaptationSettings | None = None,
        adapter_name: str = "adapted",
        skeleton: str | None = None,
        fps: float | None = None,
        conversion: str | None = None,
        state: str | Path | None = None,
        resume: bool = False,
        seed: int = 0,
    ) -> AdaptationReport:
        """Train an adapter of the denoiser for the scene that `target_keypoints` come from.

        The published code learns from the test set's true root trajectories, in mixed units, and cannot run; this keeps what the paper and
        PoseDA describe (source poses moved to the target's scale and position, an adversarial augmentor, pseudo-labels from the
        hypotheses that reproject best, low-rank adapters) and adds a moving average as the teacher, the fit of the target's build, and a
        criterion for stopping. None of it sees 3D of the target.

        Args:
            target_keypoints: files, folders, data sets, tracks or arrays: whatever `probpose.data.target_tracks` takes.
            cameras: one for all, or by name of the recording; default the recordings' own, else a usual lens for the image size.
            image_size: (width, height) in pixels of what does not state its own.
            source: labelled motions: motion archives (see `probpose.data.MocapClips`), `TrainingWindows` of the model's length, or absolute
                poses `(windows, frames, joints, 3)` in metres and camera axes, as `probpose.data.source_motions` makes them.
            settings: what is done, and for how long.
            adapter_name: of the new adapter.
            skeleton, fps, conversion: of the keypoints, where they do not state it.
            state: file that the run is saved in after every round.
            resume: go on with the run in `state`, if there is one.
            seed: of all randomness.

        Returns:
            `AdaptationReport`. The adapter stays active: sample with it, `save_lora_weights` it, `disable_lora` it. A calibrator that the
            pipeline has was fitted without it.

        Raises:
            ValueError: a target without people, of mixed frame rates or joints that cannot be converted; a source that does not fit the
                model or is empty; an adapter name in use; a state of another run. The pipeline is then as it was.
            FileNotFoundError: nothing at a path.
        """
        settings = settings or AdaptationSettings()
        if self.input_skeleton != self.skeleton:
            raise ValueError(f"the model reads {self.input_skeleton} and produces {self.skeleton}, so its poses cannot be reprojected")
        if settings.rank is not None and adapter_name in getattr(self.denoiser, "adapters", ()):
            raise ValueError(f"adapter_name: the pipeline has an adapter {adapter_name!r} already; choose another name")
        if self.denoiser.dtype != torch.float32:
            raise ValueError(f"the denoiser must be in float32 to be trained, not {self.denoiser.dtype}: pipe.to(torch.float32)")
        if settings.rank is None and self.denoiser.adapters:
            raise ValueError(f"rank=None trains the denoiser's own weights: take the adapters {self.denoiser.adapters} off first")
        if state is not None and not Path(state).parent.is_dir():
            raise FileNotFoundError(f"state: the folder {Path(state).parent} does not exist")
        if resume and state is None:
            raise ValueError("resume=True needs the file that the run was saved in: state=...")
        config = self.denoiser.config
        tracks = [target_keypoints] if isinstance(target_keypoints, TargetTrack) else target_keypoints
        if not (isinstance(tracks, (list, tuple)) and tracks and all(isinstance(track, TargetTrack) for track in tracks)):
            tracks = target_tracks(
                target_keypoints, skeleton=self.skeleton, fps=config.get("fps") or 30.0, camera=cameras, image_size=image_size,
                keypoint_skeleton=skeleton, keypoint_fps=fps, conversion=conversion,
                hidden_when_converted=self.config.get("hidden_when_converted") or (),
            )  # fmt: skip
        elif any(track.skeleton != self.skeleton or track.fps != (config.get("fps") or tracks[0].fps) for track in tracks):
            rate = config.get("fps") or "one number of"
            raise ValueError(f"target_keypoints: the model takes tracks of {self.skeleton} at {rate} frames per second")
        target = TargetWindows.of_tracks(self, tracks)
        run = Adaptation(self, target, self._source(source), settings, adapter_name, seed)
        try:
            if resume and state is not None and Path(state).is_file():
                run.load(Path(state))
            run.run(None if state is None else lambda one: one.save(Path(state)), self.progress_bar)
        except BaseException:
            run.undo()
            raise
        build = {
            "torso_mm": (1000 * run.build.torso).tolist(), "limbs": run.build.limbs.exp().tolist(), "size": run.build.size.exp().item()
        }  # fmt: skip
        before, after = ({name: run.history[at][name] for name in run.history[0] if name != "round"} for at in (0, run.best_round))
        name = None if settings.rank is None else adapter_name
        return AdaptationReport(before, after, run.history, run.best_round, build, len(run.target), name)

    def _source(self, source: Any) -> SourceWindows:
        """Windows of labelled motions as long as the model's."""
        config = self.denoiser.config
        frames, joints = config.num_frames, config.num_joints
        if isinstance(source, Tensor):
            if source.ndim != 4 or source.shape[1:] != (frames, joints, 3) or not len(source):
                raise ValueError(f"source must have shape (windows, {frames}, {joints}, 3) for this model, got {tuple(source.shape)}")
            if not (source.isfinite().all() and (source[..., 2] > 0).all()):
                raise ValueError("source must hold absolute poses in front of the camera (z > 0), all joints known")
            return SourcePoses(source, self.root_index)
        if hasattr(source, "render"):
            if (length := getattr(source, "num_frames", frames)) != frames:
                raise ValueError(f"source has windows of {length} frames, the model takes {frames}")
            if (rate := getattr(getattr(source, "clips", None), "fps", None)) not in (None, config.get("fps") or rate):
                raise ValueError(f"source has {rate:g} frames per second, the model takes {config.fps:g}")
            if isinstance(source, TrainingWindows) and (source.axes, self.skeleton) != ("camera", "h36m_17"):
                raise ValueError(f"source has h36m_17 in {source.axes} axes, the model takes {self.skeleton} in camera axes")
            return source
        clips = source if isinstance(source, MocapClips) else MocapClips(source)
        if self.skeleton != "h36m_17" or clips.fps != (config.get("fps") or clips.fps):
            made_for = f"{self.skeleton} at {config.get('fps')}"
            raise ValueError(f"source: motion archives hold h36m_17 at {clips.fps:g} frames per second, the model is for {made_for}")
        return TrainingWindows(clips, frames, _ENDLESS, camera=CameraVariation(unknown_probability=0.0))
