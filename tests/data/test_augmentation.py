"""Bodies, cameras and detector mistakes: what they change and what they must leave alone."""

import numpy as np
import pytest
import torch

from probpose.data import BodyVariation, CameraVariation, DetectorNoise
from probpose.data.augmentation import FLIP, PARENTS, WindowRandom, mirror_motion, scale_bones
from probpose.skeletons import get_skeleton

WINDOWS, FRAMES = 400, 9
J = {name: i for i, name in enumerate(get_skeleton("h36m_17").joint_names)}


@pytest.fixture
def motions(walk):
    """Root `(windows, frames, 3)` and local `(windows, frames, 17, 3)` of upright walks in many directions."""
    positions = torch.from_numpy(np.stack([walk(FRAMES, seed=i) for i in range(WINDOWS)]))
    return positions[:, :, 0], positions - positions[:, :, :1]


def bones(local):
    return local[..., 1:, :] - local[..., list(PARENTS[1:]), :]


def known_camera(**arguments):
    return CameraVariation(unknown_probability=0.0, **arguments)


def test_the_joint_order_is_the_registry_s():
    skeleton = get_skeleton("h36m_17")
    assert tuple(skeleton.parents) == PARENTS and tuple(skeleton.flip_index) == FLIP


def test_each_window_has_its_own_stream():
    def draw(indices, seed=5):
        random = WindowRandom(seed, indices)
        return random.uniform(2), random.normal(3, scale=2.0), random.chance(0.5, 4)

    together, alone = draw([0, 7, 3]), draw([7])
    assert all(torch.equal(a[1:2], b) for a, b in zip(together, alone))
    assert not torch.equal(draw([7], seed=6)[0], alone[0])
    assert not torch.equal(together[0][0], together[0][1])


def test_mirror_is_an_involution_that_exchanges_the_sides(motions):
    root, local = motions
    mirrored_root, mirrored = mirror_motion(root, local)
    for a, b in zip(mirror_motion(mirrored_root, mirrored), motions):
        assert torch.equal(a, b)
    reflect = torch.tensor([-1.0, 1.0, 1.0])
    for left, right in (("left_wrist", "right_wrist"), ("left_ankle", "right_ankle")):
        assert torch.equal(mirrored[:, :, J[left]], local[:, :, J[right]] * reflect)
    # Still a person: seen from above, the left hip lies to the left of where the knees of this figure point.
    across = mirrored[:, 0, J["right_hip"]] - mirrored[:, 0, J["left_hip"]]
    towards = mirrored[:, 0, J["neck_nose"]] - mirrored[:, 0, J["thorax"]]
    assert (torch.linalg.cross(across, towards)[:, 2] > 0).all()


def test_scaled_bones_keep_their_directions(motions):
    _, local = motions
    factors = torch.rand(WINDOWS, 10) + 0.5
    before, after = bones(local), bones(scale_bones(local, factors))
    ratio = after.norm(dim=-1) / before.norm(dim=-1)
    torch.testing.assert_close(after, before * ratio[..., None])
    assert torch.allclose(ratio, ratio[:, :1], atol=1e-4)  # one body per window
    kinds = {"right_knee": 1, "left_knee": 1, "right_ankle": 2, "head_top": 6, "left_shoulder": 7, "right_shoulder": 7, "left_wrist": 9}
    for name, kind in kinds.items():
        torch.testing.assert_close(ratio[:, 0, J[name] - 1], factors[:, kind], atol=1e-4, rtol=1e-4)
    assert torch.equal(scale_bones(local, torch.ones(WINDOWS, 10))[:, :, 0], local[:, :, 0])


def test_body_variation(motions):
    root, local = motions
    same_root, same = BodyVariation(probability=0.0)(root, local, WindowRandom(0, range(WINDOWS)))
    torch.testing.assert_close(same, local)
    torch.testing.assert_close(same_root, root)
    _, other = BodyVariation(probability=0.5)(root, local, WindowRandom(0, range(WINDOWS)))
    change = (bones(other).norm(dim=-1) / bones(local).norm(dim=-1)).log()[:, 0]
    changed = change.abs().amax(-1) > 1e-3
    assert 0.4 < changed.float().mean() < 0.6
    assert 0.07 < change[changed].std() < 0.1  # size and bone kind: 0.06 each
    assert change.abs().max() <= 0.3 + 1e-4


def test_cameras_look_at_an_upright_person(motions):
    absolute, slopes, _ = known_camera()(*motions, WindowRandom(1, range(WINDOWS)))
    assert (absolute[..., 2] > 0.2).all()  # in front of the camera
    torch.testing.assert_close(slopes, absolute[..., :2] / absolute[..., 2:])
    inside = (slopes.abs() < np.tan(np.radians(24))).all(-1).float().mean()
    assert inside > 0.95  # a 48 degree image
    feet, head = slopes[:, :, [J["left_ankle"], J["right_ankle"]], 1], slopes[:, :, [J["head_top"]], 1]
    assert (feet.mean((1, 2)) > head.mean((1, 2))).all()  # y points down
    distance = absolute[:, :, 0].mean(1).norm(dim=-1)
    assert distance.min() > 2.4 and distance.max() < 14.1
    roll = torch.atan2(*(absolute[:, 0, J["thorax"]] - absolute[:, 0, 0])[:, :2].T)
    assert roll.abs().mean() > np.pi * 0.9  # the trunk points up in the image, too


def test_a_camera_turns_and_moves_the_motion_but_never_mirrors_it(motions):
    root, local = motions
    world = root[:, :, None] + local
    seen, _, _ = CameraVariation()(root, local, WindowRandom(2, range(WINDOWS)))

    def triangle_and_volume(joints):
        edges = joints[:, :, [J["left_hip"], J["right_wrist"], J["head_top"]]] - joints[:, :, :1]
        return torch.cdist(joints.flatten(1, 2).double(), joints[:, 0].double()), torch.linalg.det(edges)

    for before, after in zip(triangle_and_volume(world), triangle_and_volume(seen)):
        torch.testing.assert_close(before, after, atol=1e-4, rtol=0)


def test_unknown_intrinsics_change_what_is_told_and_not_what_is_seen(motions):
    known = known_camera()(*motions, WindowRandom(3, range(WINDOWS)))
    unknown = CameraVariation(unknown_probability=1.0)(*motions, WindowRandom(3, range(WINDOWS)))
    torch.testing.assert_close(known[0], unknown[0])
    middle = unknown[1].mean((1, 2))
    spread = (unknown[1] - middle[:, None, None]).norm(dim=-1).mean((1, 2))
    zoom = (spread / (known[1] - known[1].mean((1, 2))[:, None, None]).norm(dim=-1).mean((1, 2))).log()
    assert 0.15 < zoom.std() < 0.3 and zoom.abs().mean() > 0.1


def detect(slopes, **arguments):
    off = {f"{kind}_probability": 0.0 for kind in ("clean", "outlier", "swap", "missing", "truncated", "coco")}
    return DetectorNoise(**{**off, **arguments})(slopes, WindowRandom(4, range(WINDOWS)))


@pytest.fixture
def slopes(motions):
    return known_camera()(*motions, WindowRandom(1, range(WINDOWS)))[1]


def test_confidence_lies_in_0_to_1_and_everything_is_finite(slopes):
    noisy, confidence = DetectorNoise()(slopes, WindowRandom(4, range(WINDOWS)))
    assert noisy.shape == slopes.shape and confidence.shape == slopes.shape[:-1]
    assert torch.isfinite(noisy).all() and confidence.min() == 0 and confidence.max() == 1


def test_clean_windows_are_true(slopes):
    noisy, confidence = detect(slopes, clean_probability=1.0)
    assert torch.equal(noisy, slopes) and (confidence == 1).all()


def test_jitter_is_some_pixels(slopes):
    noisy, confidence = detect(slopes, jitter_extent=[0.0, 0.0], jitter_pixels=[2.0, 2.0])
    pixels = 1145 * (noisy - slopes)
    assert 1.7 < pixels.std() < 2.8  # 2 px, times a difficulty whose mean is a little above 1
    assert (confidence > 0).all() and confidence.mean() > 0.75
    assert torch.corrcoef(torch.stack([confidence.flatten(), pixels.norm(dim=-1).flatten()]))[0, 1] < -0.3


def test_outliers_are_far_off_and_doubtful(slopes):
    noisy, confidence = detect(slopes, outlier_probability=0.05)
    before, trusted = detect(slopes)
    outlier = (noisy != before).any(-1)
    assert 0.04 < outlier.float().mean() < 0.06
    assert confidence[outlier].mean() < 0.4 < 0.8 < trusted.mean()
    assert (noisy - slopes).norm(dim=-1)[outlier].mean() > 5 * (before - slopes).norm(dim=-1).mean()


def test_swapped_limbs_are_the_other_side_s(slopes):
    noisy, _ = detect(slopes, swap_probability=1.0, jitter_pixels=(0.0, 0.0), jitter_extent=(0.0, 0.0))
    swapped = (noisy != slopes).any(-1)
    assert torch.equal(noisy[swapped], slopes[:, :, list(FLIP)][swapped])
    assert swapped.any(-1).any(-1).float().mean() > 0.95 and swapped.any(-1).sum(1).max() <= 6


def test_zero_confidence_is_where_joints_are_hidden(slopes):
    assert (detect(slopes)[1] > 0).all()
    legs = [J[f"{side}_{joint}"] for side in ("left", "right") for joint in ("knee", "ankle")]
    for arguments, hidden in (({"truncated_probability": 1.0}, legs), ({"coco_probability": 1.0}, [J["neck_nose"], J["head_top"]])):
        confidence = detect(slopes, **arguments)[1]
        seen = [j for j in range(17) if j not in hidden]
        assert (confidence[:, :, hidden] == 0).all() and (confidence[:, :, seen] > 0).all()
    missing = detect(slopes, missing_probability=1.0)[1] == 0
    assert 0.1 < missing.float().mean() < 0.4
    starts_and_ends = missing.int().diff(dim=1).ne(0).sum(1)
    assert starts_and_ends.max() <= 4  # at most one spell of the joint and one of the whole frame


def test_coco_spine_is_half_way(slopes):
    noisy, _ = detect(slopes, coco_probability=1.0)
    torch.testing.assert_close(noisy[:, :, J["spine"]], (noisy[:, :, 0] + noisy[:, :, J["thorax"]]) / 2)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (BodyVariation, {"probability": 1.5}),
        (BodyVariation, {"size": "large"}),
        (BodyVariation, {"bones": float("nan")}),
        (CameraVariation, {"distance": (5.0, 2.0)}),
        (CameraVariation, {"distance": (0.0, 2.0)}),
        (CameraVariation, {"height": 1.5}),
        (CameraVariation, {"roll": -1.0}),
        (DetectorNoise, {"swap_probability": True}),
        (DetectorNoise, {"jitter_pixels": (1.0, 2.0, 3.0)}),
    ],
)
def test_bad_arguments_are_named(kind, arguments):
    [(name, value)] = arguments.items()
    with pytest.raises(ValueError, match=rf"{kind.__name__}\.{name} ") as caught:
        kind(**arguments)
    assert repr(value) in str(caught.value)
