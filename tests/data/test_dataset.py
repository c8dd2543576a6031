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
