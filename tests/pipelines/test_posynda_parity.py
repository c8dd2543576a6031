"""PoSynDA's sampler: D3DP's, with an adapted network in millimetres, on MPI-INF-3DHP's skeleton."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_pipelines import quiet

from probpose.geometry import denormalise_screen
from probpose.hub import convert_original
from probpose.pipelines import D3DPPipeline
from probpose.schedulers import D3DPScheduler
from probpose.skeletons import get_skeleton

PARITY = Path(__file__).resolve().parents[3] / "shared" / "parity" / "posynda"
pytestmark = pytest.mark.skipif(not PARITY.exists(), reason="the full set of reference numbers is not here")


@pytest.fixture(scope="module")
def io():
    return load_file(PARITY / "io.safetensors")


@pytest.fixture
def pipe():
    denoiser = convert_original("posynda", load_file(PARITY / "checkpoint.safetensors"), skeleton="mpi_inf_3dhp_17")
    return quiet(D3DPPipeline(denoiser=denoiser, scheduler=D3DPScheduler()))


def run(pipe, io, **options):
    return pipe(
        denormalise_screen(io["sample.x2d"], (1000, 1000)), image_size=(1000, 1000), num_hypotheses=3, num_inference_steps=3,
        flip="every_step", aggregation=None, noise=torch.cat([io["sample.noise_init"][None], io["sample.noise_steps"]]), **options,
    ).hypotheses  # fmt: skip


def same_millimetres(metres, expected):
    torch.testing.assert_close(1000 * metres, expected, atol=0.05, rtol=0)


@pytest.mark.parametrize("fused", [False, True])
def test_every_step_is_the_originals(pipe, io, fused):
    if fused:
        pipe.fuse_lora()
    steps = []
    hypotheses = run(pipe, io, callback_on_step_end=lambda _, i, t, tensors: steps.append((t, tensors["clean"])))
    assert [t for t, _ in steps] == io["sample.times"][:-1].tolist()
    expected = io["sample.out_mm"]
    for i, (_, clean) in enumerate(steps):
        same_millimetres(clean.clamp(-1.1, 1.1), expected[:, i])
    assert pipe.root_index == 14 and not hypotheses[..., 14, :].any()
    others = [joint for joint in range(17) if joint != 14]
    same_millimetres(hypotheses[..., others, :], expected[:, -1][..., others, :])


def test_the_adapter_matters(pipe, io):
    adapted = run(pipe, io)
    pipe.disable_lora()
    assert (run(pipe, io) - adapted).abs().max() > 1e-3


def test_mirrored_keypoints_and_schedule(pipe, io):
    flip = torch.tensor([-1.0, 1.0]) * io["sample.x2d"]
    assert torch.equal(flip[..., list(get_skeleton("mpi_inf_3dhp_17").flip_index), :], io["sample.x2d_flip"])
    alphas = pipe.scheduler.alphas_cumprod[[0, 332, 665, 999]]
    torch.testing.assert_close(alphas, io["sample.alphas_cumprod_f64"], atol=1e-12, rtol=0)
