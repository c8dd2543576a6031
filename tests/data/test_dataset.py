"""Rendered windows: reproducible one by one, geometrically right, drawn from the right clips."""

import pytest
import torch
from torch.utils.data import DataLoader

from probpose.data import BodyVariation, CameraVariation, DetectorNoise, MocapClips, TrainingWindows

KNOWN = CameraVariation(unknown_probability=0.0)
SIZES = {"a/small": 0.7, "a/short": 0.7, "b/tall": 1.1}


@pytest.fixture
def clips(make_archive):
    return MocapClips(make_archive({"a/small": 60, "a/short": 10, "b/tall": 30}, sizes=SIZES))


def thigh(windows):
    """Which figure a window shows: mean length of the right thigh, 0.42 m times the figure's size."""
    return (windows["pose"][:, :, 2] - windows["pose"][:, :, 1]).norm(dim=-1).mean(1)


def test_window_i_is_a_pure_function_of_seed_and_i(clips):
    arguments = {"num_frames": 12, "seed": 3, "body": BodyVariation(), "detector": DetectorNoise()}
    stream = TrainingWindows(clips, **arguments)
    together = stream.render([5, 0, 11, 7])
    for rendered in (stream.render([11]), TrainingWindows(clips, num_windows=20, **arguments).render([0, 11])):
        for key, value in rendered.items():
            assert torch.equal(value[-1], together[key][2]), key
    item = stream[11]
    assert {key: tuple(value.shape) for key, value in item.items()} == {
        "keypoints_2d": (12, 17, 2), "keypoints_true": (12, 17, 2), "confidence": (12, 17), "pose": (12, 17, 3), "root": (12, 3),
        "up": (12, 3),
    }  # fmt: skip
    assert all(torch.equal(value, together[key][2]) for key, value in item.items())
    assert not torch.equal(stream.render([5])["pose"], stream.render([6])["pose"])
    other = TrainingWindows(clips, **{**arguments, "seed": 4})
    assert not torch.equal(other.render([5])["pose"], stream.render([5])["pose"])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_s_batches_are_the_stream(clips, workers):
    stream = TrainingWindows(clips, num_frames=6, num_windows=10, detector=DetectorNoise())
    batches = list(DataLoader(stream, batch_size=4, num_workers=workers))
    assert [len(batch["pose"]) for batch in batches] == [4, 4, 2]
    for key, value in stream.render(range(10)).items():
        assert torch.equal(torch.cat([batch[key] for batch in batches]), value)


@pytest.mark.parametrize("canonical", [(2.29, 2.29, 0.0, 0.0), (1.5, 1.6, 0.1, -0.2)])
def test_true_keypoints_are_the_projection_of_pose_and_root(clips, canonical):
    stream = TrainingWindows(clips, num_frames=8, canonical_camera=canonical, body=BodyVariation(1.0), camera=KNOWN)
    windows = stream.render(range(64))
    joints = windows["pose"] + windows["root"][:, :, None]
    focal, centre = torch.tensor(canonical[:2]), torch.tensor(canonical[2:])
    torch.testing.assert_close(windows["keypoints_2d"], joints[..., :2] / joints[..., 2:] * focal + centre, atol=1e-4, rtol=1e-4)
    assert (windows["pose"][:, :, 0] == 0).all() and (windows["confidence"] == 1).all() and (joints[..., 2] > 0).all()


def test_up_is_where_people_stand_and_what_they_walk_across(clips):
    windows = TrainingWindows(clips, num_frames=8, camera=KNOWN).render(range(64))
    up = windows["up"]
    torch.testing.assert_close(up.norm(dim=-1), torch.ones(64, 8))
    height = torch.einsum("bfji,bfi->bfj", windows["pose"], up)
    assert torch.equal(up, up[:, :1].expand_as(up)) and (up[..., 1] < -0.5).all()
    # The head top 0.77 m above the root of a figure whose size is 1: 0.7 or 1.1 here.
    assert ((height[..., 10] - 0.7 * 0.77).abs() < 1e-3).logical_or((height[..., 10] - 1.1 * 0.77).abs() < 1e-3).all()
    torch.testing.assert_close((windows["root"].diff(dim=1) * up[:, 1:]).sum(-1), torch.zeros(64, 7), atol=1e-4, rtol=0)


def test_half_of_the_windows_are_mirrored_and_none_is_inside_out(clips):
    clips.local[:, 16, 2] -= 0.2  # a long right forearm tells a mirrored figure
    pose = TrainingWindows(clips, num_frames=2, camera=KNOWN).render(range(400))["pose"][:, 0]
    left, right = ((pose[:, wrist] - pose[:, wrist - 1]).norm(dim=-1) for wrist in (13, 16))
    assert 0.42 < (left > right).float().mean() < 0.58
    across, upward, ahead = pose[:, 1] - pose[:, 4], pose[:, 8], pose[:, 9] - pose[:, 8]
    handedness = torch.linalg.det(torch.stack([across, upward, ahead], dim=-1)).sign()
    assert (handedness == handedness[0]).all()


def test_short_clips_end_by_standing_still(make_archive):
    stream = TrainingWindows(MocapClips(make_archive({"a": 5})), num_frames=9, camera=KNOWN)
    windows = stream.render(range(20))
    assert (windows["pose"][:, :4].diff(dim=1).abs().amax((2, 3)) > 1e-4).all()  # the clip from its first frame on
    for key, value in windows.items():
        torch.testing.assert_close(value[:, 5:], value[:, 4:5].expand_as(value[:, 5:]), msg=key)


def test_windows_stay_inside_their_clip(make_archive):
    clips = MocapClips(make_archive({"a": 11, "b": 40, "c": 23}))
    steps = TrainingWindows(clips, num_frames=11, camera=KNOWN).render(range(300))["root"].diff(dim=1).norm(dim=-1)
    torch.testing.assert_close(steps, torch.full_like(steps, 1 / 30), atol=2e-3, rtol=0)  # 1 m/s: no jump to another clip


def test_clips_count_by_their_frames(clips):
    tall = (thigh(TrainingWindows(clips, num_frames=4).render(range(2000))) > 0.4).float().mean()
    assert abs(tall - 0.3) < 0.04


def test_source_weights(clips):
    for weights, expected in (({"a": 1.0, "b": 3.0}, 0.75), ({"a": 0.5, "b": 0.5}, 0.5), ({"b": 2.0}, 1.0)):
        tall = (thigh(TrainingWindows(clips, num_frames=4, source_weights=weights).render(range(2000))) > 0.4).float().mean()
        assert abs(tall - expected) < 0.04, weights
    with pytest.raises(ValueError, match=r"source_weights names \['c'\].*\['a', 'b'\]"):
        TrainingWindows(clips, source_weights={"a": 1.0, "c": 1.0})


def test_test_clips_never_appear(make_archive):
    sizes = {"a/1": 1.0, "a/2": 1.0, "a/held": 2.0}
    path = make_archive({"a/1": 20, "a/2": 15, "a/held": 400}, sizes=sizes, split={"a/1": "train", "a/2": "train", "a/held": "test"})
    assert thigh(TrainingWindows(MocapClips(path), num_frames=4).render(range(500))).max() < 0.5


def test_num_frames(clips):
    with pytest.raises(ValueError, match="num_frames must be at least 1, got 0"):
        TrainingWindows(clips, num_frames=0)
    assert TrainingWindows(clips, num_frames=1, detector=DetectorNoise())[0]["pose"].shape == (1, 17, 3)


# World axes


@pytest.fixture
def in_the_world(clips):
    """Windows at which nobody looks."""
    return TrainingWindows(clips, num_frames=6, axes="world").render(range(400))


def test_windows_in_world_axes_show_motions_alone(clips, in_the_world):
    assert {key: tuple(value.shape) for key, value in in_the_world.items()} == {"pose": (400, 6, 17, 3), "root": (400, 6, 3)}
    assert (in_the_world["pose"][:, :, 0] == 0).all()
    again = TrainingWindows(clips, num_frames=6, axes="world").render([7])
    assert all(torch.equal(value[0], in_the_world[key][7]) for key, value in again.items())


def test_windows_in_world_axes_are_turned_about_the_vertical(clips, in_the_world):
    pose, root = in_the_world["pose"], in_the_world["root"]
    for size in (0.7, 1.1):  # of the figure: its head is 0.77 m above the root, which is 0.95 m above the ground
        chosen = (thigh(in_the_world) / size - 0.42).abs() < 0.02
        assert chosen.any()
        torch.testing.assert_close(pose[chosen][..., 10, 2], torch.full_like(pose[chosen][..., 10, 2], 0.77 * size), atol=1e-3, rtol=0)
        torch.testing.assert_close(root[chosen][..., 2], torch.full_like(root[chosen][..., 2], 0.95 * size), atol=1e-3, rtol=0)
        speed = root[chosen].diff(dim=1).norm(dim=-1)
        torch.testing.assert_close(speed, torch.full_like(speed, size / 30), atol=1e-3, rtol=0)
    # All joints and the root turn together: whoever walks goes where the face points.
    forward = torch.nn.functional.normalize(root[:, -1] - root[:, 0], dim=-1)
    across = torch.nn.functional.normalize((pose[..., 1, :] - pose[..., 4, :]).mean(1), dim=-1)
    assert ((forward * across).sum(-1).abs() < 0.15).all()
    assert (torch.linalg.cross(across, forward)[:, 2] > 0.9).all()  # the person's right at the right: none is inside out
    yaw = torch.atan2(forward[:, 1], forward[:, 0])
    counts = torch.histc(yaw, 4, -torch.pi, torch.pi)
    assert counts.sum() == 400 and (counts > 60).all() and (counts < 140).all()


def test_half_of_the_windows_in_world_axes_are_mirrored(clips):
    clips.local[:, 16, 2] -= 0.2  # a long right forearm tells a mirrored figure
    pose = TrainingWindows(clips, num_frames=2, axes="world").render(range(400))["pose"][:, 0]
    left, right = ((pose[:, wrist] - pose[:, wrist - 1]).norm(dim=-1) for wrist in (13, 16))
    assert 0.42 < (left > right).float().mean() < 0.58


def test_distances_are_kept_in_world_axes_and_bodies_varied(clips):
    plain, varied = (TrainingWindows(clips, num_frames=3, axes="world", body=body).render(range(60)) for body in (None, BodyVariation(1.0)))
    sizes = thigh(plain)
    assert ((sizes / 0.7 - 0.43).abs() < 0.02).logical_or((sizes / 1.1 - 0.43).abs() < 0.02).all()
    assert (thigh(varied) / sizes - 1).std() > 0.03


def test_axes(clips):
    with pytest.raises(ValueError, match="axes must be 'camera' or 'world', got 'image'"):
        TrainingWindows(clips, axes="image")
