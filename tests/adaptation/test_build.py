"""The build of a scene's people: what changing it keeps, and that it is found again in 2D keypoints."""

import math
from functools import cache
from pathlib import Path

import pytest
import torch

from probpose.adaptation import Build, anatomy, body_size, bone_vectors, change_build, fit_build
from probpose.adaptation.build import torso_axes
from probpose.data import MocapClips
from probpose.geometry import Camera, rotation_looking_along
from probpose.skeletons import bone_lengths, convert, flip, get_skeleton

ARCHIVE = Path(__file__).resolve().parents[2] / "examples" / "data" / "tiny_mocap.npz"
skeletons = pytest.mark.parametrize("skeleton", ["h36m_17", "mpi_inf_3dhp_17", "humaneva_15"])
two_skeletons = pytest.mark.parametrize("skeleton", ["h36m_17", "mpi_inf_3dhp_17"])
CLIPS, FRAMES = 24, 6


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def people(skeleton="h36m_17", clips=CLIPS):
    """Real motions seen from all sides and a little above: root-relative poses `(clips, frames, joints, 3)`, metres, camera axes."""
    local = MocapClips(ARCHIVE, split=None).local
    first = torch.randint(len(local) - 5 * FRAMES, (clips,), generator=torch.Generator().manual_seed(0))
    pose = local[first[:, None] + 5 * torch.arange(FRAMES)].double()
    angle = 2 * math.pi * torch.arange(clips).double() / clips
    look = rotation_looking_along(torch.stack([angle.cos(), angle.sin(), torch.full_like(angle, -0.2)], dim=-1))
    pose = convert(torch.einsum("cij,cfkj->cfki", look, pose), "h36m_17", skeleton)
    root = get_skeleton(skeleton).root
    return pose - pose[..., root : root + 1, :]


def some_build(skeleton="h36m_17", torso=0.03, limbs=0.1, size=0.05, seed=0):
    """Another build; what lies in the middle of the body has no displacement to the left."""
    empty = Build.unchanged(skeleton)
    build = Build(
        torso * draw(*empty.torso.shape, seed=seed),
        limbs * draw(*empty.limbs.shape, seed=seed + 1),
        torch.tensor(size, dtype=torch.float64),
    )
    for group in middle_groups(skeleton):
        build.torso[group, 0] = 0
    return build


def torso_groups(skeleton):
    """Number of the group by bone of the torso, in the order of `anatomy(skeleton).length_groups`."""
    body = anatomy(skeleton)
    groups = sorted({body.length_groups[bone] for bone in body.parts[4]})
    return {bone: groups.index(body.length_groups[bone]) for bone in body.parts[4]}


def middle_groups(skeleton):
    bones, sided = get_skeleton(skeleton).bones, {*get_skeleton(skeleton).left, *get_skeleton(skeleton).right}
    return {group for bone, group in torso_groups(skeleton).items() if bones[bone][1] not in sided}


def close(actual, expected, atol=1e-9):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


# Changing a build


@skeletons
def test_unchanged(skeleton):
    pose = people(skeleton) + draw(CLIPS, FRAMES, 1, 3)
    close(change_build(pose, Build.unchanged(skeleton), skeleton), pose)
    close(change_build(pose, Build.unchanged(skeleton, CLIPS, 1), skeleton), pose)


@skeletons
def test_the_root_stays(skeleton):
    pose, root = people(skeleton) + draw(CLIPS, FRAMES, 1, 3), get_skeleton(skeleton).root
    changed = change_build(pose, some_build(skeleton), skeleton)
    assert torch.equal(changed[..., root, :], pose[..., root, :])
    assert (changed - pose).norm(dim=-1).mean() > 0.02


@skeletons
def test_mirrored_people_are_changed_alike(skeleton):
    pose, build = people(skeleton), some_build(skeleton)
    close(change_build(flip(pose, skeleton), build, skeleton), flip(change_build(pose, build, skeleton), skeleton))


@skeletons
def test_turned_people_are_changed_alike(skeleton):
    pose, build = people(skeleton), some_build(skeleton)
    turn, _ = torch.linalg.qr(draw(3, 3, seed=5))
    turn = turn * turn.det()
    close(change_build(pose @ turn.mT, build, skeleton), change_build(pose, build, skeleton) @ turn.mT)


@skeletons
def test_factors_are_exact(skeleton):
    pose, build = people(skeleton), some_build(skeleton)
    changed = change_build(pose, build, skeleton)
    before, after = bone_vectors(pose, skeleton), bone_vectors(changed, skeleton)
    torso, body = torso_groups(skeleton), anatomy(skeleton)
    limbs = [bone for bone in range(len(body.length_groups)) if bone not in torso]
    groups = sorted({body.length_groups[bone] for bone in limbs})
    for bone in limbs:
        factor = build.limbs[groups.index(body.length_groups[bone])].exp() * build.size.exp()
        close(after[..., bone, :], factor * before[..., bone, :])
    size = Build.unchanged(skeleton)._replace(size=build.size)
    close(change_build(pose, size, skeleton), build.size.exp() * pose)


@skeletons
def test_displacements_are_in_the_torsos_axes_and_alike_on_both_sides(skeleton):
    pose, build = people(skeleton), some_build(skeleton, limbs=0, size=0)
    axes, bones = torso_axes(pose, skeleton), get_skeleton(skeleton).bones
    shift = -(bone_vectors(change_build(pose, build, skeleton), skeleton) - bone_vectors(pose, skeleton))  # a bone points to its parent
    left, right = set(get_skeleton(skeleton).left), set(get_skeleton(skeleton).right)
    for bone, group in torso_groups(skeleton).items():
        child = bones[bone][1]
        side = 1.0 if child in left else -1.0 if child in right else 0.0
        expected = build.torso[group] * torch.tensor([side, 1.0, 1.0])
        close((axes.mT @ shift[..., bone, :, None])[..., 0], expected.expand(CLIPS, FRAMES, 3))


@skeletons
def test_the_torsos_axes(skeleton):
    pose = people(skeleton)
    axes = torso_axes(pose, skeleton)
    close(axes.mT @ axes, torch.eye(3).double().expand_as(axes))
    close(torch.linalg.det(axes), torch.ones(CLIPS, FRAMES).double())
    names = get_skeleton(skeleton).joint_names
    at = {name: pose[..., index, :] for index, name in enumerate(names)}
    up, left = -axes[..., 1, 1], ((at["left_hip"] - at["right_hip"]) * axes[..., 0]).sum(-1)
    assert up.median() > 0.8 and (left > 0).float().mean() > 0.9
    # Knees bend forwards.
    knee = 2 * at["left_knee"] - at["left_hip"] - at["left_ankle"]
    assert ((knee * axes[..., 2]).sum(-1) > 0).float().mean() > 0.8


def test_one_build_for_each_clip():
    pose, one, other = people(clips=2), some_build(), some_build(seed=7)
    both = Build(*(torch.stack(pair)[:, None] for pair in zip(one, other)))
    changed = change_build(pose, both, "h36m_17")
    for row, build in enumerate((one, other)):
        close(changed[row], change_build(pose[row], build, "h36m_17"))


def test_clips_remain_motions_of_one_body():
    pose = people()
    lengths = bone_lengths(pose, "h36m_17")
    rigid = change_build(pose, some_build(torso=0), "h36m_17")
    ratio = bone_lengths(rigid, "h36m_17") / lengths
    close(ratio, ratio[:1, :1].expand_as(ratio))


def test_plus():
    pose, small = people(), [some_build(torso=1e-3, limbs=1e-3, size=1e-3, seed=seed) for seed in (0, 7)]
    total = small[0].plus(small[1])
    for value, a, b in zip(total, *small):
        close(value, a + b)
    one_by_one = change_build(change_build(pose, small[0], "h36m_17"), small[1], "h36m_17")
    close(change_build(pose, total, "h36m_17"), one_by_one, atol=2e-5)


def test_varied():
    build = some_build()
    builds = build.varied(20_000, torso=0.02, limbs=0.06, generator=torch.Generator().manual_seed(0))
    assert builds.torso.shape == (20_000, *build.torso.shape) and builds.limbs.shape == (20_000, *build.limbs.shape)
    assert torch.equal(builds.size, build.size.expand(20_000))
    close(builds.torso.mean(0), build.torso, atol=1e-3)
    close(builds.limbs.mean(0), build.limbs, atol=3e-3)
    close(builds.torso.std(0), torch.full_like(build.torso, 0.02), atol=1e-3)
    close(builds.limbs.std(0), torch.full_like(build.limbs, 0.06), atol=2e-3)
    again = build.varied(20_000, 0.02, 0.06, torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip(builds, again))
    same = build.varied(3, 0.0, 0.0)
    assert torch.equal(same.torso, build.torso.expand_as(same.torso)) and torch.equal(same.limbs, build.limbs.expand_as(same.limbs))


# Finding it again


class Scene:
    """People of a known build before cameras at several distances, and the same motions in the build that is to be changed."""

    def __init__(self, skeleton="h36m_17", noise=1.5):
        self.skeleton, self.pose = skeleton, people(skeleton)
        self.true = change_build(self.pose, some_build(skeleton), skeleton)
        generator = torch.Generator().manual_seed(1)
        where = torch.rand(CLIPS, 3, generator=generator).double() * torch.tensor([1.0, 0.5, 5.0]) + torch.tensor([-0.5, -0.25, 3.0])
        focal = 900 + 600 * torch.rand(CLIPS, 1, generator=generator).double().expand(CLIPS, 2)
        self.camera = Camera(focal, torch.tensor([500.0, 480.0]).double().expand(CLIPS, 2))
        self.points = self.camera.project(self.true + where[:, None, None])
        self.points += noise * (focal[:, None, None] / 1100) * draw(*self.points.shape, seed=2)
        self.confidence = torch.ones(self.points.shape[:-1]).double()
        self.size = body_size(self.true, skeleton).mean().item()

    def fit(self, **changes):
        inputs = {"keypoints_2d": self.points, "camera": self.camera, "confidence": self.confidence, "size": self.size} | changes
        return fit_build(self.pose, skeleton=self.skeleton, **inputs)

    def errors(self, build):
        """Mean distance of every joint from the truth in mm."""
        return 1000 * (change_build(self.pose, build, self.skeleton) - self.true).norm(dim=-1).mean((0, 1))


@cache
def fitted(skeleton="h36m_17"):
    scene = Scene(skeleton)
    return scene, scene.fit()


@skeletons
def test_a_known_build_is_found(skeleton):
    scene, build = fitted(skeleton)
    larger = Build.unchanged(skeleton)._replace(size=(scene.size / body_size(scene.pose, skeleton).mean()).log())
    assert scene.errors(larger).max() > 60  # what a change of size alone leaves
    assert scene.errors(build).max() < 10
    lengths, expected = (
        bone_lengths(change_build(scene.pose, one, skeleton), skeleton).mean((0, 1)) for one in (build, some_build(skeleton))
    )
    assert (lengths / expected - 1).abs().max() < 0.06


@two_skeletons
def test_outliers(skeleton):
    scene = Scene(skeleton)
    wild = torch.rand(scene.confidence.shape, generator=torch.Generator().manual_seed(3)) < 0.05
    build = scene.fit(keypoints_2d=torch.where(wild[..., None], scene.points + 100 * draw(*scene.points.shape, seed=4), scene.points))
    assert scene.errors(build).max() < 12


@pytest.mark.parametrize("size", [None, 1.2])
def test_the_size_is_what_it_shall_be(size):
    scene = Scene()
    build = scene.fit(size=size)
    expected = body_size(scene.pose, "h36m_17").mean() if size is None else torch.tensor(size, dtype=torch.float64)
    close(body_size(change_build(scene.pose, build, "h36m_17"), "h36m_17").mean(), expected)
    close(build.torso, fitted()[1].torso, atol=0.02)
    scaled = build._replace(size=build.size + math.log(scene.size / expected))
    assert scene.errors(scaled).max() < 15


def test_what_is_not_observed_does_not_count():
    scene = Scene()
    hidden = torch.rand(scene.confidence.shape, generator=torch.Generator().manual_seed(3)) < 0.3
    hidden[..., 13] = True  # a wrist that is never seen, unlike its partner
    hidden[0, 1] = True  # a frame without anybody
    confidence = torch.where(hidden, 0.0, scene.confidence)
    build = scene.fit(confidence=confidence)
    assert scene.errors(build).max() < 12
    for value in (torch.nan, 1e6):
        points = torch.where(hidden[..., None], value, scene.points)
        assert all(torch.equal(a, b) for a, b in zip(scene.fit(confidence=confidence, keypoints_2d=points), build))
    missing = torch.where(hidden[..., None], torch.nan, scene.points)
    close(torch.cat([v.flatten() for v in scene.fit(keypoints_2d=missing)]), torch.cat([v.flatten() for v in build]))


def test_the_unit_of_the_image_does_not_matter():
    scene, build = fitted()
    unit = 2 / 1000
    screen = Camera(unit * scene.camera.focal, unit * scene.camera.centre - 1)
    for value, expected in zip(scene.fit(camera=screen, keypoints_2d=unit * scene.points - 1), build):
        close(value, expected, atol=1e-4)
    # The same scene through other lenses.
    camera = Camera(1.7 * scene.camera.focal, scene.camera.centre)
    points = 1.7 * (scene.points - scene.camera.centre[:, None, None]) + scene.camera.centre[:, None, None]
    for value, expected in zip(scene.fit(camera=camera, keypoints_2d=points), build):
        close(value, expected, atol=1e-4)


def test_one_camera_for_all():
    scene = Scene()
    lens = Camera(torch.tensor([1000.0, 1000.0]).double(), torch.zeros(2).double())
    points = (scene.points - scene.camera.centre[:, None, None]) / scene.camera.focal[:, None, None] * 1000
    assert scene.errors(scene.fit(camera=lens, keypoints_2d=points)).max() < 10


def test_it_leaves_no_gradients_and_no_random_state():
    (scene, build), state = fitted(), torch.random.get_rng_state()
    with torch.no_grad():
        again = scene.fit()
    assert all(torch.equal(a, b) and not a.requires_grad and not b.requires_grad for a, b in zip(build, again))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_errors():
    scene = Scene()
    with pytest.raises(ValueError, match=r"must be \(clips, frames, joints, 3 / 2 / none\), got .*\(24, 6, 16, 2\)"):
        scene.fit(keypoints_2d=scene.points[:, :, :16])
    with pytest.raises(ValueError, match=r"\(6, 17, 3\)"):
        fit_build(scene.pose[0], scene.points[0], scene.camera, scene.confidence[0])
    with pytest.raises(ValueError, match=r"confidence above 0\.\d+, but there are none"):
        scene.fit(confidence=torch.full_like(scene.confidence, 0.1))
    with pytest.raises(ValueError, match="none"):
        scene.fit(keypoints_2d=torch.full_like(scene.points, torch.nan))
    with pytest.raises(ValueError, match="'coco_17' has no anatomy"):
        change_build(scene.pose, Build.unchanged("h36m_17"), "coco_17")
    with pytest.raises(ValueError, match="17 joints of 'h36m_17'"):
        change_build(scene.pose[:, :, :16], Build.unchanged("h36m_17"), "h36m_17")
