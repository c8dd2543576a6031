"""Scenes: axes, places, likelihoods, where a person is, and the focal length."""

import math

import numpy as np
import pytest
import torch
from tiny_pipelines import STUDIO, as_seen, filmed, seeded
from tiny_pipelines import walk as posed

from probpose.geometry import Camera
from probpose.guidance import GaussNewtonGuide
from probpose.pipelines.scene import CANONICAL, Scene, check_guidance, tilted, with_bones
from probpose.skeletons import bone_lengths, get_skeleton

LENS = Camera(CANONICAL[:2], CANONICAL[2:], slope_limit=math.inf)


def same(a, b, atol=1e-5):
    torch.testing.assert_close(a, b, atol=atol, rtol=0)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed))


def studio(numbers=(0, 1), per_clip=False):
    """Canonical lenses where the studio's cameras stand; or one that stands elsewhere for every clip."""
    lenses = [Scene.behind_canonical_lens(STUDIO[number]) for number in numbers]
    if not per_clip:
        return lenses
    together = [torch.stack([getattr(lens, name) for lens in lenses]) for name in ("rotation", "translation")]
    return [Camera(LENS.focal, LENS.centre, rotation=together[0], translation=together[1], slope_limit=math.inf)]


@pytest.fixture
def people(walk):
    return torch.stack([torch.from_numpy(walk(6, seed=seed)) for seed in (0, 1)])


def scene_of(motion, lenses, confidence=None):
    keypoints = filmed(motion, lenses)
    return Scene(lenses, keypoints, [torch.ones(keypoints[0].shape[:-1]) if confidence is None else confidence] * len(lenses))


# Axes


def test_the_scene_is_in_the_worlds_axes_if_a_camera_says_where_it_stands():
    assert Scene([Scene.behind_canonical_lens(STUDIO[0])], [], []).in_world
    half = Scene.behind_canonical_lens(Camera([900.0, 900.0], [500.0, 500.0], rotation=torch.eye(3).expand(2, 3, 3)))
    assert Scene([half], [], []).in_world and torch.equal(half.translation, torch.zeros(2, 3))
    for camera in (None, Camera.from_image_size(1920, 1080)):
        lens = Scene.behind_canonical_lens(camera)
        scene = Scene([lens], [], [])
        assert not scene.in_world and lens.focal.tolist() == pytest.approx(CANONICAL[:2])
        vectors = draw(2, 3, 4, 3)
        for move in (scene.to_camera_axes, scene.from_camera_axes, scene.place_in_camera, scene.place_in_scene):
            assert move(vectors) is vectors


@pytest.mark.parametrize("per_clip", [False, True])
def test_directions_and_places_go_to_the_first_camera_and_back(per_clip):
    scene, vectors = Scene(studio(per_clip=per_clip), [], []), draw(2, 3, 4, 5, 3)
    same(scene.from_camera_axes(scene.to_camera_axes(vectors)), vectors)
    same(scene.place_in_scene(scene.place_in_camera(vectors)), vectors)
    for clip in range(2):
        camera = STUDIO[clip if per_clip else 0]
        same(scene.place_in_camera(vectors)[clip], camera.to_camera(vectors[clip]))
        same(scene.to_camera_axes(vectors)[clip], vectors[clip] @ camera.rotation.T)


# Observations


def test_observed_clips():
    confidence = [torch.zeros(3, 4, 17) for _ in range(2)]
    confidence[0][0, 2, 5] = confidence[1][2, 0, 0] = 0.1
    assert Scene(studio(), [torch.zeros(3, 4, 17, 2)] * 2, confidence).observed.tolist() == [True, False, True]


def test_some_of_the_clips():
    lenses, clips = studio((0, 1), per_clip=True), torch.tensor([False, True])
    scene = Scene(lenses, [draw(2, 4, 17, 2)], [torch.ones(2, 4, 17)], fps=50.0)
    part = scene.select(clips)
    same(part.keypoints[0], scene.keypoints[0][1:], atol=0)
    assert part.confidence[0].shape == (1, 4, 17) and part.fps == 50
    same(part.cameras[0].rotation, STUDIO[1].rotation[None], atol=0)
    shared = Scene(studio(), [draw(2, 4, 17, 2)] * 2, [torch.ones(2, 4, 17)] * 2).select(clips)
    assert shared.cameras[1].rotation.shape == (3, 3)


def test_padding_is_not_observed():
    scene = Scene([LENS], [draw(2, 4, 17, 2)], [torch.ones(2, 4, 17)])
    motion = draw(2, 1, 7, 17, 3) * 0.3 + torch.tensor([0.0, 0.0, 4.0])
    before = scene.likelihood()(motion[:, :, :4])
    scene.pad(7)
    assert scene.keypoints[0].shape == (2, 7, 17, 2) and (scene.confidence[0][:, 4:] == 0).all()
    same(scene.likelihood()(motion), before, atol=0)
    scene.pad(5)
    assert scene.keypoints[0].shape[1] == 7, "nothing is cut off"


def test_the_likelihood_by_hand():
    """Cauchy's, of distances in standard deviations, summed over cameras, frames and joints."""
    rng, lenses = np.random.default_rng(0), studio()
    motion = 0.5 * rng.standard_normal((2, 3, 4, 17, 3))  # in the world; the trajectory in the root's place
    confidence = rng.uniform(0, 1, (2, 2, 4, 17)) * (rng.random((2, 2, 4, 17)) > 0.3)
    keypoints = 0.1 * rng.standard_normal((2, 2, 4, 17, 2))
    space = motion + np.where(np.arange(17)[:, None] > 0, motion[..., :1, :], 0)
    expected = np.zeros((2, 3))
    for camera, seen, sure in zip(lenses, keypoints, confidence):
        points = space @ camera.rotation.numpy().T.astype(float) + camera.translation.numpy()
        off = CANONICAL[0] * points[..., :2] / points[..., 2:] - seen[:, None]
        sigma = 0.002 + 0.04 * (1 - sure[:, None])
        square = np.where(sure[:, None] > 0, (off**2).sum(-1) / sigma**2, 0)
        expected += (9 * np.log1p(square / 9)).sum((-1, -2)) / 2
    scene = Scene(lenses, [torch.from_numpy(k) for k in keypoints], [torch.from_numpy(c) for c in confidence])
    torch.testing.assert_close(scene.likelihood()(torch.from_numpy(motion)), torch.from_numpy(expected), rtol=1e-5, atol=0)


def test_the_likelihood_with_a_root_or_with_a_trajectory_that_is_held():
    scene = Scene([LENS], [0.1 * draw(2, 4, 17, 2)], [torch.ones(2, 4, 17)])
    motion, root = 0.3 * draw(2, 3, 4, 17, 3), torch.tensor([0.1, 0.2, 4.0]).expand(2, 1, 4, 3)
    placed = torch.cat([root[..., None, :].expand(-1, 3, -1, -1, -1), motion[..., 1:, :]], dim=-2)
    about = torch.cat([torch.zeros_like(motion[..., :1, :]), motion[..., 1:, :]], dim=-2)
    same(scene.likelihood(root=root)(about), scene.likelihood()(placed), atol=1e-2)
    assert (scene.likelihood(hold_trajectory=True).gradient(placed)[1][..., 0, :] == 0).all()
    assert (scene.likelihood().gradient(placed)[1][..., 0, :] != 0).any()


# Where the person is


@pytest.mark.parametrize("numbers", [(0,), (0, 2), (3, 1, 0)])
@pytest.mark.parametrize("world", [True, False])
def test_the_root_of_known_poses(people, numbers, world):
    if not world and len(numbers) > 1:
        return
    lenses = studio(numbers)
    pose, place = (people - people[:, :, :1], people[:, :, 0]) if world else as_seen(people, lenses[0])
    scene = scene_of(people, lenses)
    if not world:
        scene.cameras = [LENS]
    root = scene.estimate_root(pose[:, None].expand(-1, 3, -1, -1, -1), noise_level=0.01)
    assert root.shape == (2, 3, 6, 3)
    assert (root - place[:, None]).norm(dim=-1).max() < 0.03


def test_the_root_with_a_camera_of_its_own_for_every_clip(people):
    lenses = studio((0, 2), per_clip=True)
    scene, pose = scene_of(people, lenses), (people - people[:, :, :1])[:, None]
    root = scene.estimate_root(pose, noise_level=0.1)
    for clip, number in enumerate((0, 2)):
        alone = scene_of(people[clip : clip + 1], studio((number,)))
        same(alone.estimate_root(pose[clip : clip + 1], noise_level=0.1)[0], root[clip])


def test_a_person_behind_a_camera_is_an_error(people):
    lenses = studio((0, 1))
    scene, place = scene_of(people, lenses), people[:, None, :, 0]
    scene.check_in_front(place)
    behind = place.clone()
    behind[1] = STUDIO[1].to_world(torch.tensor([0.0, 0.0, -2.0]))
    with pytest.raises(ValueError, match=r"camera 1 has the person of clip 1 behind it \(z = -2.00 m\).*X_camera = R X_world \+ t"):
        scene.check_in_front(behind)
    many = Scene(lenses, [k[:1].expand(9, -1, -1, -1) for k in scene.keypoints], [torch.ones(9, 6, 17)] * 2)
    with pytest.raises(ValueError, match="clip 8 behind"):
        many.check_in_front(torch.cat([place[:1].expand(8, -1, -1, -1), behind[1:]]))
    scene.confidence[1] = torch.zeros(2, 6, 17)
    scene.check_in_front(behind)  # that camera saw nobody
    behind[1, :, :4] = place[1, :, :4]
    scene.confidence[1] = torch.ones(2, 6, 17)
    scene.check_in_front(behind)  # in most frames the person is in front


# The focal length


def refocused(factor, world=False, frames=7, noise_level=0.0, confidence=None, times=1):
    """The scene after people in known poses, seen by a camera with `factor` times the assumed focal length, were looked at."""
    pose, root = posed(2, frames)
    keypoints = factor * LENS.project(pose + root[:, :, None])
    lens = Scene.behind_canonical_lens(STUDIO[0]) if world else LENS
    scene = Scene([lens], [keypoints], [torch.ones(2, frames, 17) if confidence is None else confidence])
    seen = scene.from_camera_axes(pose)[:, None].expand(-1, 3, -1, -1, -1)
    for _ in range(times):
        scene.refocus(seen, noise_level)
    return scene, keypoints


@pytest.mark.parametrize("factor", [1 / 1.3, 0.9, 1.0, 1.15, 1.3])
@pytest.mark.parametrize("world", [False, True])
def test_the_focal_length_of_known_poses(factor, world):
    scene, keypoints = refocused(factor, world)
    assert scene.focal_factor.tolist() == pytest.approx([factor] * 2, rel=0.05)
    same(scene.keypoints[0] * scene.focal_factor[:, None, None, None], keypoints)


def test_the_focal_length_is_found_anew_every_time():
    once, again = (refocused(1.3, times=times)[0] for times in (1, 4))
    same(again.focal_factor, once.focal_factor, atol=1e-3)


def test_poses_that_are_not_known_say_less_of_the_focal_length():
    factors = [refocused(1.3, noise_level=level)[0].focal_factor for level in (0.0, 0.1, 1.0)]
    assert (factors[0] > factors[1]).all() and (factors[1] > factors[2]).all() and (factors[2] > 0.95).all()


def test_the_focal_length_of_a_clip_does_not_depend_on_the_others():
    confidence = torch.ones(2, 7, 17)
    confidence[0] = 0
    scene = refocused(1.3, confidence=confidence)[0]
    assert scene.focal_factor[0] == 1, "nothing was observed"
    same(scene.focal_factor[1], refocused(1.3)[0].focal_factor[1])
    assert refocused(1.3, confidence=torch.zeros(2, 7, 17))[0].focal_factor.tolist() == [1, 1]


# The tilt


def test_tilted_cameras():
    level, down = tilted(torch.tensor([0.0, 0.3]))
    same(level, torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]]))
    same(down @ down.T, torch.eye(3))
    assert down.det() > 0 and down[2].tolist() == pytest.approx([0, math.cos(0.3), -math.sin(0.3)])


def retilted(people, pitch, confidence=None):
    """The scene after people in known poses, seen from the origin by a camera that looks down by `pitch`, were looked at."""
    camera = Camera(LENS.focal, LENS.centre, rotation=tilted(torch.tensor(pitch)), translation=torch.zeros(3), slope_limit=math.inf)
    keypoints = filmed(people + torch.tensor([0.0, 5.0, -1.0]), [camera])
    level = Scene.behind_canonical_lens(Camera([900.0, 900.0], [500.0, 500.0], rotation=tilted(torch.tensor(0.0))))
    scene = Scene([level], keypoints, [torch.ones(keypoints[0].shape[:-1]) if confidence is None else confidence])
    scene.retilt((people - people[:, :, :1])[:, None].expand(-1, 3, -1, -1, -1), 0.01)
    return scene


@pytest.mark.parametrize("pitch", [-0.2, 0.0, 0.3])
def test_the_tilt_of_known_poses(people, pitch):
    scene = retilted(people, pitch)
    forward = scene.cameras[0].rotation[:, 2]
    assert torch.asin(-forward[:, 2]).tolist() == pytest.approx([pitch] * 2, abs=0.03)
    assert scene.in_world and torch.equal(scene.cameras[0].translation, torch.zeros(2, 3))


def test_the_tilt_of_a_clip_does_not_depend_on_the_others(people):
    confidence = torch.ones(2, 6, 17)
    confidence[0] = 0
    rotation = retilted(people, 0.3, confidence).cameras[0].rotation
    same(rotation[0], tilted(torch.tensor(0.0)), atol=0)
    same(rotation[1], retilted(people, 0.3).cameras[0].rotation[1])
    same(rotation[1:], retilted(people[1:], 0.3).cameras[0].rotation)


# Bones


def test_bones_come_by_a_share_of_the_way_to_given_lengths():
    skeleton, poses = get_skeleton("h36m_17"), 0.3 * draw(2, 3, 4, 17, 3)
    bones, lengths = skeleton.bones, torch.linspace(0.1, 0.5, len(skeleton.bones))
    own = bone_lengths(poses, skeleton)
    for share in (0.0, 0.25, 1.0):
        sized = with_bones(poses, bones, lengths, share)
        same(bone_lengths(sized, skeleton), (1 - share) * own + share * lengths)
        same(sized[..., 0, :], poses[..., 0, :], atol=0)
        for parent, child in bones:
            before, after = (torch.nn.functional.normalize(p[..., child, :] - p[..., parent, :], dim=-1) for p in (poses, sized))
            same(after, before)
        if share == 0:
            same(sized, poses)
    same(with_bones(poses, bones[::-1], lengths.flip(0), 0.5), with_bones(poses, bones, lengths, 0.5))  # in any order


# Guidance


def test_guidance_is_checked():
    check_guidance(None)
    check_guidance(Scene([LENS], [draw(1, 1, 17, 2)], [torch.ones(1, 1, 17)]).likelihood(), GaussNewtonGuide())
    with pytest.raises(ValueError, match=r"guidance must be a .*Energy, got str"):
        check_guidance("smooth")
