"""The mixture files of DiffPose's release: pickled dicts of arrays, read without unpickling freely."""

import os

import numpy as np
import pytest
import torch

from probpose.hub import load_original_mixtures
from probpose.mixtures import PoseMixture

CAMERAS = 4


def released(frames, components=3, seed=0):
    """Mixtures of one camera as the release stores them, of weights (1, 0, 0): pixels and normalised standard deviations."""
    random = np.random.default_rng(seed)
    array = np.zeros((frames, 17, components, 5))
    array[:, :, 0, 0] = 1
    array[..., 1:3] = random.uniform(200, 800, array[..., 1:3].shape)
    array[..., 3:] = random.uniform(0.002, 0.02, array[..., 3:].shape)
    return array


@pytest.fixture
def content():
    return {
        "S1": {"Walking": [released(4, seed=i) for i in range(CAMERAS)], "Walking 1": [released(3) for _ in range(CAMERAS)]},
        "S9": {"Photo 1": [released(2, components=1, seed=9) for _ in range(CAMERAS)]},
    }


@pytest.fixture
def write(tmp_path):
    def save(positions, key="positions_2d"):
        path = tmp_path / "data_2d_h36m_gt_gmm.npz"
        np.savez_compressed(path, **{key: positions})
        return path

    return save


def test_every_camera_of_every_action(content, write):
    mixtures = load_original_mixtures(write(content))
    names = [("S1", "Walking"), ("S1", "Walking 1"), ("S9", "Photo 1")]
    assert list(mixtures) == [(*name, camera) for name in names for camera in range(CAMERAS)]
    mixture = mixtures["S1", "Walking", 2]
    assert isinstance(mixture, PoseMixture) and mixture.skeleton == "h36m_17"
    assert mixture.means.shape == (4, 17, 3, 2) and mixture.means.dtype == torch.float32
    assert mixtures["S9", "Photo 1", 0].num_components == 1

    stored = torch.tensor(content["S1"]["Walking"][2]).float()
    torch.testing.assert_close(mixture.weights, stored[..., 0])
    torch.testing.assert_close(mixture.means, stored[..., 1:3])
    torch.testing.assert_close(mixture.scales, 500 * stored[..., 3:])  # half of 1000 pixels


def test_in_screen_units_the_standard_deviations_are_the_stored_ones_again(content, write):
    mixture = load_original_mixtures(write(content))["S1", "Walking", 0]
    normalised = mixture.transformed(lambda points: points / 500 - torch.tensor([1.0, 1.002]))
    as_released = PoseMixture.from_array(content["S1"]["Walking"][0], image_size=(1000, 1002))
    for name in ("means", "scales"):
        torch.testing.assert_close(getattr(normalised, name), getattr(as_released, name).float(), atol=1e-5, rtol=1e-4)


def test_other_image_sizes(content, write):
    path = write(content)
    usual = load_original_mixtures(path)["S1", "Walking", 3]
    wide = load_original_mixtures(path, [(1000, 1000)] * 3 + [(1920, 1080)])["S1", "Walking", 3]
    torch.testing.assert_close(wide.scales, 1.92 * usual.scales)
    assert torch.equal(wide.means, usual.means)
    with pytest.raises(ValueError, match=r"S1 'Walking': must be a list with one array for each of 2 cameras, got 4"):
        load_original_mixtures(path, [(1000, 1000)] * 2)
    with pytest.raises(ValueError, match="image_size"):
        load_original_mixtures(path, [(0, 1000)] * 4)


def test_a_component_without_weight_needs_no_extent(content, write):
    content["S1"]["Walking"][1][:, :, 1:, 3:] = 0
    mixture = load_original_mixtures(write(content))["S1", "Walking", 1]
    torch.testing.assert_close(mixture.scales[:, :, 2], mixture.scales[:, :, 0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a[..., 0].__imul__(0.9), r"S1 'Walking', camera 2: weights must sum to one .*frame 0, joint 0"),
        (lambda a: a[1, 5, 0].__setitem__(3, 0), r"S1 'Walking', camera 2: .*no extent \(frame 1, joint 5, component 0, axis 0"),
        (lambda a: a[3].__setitem__((6, 0, 4), -1), r"S1 'Walking', camera 2: standard deviations must not be negative"),
        (lambda a: a[0].__setitem__((0, 0, 1), np.nan), r"S1 'Walking', camera 2: array must be finite"),
    ],
)
def test_arrays_that_hold_no_mixtures(content, write, change, message):
    change(content["S1"]["Walking"][2])
    with pytest.raises(ValueError, match=message) as caught:
        load_original_mixtures(write(content))
    assert "data_2d_h36m_gt_gmm.npz" in str(caught.value)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones((4, 17, 2)), r"must have shape \(frames, 17, components, 5\), got \(4, 17, 2\)"),  # VideoPose3D's plain 2D files
        (np.ones((4, 16, 1, 5)), r"must have shape .*, got \(4, 16, 1, 5\)"),
        ({"weights": 1}, "must be numbers, got dict"),
        ([[1.0], [1.0, 2.0]], "must be numbers, got list"),
    ],
)
def test_another_layout_of_arrays(content, write, array, message):
    content["S9"]["Photo 1"][1] = array
    with pytest.raises(ValueError, match=rf"S9 'Photo 1', camera 1: {message}"):
        load_original_mixtures(write(content))


@pytest.mark.parametrize("positions", [{}, {"S1": [1, 2]}, np.zeros((3, 17, 1, 5))])
def test_another_layout_of_the_file(write, positions):
    with pytest.raises(ValueError, match=r"gmm\.npz, positions_2d: must be a dict of subjects"):
        load_original_mixtures(write(positions))


def test_other_files(content, write, tmp_path):
    content["S1"]["Walking"] = 3
    with pytest.raises(ValueError, match=r"S1 'Walking': must be a list .* of 4 cameras, got int"):
        load_original_mixtures(write(content))
    with pytest.raises(ValueError, match="no entry 'positions_2d'; its entries are"):
        load_original_mixtures(write(content, key="positions_3d"))
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_original_mixtures(tmp_path / "absent.npz")
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(ValueError, match=r"text\.npz"):
        load_original_mixtures(tmp_path / "text.npz")


class Intruder:
    """An object whose unpickling would make a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_nothing_in_the_file_is_run(content, write, tmp_path):
    content["S1"]["Walking"][0] = Intruder(str(tmp_path / "owned"))
    with pytest.raises(ValueError, match="would run code"):
        load_original_mixtures(write(content))
    assert not (tmp_path / "owned").exists()
