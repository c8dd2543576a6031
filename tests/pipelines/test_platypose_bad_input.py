"""Bad input to Platypose is one ValueError that names the value and what is allowed."""

import math
from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler
from tiny_pipelines import IMAGE, STUDIO, both_priors, filmed, keypoints_of, platypose_pipeline, seeded, spy
from tiny_pipelines import walk as posed

from probpose.geometry import Camera, h36m_camera
from probpose.guidance import Energy, GaussNewtonGuide, GradientGuide, GuideOutput, SmoothnessEnergy
from probpose.models import FrameTransformerModel, MotionPriorModel
from probpose.pipelines import PlatyposePipeline
from probpose.schedulers import D3DPScheduler, EnergyGuidedDDIMScheduler

KEYPOINTS = keypoints_of()  # (2, 7, 17, 2)
NOISE = torch.zeros(2, 3, 7, 17, 3)
PLACE = posed()[1]


@pytest.fixture(scope="module")
def pipe():
    return platypose_pipeline()


BAD_CALLS = {
    # what all pipelines check
    "nothing": ({"keypoints_2d": None}, "keypoints_2d must be a numeric array.*NoneType"),
    "joints": ({"keypoints_2d": KEYPOINTS[:, :, :15]}, "has 17 joints"),
    "no image size": ({"image_size": None}, r"image_size=\(width, height\)"),
    "normalised": ({"keypoints_2d": KEYPOINTS / 1920}, "look normalised"),
    "confidence": ({"confidence": torch.ones(2, 7)}, r"confidence must have shape \(2, 7, 17\)"),
    "contradiction": ({"camera": h36m_camera(0)}, r"image_size=\(1920, 1080\) contradicts"),
    **{f"K {v!r}": ({"num_hypotheses": v}, f"num_hypotheses must be an integer of at least 1, got {v!r}") for v in (0, True, 2.0)},
    **{f"batch {v!r}": ({"max_batch_size": v}, f"max_batch_size must be an integer of at least 1, got {v!r}") for v in (0, 1.0)},
    **{f"eta {v!r}": ({"eta": v}, rf"eta must lie in 0\.\.1, got {v!r}") for v in (-0.1, "1", math.nan)},
    "steps": ({"num_inference_steps": 0}, "num_inference_steps must be an integer from 1 to 1000, got 0"),
    "too many steps": ({"num_inference_steps": 51}, "num_inference_steps must be an integer from 1 to 50, got 51"),
    "generators": ({"generator": [seeded()]}, r"one per clip \(2\)"),
    "noise": ({"noise": NOISE[:, :2]}, r"noise must have shape \(2, 3, 7, 17, 3\).*got \(2, 2, 7, 17, 3\)"),
    "noise, draws": ({"noise": NOISE.expand(2, -1, -1, -1, -1, -1), "eta": 1.0}, "1 draw or at least 4 in 4 steps, got 2"),
    "aggregation": ({"aggregation": "best"}, "aggregation must be None.*'best'"),
    "calibrated": ({"calibrated": True}, "needs a pipeline with a calibrator"),
    "output type": ({"output_type": "pil"}, "output_type must be 'pt' or 'np'"),
    "fps": ({"fps": 0}, "fps must be a positive number"),
    # roots
    **{f"root {v!r}": ({"root": v}, rf"root must be one of \('estimate', 'state'\), or a trajectory, got {v!r}")
       for v in ("true", "given", "")},
    "root, shape": ({"root": PLACE[:, :3]}, r"root must have shape \(2, 7, 3\), got \(2, 3, 3\)"),
    "root, nan": ({"root": PLACE + math.nan}, "root must be finite"),
    "root, behind": ({"root": -PLACE}, "root must lie in front of the camera"),
    # guidance
    **{f"scale {v!r}": ({"energy_scale": v}, f"energy_scale must be a positive number, got {v!r}")
       for v in (0, -1.0, math.inf, math.nan, "1", True)},
    "likelihood": ({"likelihood": "gaussian"}, r"likelihood must be one of \('confidence', 'published', None\), got 'gaussian'"),
    "no energy": ({"likelihood": None}, "likelihood=None needs a guidance"),
    "guidance": ({"guidance": lambda motion: motion.sum()}, "guidance must be a probpose.guidance.Energy, got function"),
    "guidance, class": ({"guidance": SmoothnessEnergy}, "guidance must be a probpose.guidance.Energy, got ABCMeta"),
    "guide": ({"guide": "newton"}, "guide must be a GaussNewtonGuide.*got 'newton'"),
    "guide, class": ({"guide": GradientGuide}, "guide must be a GaussNewtonGuide.*GradientGuide"),
    "guide, energy": ({"guide": SmoothnessEnergy(30.0)}, "guide must be a GaussNewtonGuide.*SmoothnessEnergy"),
    "init pose, shape": ({"init_pose": torch.zeros(2, 6, 17, 3)}, r"init_pose must.*shape \(2, 7, 17, 3\), got \(2, 6, 17, 3\)"),
    "init pose, clip": ({"init_pose": torch.zeros(7, 17, 3)}, r"init_pose must.*shape \(2, 7, 17, 3\), got \(7, 17, 3\)"),
    "init pose, nan": ({"init_pose": torch.full((2, 7, 17, 3), math.nan)}, "init_pose must be finite"),
    "init pose, text": ({"init_pose": "standing"}, "init_pose must be a numeric array"),
    # cameras
    "cameras as camera": ({"camera": STUDIO[:2]}, "camera must be one Camera, got 2: pass several as cameras"),
    "camera as cameras": ({"cameras": STUDIO[0]}, "cameras must be a list of .*Camera, got Camera"),
    "no cameras": ({"cameras": []}, "cameras must be a list of .*Camera, got list"),
    "camera and cameras": ({"camera": STUDIO[0], "cameras": STUDIO[:2]}, "pass camera or cameras, not both"),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_bad_calls(pipe, arguments, message):
    calls = spy(pipe.denoiser)
    call = {"keypoints_2d": KEYPOINTS, "image_size": IMAGE, "num_hypotheses": 3, "num_inference_steps": 5}
    with pytest.raises(ValueError, match=message):
        pipe(**call | arguments)
    assert not calls, "the network was called in spite of bad input"


# Several cameras

NOWHERE = Camera.from_image_size(1000, 1002)
TWO = [1000 * torch.rand(2, 7, 17, 2, generator=seeded(i)) for i in range(2)]
SURE = torch.ones(2, 7, 17)

BAD_VIEWS = {
    "keypoints, number": ({"keypoints_2d": TWO[:1]}, "keypoints_2d must be a list with one entry for each camera: 2 cameras, 1 entries"),
    "keypoints, none": ({"keypoints_2d": None}, "keypoints_2d must be a list with one entry for each camera: 2 cameras, no entries"),
    "keypoints of one": ({"keypoints_2d": TWO[0][0]}, "keypoints_2d must be a list.*2 cameras, 7 entries"),
    "confidence, number": ({"confidence": [SURE] * 3}, "confidence must be a list with one entry for each camera: 2 cameras, 3 entries"),
    "confidence, shape": ({"confidence": [SURE, SURE[:, :3]]}, r"camera 1: confidence must have shape \(2, 7, 17\)"),
    "sizes": ({"image_size": [(1000, 1002)] * 3}, "image_size must be one or a list with one for each camera: 2 cameras, 3 sizes"),
    "size": ({"image_size": [(1000, 1002), (640, 480)]}, r"camera 1: image_size=\(640, 480\) contradicts"),
    "frames": ({"keypoints_2d": [TWO[0], TWO[1][:, :6]]}, r"as many clips and frames, got \(2, 7\) of camera 0 and \(2, 6\) of camera 1"),
    "clips": ({"keypoints_2d": [TWO[0], TWO[1][:1]]}, r"got \(2, 7\) of camera 0 and \(1, 7\) of camera 1"),
    "joints": ({"keypoints_2d": [TWO[0], TWO[1][:, :, :15]]}, "camera 1: .*has 17 joints"),
    "places": ({"cameras": [STUDIO[0], NOWHERE]}, "camera 1 has no rotation and translation: several cameras must say where they stand"),
    "half a place": ({"cameras": [replace(STUDIO[0], translation=None), STUDIO[1]]}, "camera 0 has no rotation and translation"),
    "none": ({"cameras": [STUDIO[0], None]}, "camera 1 has no rotation and translation"),
    "one that is none": ({"cameras": ["left"], "keypoints_2d": TWO[:1]}, "camera 0: camera must be a .*Camera, got str"),
    "focal": ({"estimate_focal": True}, "estimate_focal corrects the focal length of one camera, got 2 cameras"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD_VIEWS.values(), ids=BAD_VIEWS)
def test_bad_views(pipe, arguments, message):
    calls = spy(pipe.denoiser)
    with pytest.raises(ValueError, match=message):
        pipe(**{"keypoints_2d": TWO, "cameras": STUDIO[:2]} | arguments)
    assert not calls


@pytest.fixture
def people(walk):
    return torch.stack([torch.from_numpy(walk(6, seed=seed)) for seed in (0, 1)])


@both_priors
def test_a_camera_that_looks_the_other_way(prior, people):
    """As one whose rotation and translation were given the wrong way round, say."""
    pipe, keypoints = platypose_pipeline(prior), filmed(people, STUDIO[:2])
    turned = replace(STUDIO[1], rotation=-STUDIO[1].rotation, translation=-STUDIO[1].translation)
    cameras = [STUDIO[0], replace(turned, rotation=turned.rotation * torch.tensor([[-1.0], [1.0], [1.0]]))]
    place = STUDIO[0].to_camera(people[:, :, 0])
    calls = spy(pipe.denoiser)
    with pytest.raises(ValueError, match=r"^camera 1 has the person of clip 0 behind it \(z = -.*X_camera = R X_world \+ t"):
        pipe(keypoints, cameras=cameras, root=place)
    assert not calls
    with pytest.raises(ValueError, match=r"^step 0 \(timestep 36\): camera 1 has the person of clip 0 behind it"):
        pipe([keypoints[0], torch.full_like(keypoints[1], 500.0)], cameras=cameras)


# Energies


class Fading(Energy):
    """Not a number from its third call on."""

    def __init__(self, calls=2):
        self.left = calls

    def __call__(self, motion):
        self.left -= 1
        return motion.square().sum((-1, -2, -3)) * (1.0 if self.left >= 0 else math.nan)

    def curvature(self, motion):
        return torch.diag_embed(torch.full_like(motion, 2.0))


@pytest.mark.parametrize("guide", [GaussNewtonGuide(1), GradientGuide(1e-3, substeps=1)], ids=["default", "published"])
@pytest.mark.parametrize("any_length", [True, False])
def test_an_energy_that_is_not_finite_is_named_with_the_step(guide, any_length):
    pipe = platypose_pipeline(model={"any_length": any_length})
    options = {"image_size": IMAGE, "guide": guide, "num_inference_steps": 8}
    with pytest.raises(ValueError, match=r"^step 2 \(timestep \d+\): the energy Fading is not finite \(6 of 6 motions\)"):
        pipe(KEYPOINTS, guidance=1e-3 * Fading() + SmoothnessEnergy(30.0), **options)
    with pytest.raises(ValueError, match=r"^step 2 .* the energy Fading is not finite"):
        pipe(KEYPOINTS, guidance=Fading(), likelihood=None, **options)


def test_a_guide_that_changes_the_shape(pipe):
    with pytest.raises(ValueError, match=r"^step 0 \(timestep 36\): guidance must keep the pose's shape"):
        pipe(KEYPOINTS, image_size=IMAGE, guide=lambda motion, energy, level: GuideOutput(motion[:, :1]))


def test_weights_that_are_not_finite_are_an_error_not_a_result():
    pipe = platypose_pipeline()
    torch.nn.init.constant_(pipe.denoiser.proj_out.bias, math.nan)
    with pytest.raises(ValueError, match=r"^step 0 .*: sampling left the range of numbers: check the denoiser's weights \(torch.float32\)"):
        pipe(KEYPOINTS, image_size=IMAGE)


@both_priors
def test_no_confidence_at_all_is_a_warning(prior):
    pipe = platypose_pipeline(prior)
    for options in ({}, {"root": "state"}, {"estimate_focal": True}, {"guidance": SmoothnessEnergy(30.0)}, {"likelihood": "published"}):
        with pytest.warns(UserWarning, match="prior alone") as caught:
            out = pipe(KEYPOINTS, torch.zeros(2, 7, 17), image_size=IMAGE, **options)
        assert len(caught) == 2
        assert all(out[name].isfinite().all() for name in ("hypotheses", "pose", "uncertainty", "root"))
    with pytest.warns(UserWarning, match="prior alone"):
        out = pipe(TWO, [torch.zeros(2, 7, 17)] * 2, cameras=STUDIO[:2])
    assert out.hypotheses.isfinite().all() and out.root.isfinite().all()


# Motions that nobody saw

BAD_MOTIONS = {
    "frames": ({"num_frames": 0}, "num_frames must be an integer of at least 1, got 0"),
    "motions": ({"num_motions": 0}, "num_motions must be an integer of at least 1, got 0"),
    "steps": ({"num_inference_steps": 51}, "num_inference_steps must be an integer from 1 to 50, got 51"),
    "eta": ({"eta": 2.0}, r"eta must lie in 0\.\.1, got 2.0"),
    "batch": ({"max_batch_size": 0}, "max_batch_size must be an integer of at least 1, got 0"),
    "guidance": ({"guidance": "walk"}, "guidance must be a probpose.guidance.Energy, got str"),
    "guide": ({"guide": 30.0}, "guide must be a GaussNewtonGuide"),
    "generator": ({"generator": 1}, "torch.Generator.*got 1"),
    "nan": ({"guidance": Fading(0)}, "^step 0 .*: the energy Fading is not finite"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD_MOTIONS.values(), ids=BAD_MOTIONS)
def test_bad_motions(pipe, arguments, message):
    with pytest.raises(ValueError, match=message):
        pipe.generate(**{"num_frames": 4, "num_inference_steps": 4} | arguments)


# Parts


def test_parts_of_other_systems_are_refused(pipe):
    with pytest.raises(ValueError, match="guides a MotionPriorModel by an EnergyGuidedDDIMScheduler, got FrameTransformerModel and Energy"):
        PlatyposePipeline(FrameTransformerModel(width=32, depth=1, num_attention_heads=1), EnergyGuidedDDIMScheduler())
    for scheduler in (D3DPScheduler(), DDIMScheduler()):
        with pytest.raises(ValueError, match=f"got MotionPriorModel and {type(scheduler).__name__}"):
            PlatyposePipeline(pipe.denoiser, scheduler)


@pytest.mark.parametrize(
    ("default", "message"),
    [
        ({"default_num_hypotheses": 0}, "^num_hypotheses must"),
        ({"default_num_inference_steps": 1.5}, "^num_inference_steps must"),
        ({"default_energy_scale": -1.0}, "^energy_scale must"),
        ({"guide_substeps": -1}, "^substeps must"),
        ({"guide_trust": 0.0}, "^trust must"),
    ],
)
def test_bad_defaults(default, message):
    with pytest.raises(ValueError, match=message):
        platypose_pipeline(**default)


def test_a_prior_is_given_no_keypoints(pipe):
    assert isinstance(pipe.denoiser, MotionPriorModel)
    with pytest.raises(ValueError, match="sees no 2D: keypoints_2d and confidence must be None; PlatyposePipeline guides"):
        pipe.denoiser(KEYPOINTS, NOISE[:, 0], 3)


def test_what_goes_with_a_tilt_that_is_estimated(pipe):
    with pytest.raises(ValueError, match="estimate_tilt is for one camera and a prior in world axes"):
        pipe(KEYPOINTS, image_size=IMAGE, estimate_tilt=True)
    with pytest.raises(ValueError, match="estimate_tilt needs the root to be estimated: pass a root or estimate_tilt=True, not both"):
        platypose_pipeline("world")(KEYPOINTS, image_size=IMAGE, estimate_tilt=True, root=PLACE)
