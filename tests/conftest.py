"""Motions for tests that need no files: a stick figure that walks about."""

import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

# Human3.6M-17 order, metres, z up, facing +y: the person's right is at +x.
STANDING = np.array(
    [
        [0, 0, 0.95], [0.12, 0, 0.92], [0.12, 0.02, 0.5], [0.12, 0, 0.08], [-0.12, 0, 0.92], [-0.12, 0.02, 0.5], [-0.12, 0, 0.08],
        [0, 0, 1.2], [0, 0, 1.45], [0, 0.06, 1.58], [0, 0.02, 1.72],
        [-0.18, 0, 1.45], [-0.22, 0, 1.17], [-0.24, 0.08, 0.93], [0.18, 0, 1.45], [0.22, 0, 1.17], [0.24, 0.08, 0.93],
    ]
)  # fmt: skip
SWING = np.array([0, 0, 0.12, 0.25, 0, -0.12, -0.25, 0, 0, 0, 0, 0, 0.1, 0.22, 0, -0.1, -0.22])


def _walk(frames: int, size: float, seed: int) -> np.ndarray:
    phase, heading = np.random.default_rng(seed).uniform(0, 2 * np.pi, 2)
    time = np.arange(frames) / 30
    positions = np.repeat(STANDING[None], frames, axis=0)
    positions[..., 1] += np.sin(2 * np.pi * time + phase)[:, None] * SWING + time[:, None]
    c, s = np.cos(heading), np.sin(heading)
    return (size * positions @ np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])).astype(np.float32)


@pytest.fixture
def walk() -> Callable[..., np.ndarray]:
    """`walk(frames)`: positions `(frames, 17, 3)` of a walk at 1 m/s in a direction that the seed decides."""

    def make(frames: int, size: float = 1.0, seed: int = 0) -> np.ndarray:
        return _walk(frames, size, seed)

    return make


@pytest.fixture
def make_archive(tmp_path: Path) -> Callable[..., Path]:
    """`make_archive({name: frames})` writes walks as an archive; `sizes` and `split` may tell the clips apart."""
    from probpose.data import MotionClip, clips_to_npz

    def make(lengths, sizes=None, split="train", fps=30.0, file="mocap.npz") -> Path:
        walks = {name: _walk(frames, (sizes or {}).get(name, 1.0), seed) for seed, (name, frames) in enumerate(lengths.items())}
        clips_to_npz([MotionClip(positions, fps, name, positions, ()) for name, positions in walks.items()], tmp_path / file, split)
        return tmp_path / file

    return make


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a pipeline with a small random denoiser."""
    import torch

    from probpose.models import FrameTransformerModel
    from probpose.pipelines import D3DPPipeline
    from probpose.schedulers import D3DPScheduler

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model") / "tiny"
    denoiser = FrameTransformerModel(num_frames=16, width=32, depth=1, num_attention_heads=1)
    pipe = D3DPPipeline(denoiser=denoiser, scheduler=D3DPScheduler(), default_num_hypotheses=3, default_num_inference_steps=2)
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_diffpose() -> Callable:
    """`make_diffpose()`: a DiffPosePipeline of small random networks; `lifter=` another lifter, and defaults as the pipeline takes them."""
    import torch

    from probpose.models import FrameTransformerModel, GraFormerDenoiser
    from probpose.pipelines import DiffPosePipeline
    from probpose.schedulers import GMMScheduler

    def make(lifter=None, **settings):
        torch.manual_seed(0)
        lifter = lifter or FrameTransformerModel(num_frames=9, in_channels=2, width=32, depth=1, num_attention_heads=2)
        level, channels = lifter.context_shape
        context = {"context_level": level, "context_channels": channels}
        camera = (2.29, 2.29, 0.0, 0.0)
        denoiser = GraFormerDenoiser(width=16, depth=1, num_attention_heads=2, canonical_camera=camera, **context)
        settings = {"default_num_hypotheses": 3, **settings}
        pipe = DiffPosePipeline(denoiser=denoiser.eval(), lifter=lifter.eval(), scheduler=GMMScheduler(), **settings)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return make


@pytest.fixture(scope="session")
def tiny_diffpose(tmp_path_factory: pytest.TempPathFactory, make_diffpose: Callable) -> Path:
    """Folder of such a pipeline."""
    folder = tmp_path_factory.mktemp("model") / "diffpose"
    make_diffpose().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_platypose(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a pipeline with a small random prior in world axes."""
    import torch

    from probpose.models import MotionPriorModel
    from probpose.pipelines import PlatyposePipeline
    from probpose.schedulers import EnergyGuidedDDIMScheduler

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model") / "platypose"
    prior = MotionPriorModel(num_frames=16, width=16, depth=1, num_attention_heads=2, axes="world", trajectory="relative").eval()
    pipe = PlatyposePipeline(prior, EnergyGuidedDDIMScheduler(), default_num_hypotheses=3, default_num_inference_steps=3)
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture
def run_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """`run_command("sample", path, …)` runs a command line; returns exit code, stdout and stderr."""
    from probpose.cli import main

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["probpose", *map(str, words)])
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        return code, *capsys.readouterr()

    yield call
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Rounding depends on the number of threads."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
