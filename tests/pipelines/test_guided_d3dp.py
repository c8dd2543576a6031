"""D3DP guided by what else is known: cameras that the network never saw, known joints, any energy."""

import math
from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from tiny_pipelines import IMAGE, both_models, frame_pipeline, keypoints_of, mixste_pipeline, seeded, spy, walk

from probpose.calibration import Recalibration
from probpose.geometry import Camera, quaternion_to_matrix, rotation_looking_along
from probpose.guidance import Energy, GaussNewtonGuide, GradientGuide, GroundContactEnergy, InpaintingEnergy, ReprojectionEnergy
from probpose.schedulers import D3DPScheduler

OPTIONS = {"num_hypotheses": 3, "num_inference_steps": 2, "aggregation": None}


def standing(*place):
    """A camera in the world at this place, looking at where the walk is."""
    lens, place = Camera.from_image_size(*IMAGE), torch.tensor(place)
    rotation = rotation_looking_along(torch.nn.functional.normalize(-place, dim=-1))
    return replace(lens, rotation=rotation, translation=-rotation @ place)


OWN, SIDE = standing(0.0, -4.5, 0.0), standing(5.0, 0.0, 0.5)
LENS = replace(OWN, rotation=None, translation=None)


class Recorder(Energy):
    """Of no height; keeps the motions that it sees."""

    def __init__(self):
        self.seen = []

    def __call__(self, motion):
        self.seen.append(motion.detach())
        return 0 * motion.sum((-1, -2, -3))

    def curvature(self, motion):
        return torch.zeros(*motion.shape, 3)


def in_world(batch=2, frames=7, camera=OWN):
    """The walk's joints in the world, and what the camera sees of them."""
    pose, root = walk(batch, frames)
    return camera.to_world(pose + root[:, :, None]), keypoints_of(batch, frames, LENS)


def seen_by(camera, joints):
    """The likelihood of an exact detector's keypoints, for a batch of clips."""
    return ReprojectionEnergy.from_detections([camera], [camera.project(camera.to_camera(joints))[:, None]])


def nearly_knowing(error, batch=1, frames=7):
    """A pipeline that knows the pose of every clip's first frame but for an error `(17, 3)`, and the clip's true poses."""
    pose = walk(batch, 1)[0].expand(-1, frames, -1, -1).clone()
    pipe = frame_pipeline(default_flip=False)  # the pose is not its own mirror image
    torch.nn.init.zeros_(pipe.denoiser.proj_out.weight)
    pipe.denoiser.proj_out.bias.data = (pose[0, 0] + error).flatten()
    return pipe, pose


def distance(out, pose):
    return (out.hypotheses - pose[:, None]).norm(dim=-1).mean().item()


# What it is good for


@pytest.mark.parametrize("frames", [5, 20])
@both_models
def test_another_camera_pulls_hypotheses_towards_the_truth(make_pipe, frames):
    pipe, (joints, keypoints) = make_pipe(), in_world(frames=frames)
    free, guided = (pipe(keypoints, **OPTIONS, camera=OWN, generator=seeded(), guidance=g) for g in (None, seen_by(SIDE, joints)))
    pose = walk(frames=frames)[0]
    assert guided.hypotheses.shape == free.hypotheses.shape
    assert distance(guided, pose) < 0.99 * distance(free, pose), "although an untrained network is further off than is expected of it"
    assert not guided.hypotheses[..., 0, :].any()


def test_another_camera_tells_the_depth_that_the_first_one_cannot_see():
    rays = torch.nn.functional.normalize(walk(1, 1)[0][0, 0] + walk(1, 1)[1][0, 0], dim=-1)
    error = 0.08 * torch.randn(17, 1, generator=seeded(3)) * rays
    pipe, pose = nearly_knowing(error)
    camera_joints = pose + walk(1, 7)[1][:, :1, None]
    joints, keypoints = OWN.to_world(camera_joints), LENS.project(camera_joints)
    free = pipe(keypoints, camera=OWN, **OPTIONS)
    guided = pipe(keypoints, camera=OWN, **OPTIONS, guidance=seen_by(SIDE, joints))
    assert distance(guided, pose) < 0.35 * distance(free, pose)
    three = seen_by(SIDE, joints) + seen_by(standing(-3.0, 3.0, 1.0), joints) + 0.1 * GroundContactEnergy(floor=-5.0)
    assert distance(pipe(keypoints, camera=OWN, **OPTIONS, guidance=three), pose) < 0.35 * distance(free, pose)


@pytest.mark.parametrize(
    "scheduler",
    [
        D3DPScheduler(),
        D3DPScheduler(scale=2.0),
        DDIMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="sample", rescale_betas_zero_snr=True),
        EulerDiscreteScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="sample"),
    ],
    ids=["d3dp", "scaled", "ddim", "euler"],
)
def test_known_joints_are_kept(scheduler):
    pipe, keypoints = frame_pipeline(scheduler), keypoints_of()
    target = torch.full((7, 17, 3), torch.nan)
    target[:, 16] = torch.tensor([0.1, -0.3, 0.2])
    guide = GaussNewtonGuide(substeps=6, spread=1.0)
    out = pipe(keypoints, image_size=IMAGE, **OPTIONS, guidance=InpaintingEnergy(target, sigma=1e-4), guide=guide)
    torch.testing.assert_close(out.hypotheses[..., 16, :], target[:, 16].expand(2, 3, 7, 3), atol=0.01, rtol=0)


# What must not change anything


@pytest.mark.parametrize("settings", [{}, {"flip": "alternate", "share_first_step": True}, {"flip": "last_step", "max_batch_size": 2}])
@both_models
def test_guidance_that_moves_nothing_changes_nothing(make_pipe, settings):
    pipe, keypoints, energy = make_pipe(), keypoints_of(frames=5), Recorder()
    options = {**OPTIONS, **settings, "image_size": IMAGE, "aggregation": "mean"}
    free = pipe(keypoints, **options, generator=seeded())
    still = pipe(keypoints, **options, generator=seeded(), guidance=energy, guide=GaussNewtonGuide(substeps=0))
    for name in ("hypotheses", "pose", "uncertainty", "root"):
        assert torch.equal(free[name], still[name])


@pytest.mark.parametrize("settings", [{}, {"flip": "alternate", "share_first_step": True}])
def test_the_worlds_axes_do_not_matter(settings):
    pipe, (joints, keypoints) = frame_pipeline(), in_world()
    turn, shift = quaternion_to_matrix(torch.tensor([0.5, -0.3, 0.7, 0.2])), torch.tensor([3.0, -2.0, 1.0])

    def run(move):
        own, side = OWN, SIDE
        if move:  # X' = turn X + shift
            own, side = (
                replace(c, rotation=c.rotation @ turn.mT, translation=c.translation - c.rotation @ turn.mT @ shift) for c in (own, side)
            )
        moved = joints @ turn.mT + shift if move else joints
        return pipe(keypoints, camera=own, **OPTIONS, **settings, generator=seeded(), guidance=seen_by(side, moved)).hypotheses

    torch.testing.assert_close(run(True), run(False), atol=5e-3, rtol=0)


@pytest.mark.parametrize("frames", [5, 20])
@both_models
def test_a_clip_is_guided_as_if_it_were_alone(make_pipe, frames):
    pipe, (joints, keypoints) = make_pipe(), in_world(frames=frames)
    cameras = replace(OWN, **{name: torch.stack([getattr(OWN, name)] * 2) for name in ("focal", "centre", "rotation", "translation")})
    generators = lambda rows: [seeded(10 + row) for row in rows]  # noqa: E731
    together = pipe(keypoints, camera=cameras, **OPTIONS, generator=generators((0, 1)), guidance=seen_by(SIDE, joints), max_batch_size=4)
    for row in range(2):
        alone = pipe(keypoints[row], camera=OWN, **OPTIONS, generator=generators([row]), guidance=seen_by(SIDE, joints[row : row + 1]))
        torch.testing.assert_close(together.hypotheses[row], alone.hypotheses, atol=1e-3, rtol=0)


# What the energy sees


@pytest.mark.parametrize("camera", [OWN, LENS], ids=["world", "camera"])
def test_an_energy_sees_the_clips_own_frames_in_its_axes(camera):
    pipe, energy = mixste_pipeline(), Recorder()
    root, keypoints = walk(frames=4)[1], keypoints_of(frames=4, camera=LENS)
    pipe(keypoints, camera=camera, **OPTIONS, root=root, guidance=energy)
    assert {tuple(motion.shape) for motion in energy.seen} == {(2, 3, 4, 17, 3)}, "not the padding of windows of nine frames"
    expected = root if camera is LENS else OWN.to_world(root)
    torch.testing.assert_close(energy.seen[0][..., 0, :], expected[:, None].expand(2, 3, 4, 3))


def test_the_root_is_estimated_for_every_hypothesis():
    pipe, pose = nearly_knowing(torch.zeros(17, 3))
    root, energy = walk(1, 7)[1], Recorder()
    keypoints = LENS.project(pose + root[:, :, None])
    predicted = pipe(keypoints, camera=OWN, **OPTIONS).hypotheses
    pipe(keypoints, camera=OWN, **OPTIONS, guidance=energy, share_first_step=True)
    torch.testing.assert_close(energy.seen[0][..., 0, :], OWN.to_world(root)[:, None].expand(1, 3, 7, 3), atol=0.01, rtol=0)
    torch.testing.assert_close(energy.seen[0][..., 1:, :], (predicted @ OWN.rotation)[..., 1:, :])


def test_guides_that_compare_hypotheses_see_all_of_them():
    pipe, (joints, keypoints) = frame_pipeline(), in_world()
    calls, energy = spy(pipe.denoiser), Recorder()
    options = {**OPTIONS, "camera": OWN, "max_batch_size": 2, "guidance": seen_by(SIDE, joints) + energy}
    pipe(keypoints, **options, guide=GradientGuide(scale=1e-6, substeps=1))
    assert {motion.shape[1] for motion in energy.seen} == {3} and {hypotheses for _, hypotheses in calls} == {3}
    calls.clear()
    pipe(keypoints, **options)
    assert {hypotheses for _, hypotheses in calls} == {1}


def test_the_callback_sees_the_guided_pose():
    pipe, keypoints, seen = frame_pipeline(), keypoints_of(), []
    target = torch.full((7, 17, 3), torch.nan)
    target[:, 16] = 0.2
    pipe(
        keypoints, image_size=IMAGE, **OPTIONS, guidance=InpaintingEnergy(target, sigma=1e-4), guide=GaussNewtonGuide(6, spread=1.0),
        callback_on_step_end=lambda pipe, i, t, state: seen.append(state["clean"]),
    )  # fmt: skip
    assert len(seen) == 2 and all((clean[..., 16, :] - 0.2).abs().max() < 0.01 for clean in seen)


def test_a_calibrator_fitted_without_guidance_is_not_used():
    calibrator = Recalibration().eval()
    calibrator.scale *= 2
    pipe, keypoints = frame_pipeline(), keypoints_of()
    pipe.register_modules(calibrator=calibrator)
    options = {**OPTIONS, "image_size": IMAGE, "guidance": Recorder()}
    silent, no, yes = (pipe(keypoints, **options, generator=seeded(), calibrated=c).hypotheses for c in (None, False, True))
    assert torch.equal(silent, no) and not torch.equal(silent, yes)


# Errors


def test_errors():
    pipe, keypoints = frame_pipeline(), keypoints_of()
    with pytest.raises(ValueError, match=r"guidance must be a probpose\.guidance\.Energy, got float"):
        pipe(keypoints, image_size=IMAGE, **OPTIONS, guidance=1.0)
    with pytest.raises(ValueError, match=r"step 0 \(timestep 999\): the energy Broken is not finite \(6 of 6 motions\)"):
        pipe(keypoints, image_size=IMAGE, **OPTIONS, guidance=Broken())
    with pytest.raises(ValueError, match="root is joint 0, that of 'mpi_inf_3dhp_17' is 14"):
        mixste_pipeline(model={"skeleton": "mpi_inf_3dhp_17", "root_index": 14})(
            keypoints, image_size=IMAGE, **OPTIONS, guidance=Recorder()
        )


class Broken(Recorder):
    def __call__(self, motion):
        return super().__call__(motion) / 0


# The scheduler


def test_noise_level_is_that_of_noisy_poses():
    for scheduler in (D3DPScheduler(scale=0.5), D3DPScheduler(num_train_timesteps=50)):
        t = len(scheduler) // 3
        alpha = scheduler.alphas_cumprod[t].item()
        state = math.sqrt(alpha) * scheduler.config.scale * 0.3 + math.sqrt(1 - alpha) * torch.randn(100_000, generator=seeded())
        assert scheduler.noise_level(t) == pytest.approx((state / math.sqrt(alpha) / scheduler.config.scale).std().item(), rel=0.02)
        with pytest.raises(ValueError, match=f"0..{len(scheduler) - 1}, got {len(scheduler)}"):
            scheduler.noise_level(len(scheduler))
