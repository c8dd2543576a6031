"""Tiny pipelines and a person walking through two images."""

import pytest
import torch

from probpose.geometry import Camera, h36m_camera
from probpose.models import FrameTransformerModel, GraFormerDenoiser, GraFormerLifter, MixSTEModel, MotionPriorModel
from probpose.pipelines import D3DPPipeline, DiffPosePipeline, PlatyposePipeline
from probpose.schedulers import D3DPScheduler, EnergyGuidedDDIMScheduler, GMMScheduler
from probpose.skeletons import get_skeleton

IMAGE = (1920, 1080)


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def frame_pipeline(scheduler=None, canonical_camera=(2.29, 2.29, 0.0, 0.0), **defaults):
    """A denoiser that reads confidences, has a canonical camera and takes clips of up to 9 frames as they are."""
    torch.manual_seed(0)
    model = FrameTransformerModel(num_frames=9, width=32, depth=2, num_attention_heads=2, canonical_camera=canonical_camera)
    return quiet(D3DPPipeline(denoiser=model.eval(), scheduler=scheduler or D3DPScheduler(), **defaults))


def mixste_pipeline(scheduler=None, model=None, **defaults):
    """D3DP's denoiser: windows of exactly 9 frames, normalisation by the image width."""
    torch.manual_seed(0)
    config = {"num_frames": 9, "width": 16, "depth": 1, "num_attention_heads": 2} | (model or {})
    return quiet(D3DPPipeline(denoiser=MixSTEModel(**config).eval(), scheduler=scheduler or D3DPScheduler(), **defaults))


LIFTERS = {
    "graformer": lambda: GraFormerLifter(width=16, depth=1, num_attention_heads=2),
    "frame": lambda: FrameTransformerModel(num_frames=9, in_channels=2, width=16, depth=1, num_attention_heads=2),
    "mixste": lambda: MixSTEModel(num_frames=9, in_channels=2, width=16, depth=1, num_attention_heads=2, use_timestep=False),
}


def stirred(model, seed=0):
    """In eval mode, with weights far from their initial values, some of which are zero."""
    generator = seeded(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def diffpose_pipeline(lifter="graformer", context=True, scheduler=None, denoiser=None, **defaults):
    """A lifter, or the name of one: of single frames, of windows of up to 9 frames with a canonical camera, or of exactly 9 frames.

    The denoiser sees the lifter's features if there is to be context. The chain begins near the noise of the mixture, as in the paper.
    """
    torch.manual_seed(0)
    lifter = stirred(LIFTERS[lifter]()) if isinstance(lifter, str) else lifter
    config = {"width": 16, "depth": 1, "num_attention_heads": 2, "canonical_camera": lifter.config.canonical_camera}
    if context:
        config |= dict(zip(("context_level", "context_channels"), lifter.context_shape))
    denoiser = stirred(GraFormerDenoiser(**config | (denoiser or {})), seed=1)
    scheduler = scheduler or GMMScheduler(
        beta_end=0.2, anchor="component", prediction_type="sample", timestep_spacing="trailing", start_timestep=50, pose_scale=0.05
    )
    return quiet(DiffPosePipeline(denoiser=denoiser, lifter=lifter, scheduler=scheduler, **defaults))


PRIORS = {
    "world": {"axes": "world", "trajectory": "absolute", "norm_first": False},
    "camera": {"axes": "camera", "trajectory": "relative", "norm_first": True},
}
both_priors = pytest.mark.parametrize("prior", PRIORS)


def platypose_pipeline(prior="camera", scheduler=None, model=None, **defaults):
    """An untrained motion prior of windows of up to 16 frames, as published ("world") or of the kind that learns faster ("camera")."""
    torch.manual_seed(0)
    config = {"num_frames": 16, "width": 32, "depth": 1, "num_attention_heads": 2} | PRIORS[prior] | (model or {})
    denoiser = MotionPriorModel(**config).eval()
    denoiser.proj_out.weight.data *= 0.3  # what it predicts is as large as a person
    denoiser.proj_out.bias.data[3:] = walk(1, 1, seed=9)[0].flatten()[3:]
    defaults = {"default_num_hypotheses": 3, "default_num_inference_steps": 5} | defaults
    return quiet(PlatyposePipeline(denoiser, scheduler or EnergyGuidedDDIMScheduler(), **defaults))


def knowing(pipe, pose):
    """The pipeline with a prior that always predicts this pose `(17, 3)` and a person who stays where they are."""
    torch.nn.init.zeros_(pipe.denoiser.proj_out.weight)
    pipe.denoiser.proj_out.bias.data[:] = torch.cat([torch.zeros(1, 3), pose[1:]]).flatten()
    return pipe


both_models = pytest.mark.parametrize("make_pipe", [frame_pipeline, mixste_pipeline], ids=["frame", "mixste"])


# The kinds of lifters and context: arguments of `diffpose_pipeline`.
all_lifters = pytest.mark.parametrize(
    "kind",
    [
        pytest.param({"lifter": "graformer", "context": False}, id="graformer"),
        pytest.param({"lifter": "graformer"}, id="graformer-context"),
        pytest.param({"lifter": "frame"}, id="frame-context"),
        pytest.param({"lifter": "mixste"}, id="mixste-context"),
    ],
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def walk(batch=2, frames=7, seed=0):
    """Root-relative poses and root trajectories in metres: `(batch, frames, 17, 3)` and `(batch, frames, 3)`."""
    generator = seeded(seed)
    pose = 0.3 * torch.randn(batch, 1, 17, 3, generator=generator) + 0.02 * torch.randn(batch, frames, 17, 3, generator=generator)
    pose[..., 0, :] = 0
    start = torch.tensor([0.2, 0.1, 4.5]) + 0.1 * torch.randn(batch, 1, 3, generator=generator)
    return pose, start + torch.linspace(0, 0.1, frames)[:, None]


def keypoints_of(batch=2, frames=7, camera=None, seed=0):
    """Pixels `(batch, frames, 17, 2)` of that walk."""
    pose, root = walk(batch, frames, seed)
    return (camera or Camera.from_image_size(*IMAGE)).project(pose + root[:, :, None])


STUDIO = [h36m_camera(number, "S1") for number in range(4)]
"""Human3.6M's cameras, which stand around the origin of the world."""


def filmed(motion, cameras=STUDIO):
    """What cameras see of world motions `(..., 17, 3)`: a list of pixels `(..., 17, 2)`."""
    return [camera.project(camera.to_camera(motion)) for camera in cameras]


def as_seen(motion, camera):
    """Root-relative poses and roots of world motions `(batch, frames, 17, 3)` in a camera's axes."""
    joints = camera.to_camera(motion)
    return joints - joints[..., :1, :], joints[..., 0, :]


def mirror_pose(pose, skeleton="h36m_17"):
    return (pose * torch.tensor([-1.0, 1.0, 1.0]))[..., list(get_skeleton(skeleton).flip_index), :]


def mirror_pixels(keypoints, width=IMAGE[0], skeleton="h36m_17"):
    mirrored = torch.stack([width - keypoints[..., 0], keypoints[..., 1]], dim=-1)
    return mirrored[..., list(get_skeleton(skeleton).flip_index), :]


def spy(module):
    """Records the shapes (windows, hypotheses) of every network call."""
    calls = []
    module.register_forward_pre_hook(lambda _, args: calls.append(tuple(args[1].shape[:2])))
    return calls
