"""MPI-INF-3DHP: small files in the layouts as published, and what is wrong with others."""

import pickle

import numpy as np
import pytest
import torch

from probpose.data.datasets.mpi_inf_3dhp import mpi_inf_3dhp_camera, read_mpi_inf_3dhp
from probpose.skeletons import convert

# Focal lengths and principal points in pixels of the test set's two cameras.
LENS = {
    "TS1": ((1500.172288, 1500.172288 * 1.00044), (1017.387336640, 1043.031982080)),
    "TS5": ((1683.98345952, 1683.98345952 * 0.993236423), (939.85754016, 560.140743168)),
}
SIZE = {"TS1": (2048, 2048), "TS5": (1920, 1080)}


def project(points, focal, centre):
    return points[..., :2] / points[..., 2:] * np.array(focal) + np.array(centre)


@pytest.fixture
def make_record(walk):
    """A walk at four metres in millimetres, its pixels, and a validity that leaves out the first frames."""

    def make(frames=30, lens="TS5", seed=0):
        world = convert(walk(frames, seed=seed).astype(np.float64), "h36m_17", "mpi_inf_3dhp_17")
        points = 1000 * np.stack([world[..., 0], 1.0 - world[..., 2], world[..., 1] + 4], -1)
        return {"data_3d": points, "data_2d": project(points, *LENS[lens]), "valid": (np.arange(frames) >= 5).astype(float)}

    return make


@pytest.fixture
def save(tmp_path):
    def make(data, name="data_test_3dhp.npz"):
        np.savez_compressed(tmp_path / name, data=data)
        return tmp_path / name

    return make


@pytest.fixture
def make_official(tmp_path, make_record):
    """`mpi_inf_3dhp_test_set` with TS1 and TS5, as MATLAB 7.3 writes it: HDF5 with reversed axes, everything float64."""
    h5py = pytest.importorskip("h5py")

    def make(activities=(1, 1), change=None):
        for name, activity in zip(("TS1", "TS5"), activities):
            record = make_record(lens=name)
            pelvis = record["data_3d"][:, 14:15]
            content = {
                "annot2": record["data_2d"][:, None],
                "annot3": record["data_3d"][:, None],
                "univ_annot3": ((record["data_3d"] - pelvis) * 0.955 + pelvis)[:, None],
                "valid_frame": record["valid"][:, None],
                "activity_annotation": np.where(np.arange(30) < 20, 1, activity)[:, None].astype(float),
            }
            if change is not None:
                change(content)
            folder = tmp_path / "mpi_inf_3dhp_test_set" / name
            folder.mkdir(parents=True)
            with h5py.File(folder / "annot_data.mat", "w", userblock_size=512) as file:
                for key, value in content.items():
                    file[key] = value
        return tmp_path / "mpi_inf_3dhp_test_set"

    return make


def hits(clip):
    """Largest distance in pixels of the projected poses from the keypoints."""
    return torch.linalg.vector_norm(clip.camera.project(clip.positions_camera) - clip.keypoints_2d, dim=-1).max().item()


@pytest.mark.parametrize("sequence", ["TS1", "TS2", "TS3", "TS4", "TS5", "TS6"])
def test_cameras_have_the_published_numbers(sequence):
    kind = "TS5" if sequence in ("TS5", "TS6") else "TS1"
    camera = mpi_inf_3dhp_camera(sequence)
    np.testing.assert_allclose(camera.focal, LENS[kind][0], rtol=1e-6)
    np.testing.assert_allclose(camera.centre, LENS[kind][1], rtol=1e-6)
    assert camera.image_size == SIZE[kind]
    square = mpi_inf_3dhp_camera(sequence, pixel_aspect=False)
    assert square.focal[0] == square.focal[1] == camera.focal[0]


def test_official_test_set(make_official, make_record):
    dataset = read_mpi_inf_3dhp(make_official(activities=(1, 4)))
    assert [clip.name for clip in dataset] == ["TS1", "TS5"] and dataset.protocol == "3dhp" and dataset.notes == ()
    for clip in dataset:
        record = make_record(lens=clip.name)
        assert clip.skeleton == "mpi_inf_3dhp_17" and clip.root_index == 14 and clip.camera.image_size == SIZE[clip.name]
        np.testing.assert_allclose(clip.positions_camera, record["data_3d"] / 1000, atol=1e-6)  # millimetres to metres
        np.testing.assert_allclose(clip.keypoints_2d, record["data_2d"], atol=1e-3)
        assert hits(clip) < 1e-2
        assert clip.valid.tolist() == [False] * 5 + [True] * 25 == clip.scored.tolist()
        assert (clip.confidence == 1).all()
    assert dataset[0].tags == {
        "dataset": "mpi_inf_3dhp",
        "split": "test",
        "sequence": "TS1",
        "subject": "TS1",
        "activity": "Standing/Walking",
    }
    assert "activity" not in dataset[1].tags  # it changes within the clip


def test_pixel_aspect_is_worth_a_pixel_outdoors(make_official):
    path = make_official()
    square = read_mpi_inf_3dhp(path, pixel_aspect=False)
    assert hits(square[0]) < 0.5 < 1 < hits(square[1])
    assert square.notes == ()


def test_universal_annotation_is_read_and_noted(make_official):
    dataset = read_mpi_inf_3dhp(make_official(), annotation="univ_annot3")
    (note,) = dataset.notes
    assert "do not reproject" in note and "TS1" in note and "TS5" in note
    assert hits(dataset[0]) > 5


def test_folder_above_single_file_and_selected_sequences(make_official):
    folder = make_official()
    assert len(read_mpi_inf_3dhp(folder.parent)) == 2
    assert [clip.name for clip in read_mpi_inf_3dhp(folder / "TS5" / "annot_data.mat")] == ["TS5"]
    assert [clip.name for clip in read_mpi_inf_3dhp(folder, sequences=["TS1"])] == ["TS1"]
    for wrong in (["TS7"], []):
        with pytest.raises(ValueError, match=r"sequences must be among \['TS1', 'TS5'\]"):
            read_mpi_inf_3dhp(folder, sequences=wrong)


@pytest.mark.parametrize("column", [False, True])
def test_prepared_test_set(save, make_record, column):
    record = make_record()
    if column:
        record["valid"] = record["valid"][:, None]
    path = save({"TS6": record, "TS5": make_record(seed=1)})
    dataset = read_mpi_inf_3dhp(path.parent)
    assert [clip.name for clip in dataset] == ["TS5", "TS6"] and dataset.notes == ()
    assert hits(dataset[1]) < 1e-2 and dataset[1].valid.tolist() == [False] * 5 + [True] * 25
    assert "activity" not in dataset[0].tags


def test_prepared_universal_skeleton_is_noticed(save, make_record):
    record = make_record()
    pelvis = record["data_3d"][:, 14:15]
    record["data_3d"] = (record["data_3d"] - pelvis) * 0.955 + pelvis
    assert any("universal skeleton" in note for note in read_mpi_inf_3dhp(save({"TS5": record})).notes)


def test_valid_only_keeps_valid_frames(save, make_record):
    record = make_record()
    (clip,) = read_mpi_inf_3dhp(save({"TS5": record}), valid_only=True)
    assert len(clip) == 25 and clip.valid.all()
    np.testing.assert_allclose(clip.positions_camera, record["data_3d"][5:] / 1000, atol=1e-6)
    record["valid"][:] = 0
    with pytest.raises(ValueError, match="TS5 has no valid frame"):
        read_mpi_inf_3dhp(save({"TS5": record}), valid_only=True)


# ---------------------------------------------------------------------------------------------------------------------
# Training split
# ---------------------------------------------------------------------------------------------------------------------


def views(make_record, lenses):
    return {
        view: {key: value for key, value in make_record(lens=lens, frames=40, seed=i).items() if key != "valid"}
        for i, (view, lens) in enumerate(lenses.items())
    }


@pytest.mark.parametrize(("nest", "fps"), [(lambda v: [v], 50), (lambda v: [v, 25], 25), (lambda v: v, 50), (lambda v: (v, 12.5), 12.5)])
def test_training_cameras_are_recovered(save, make_record, nest, fps):
    data = {"S1 Seq2": nest(views(make_record, {"0": "TS1", "8": "TS5"})), "S2 Seq1": [views(make_record, {4: "TS1"})]}
    dataset = read_mpi_inf_3dhp(save(data, "data_train_3dhp.npz"), split="train")
    assert [clip.name for clip in dataset] == ["S1/Seq2/0", "S1/Seq2/8", "S2/Seq1/4"]
    assert [clip.fps for clip in dataset] == [fps, fps, 25]
    for clip, lens in zip(dataset, ("TS1", "TS5", "TS1")):
        np.testing.assert_allclose(clip.camera.focal, LENS[lens][0], rtol=1e-4)
        np.testing.assert_allclose(clip.camera.centre, LENS[lens][1], rtol=1e-3)
        assert hits(clip) < 0.05 and clip.valid is None and clip.camera.image_size == (2048, 2048)
    assert dataset[1].tags == {"dataset": "mpi_inf_3dhp", "split": "train", "sequence": "Seq2", "subject": "S1", "camera": "8"}
    (note,) = dataset.notes
    assert "3 training clips" in note and "0.00 px" in note


def test_training_residual_is_noted(save, make_record):
    data = views(make_record, {"0": "TS1"})
    data["0"]["data_2d"] += np.random.default_rng(0).normal(0, 5, data["0"]["data_2d"].shape)
    (note,) = read_mpi_inf_3dhp(save({"S1 Seq1": [data]}, "data_train_3dhp.npz"), split="train").notes
    assert 5 < float(note.split("at worst ")[1].split()[0]) < 7  # the median of a Rayleigh distribution is 1.18 sigma


@pytest.mark.parametrize("change", ["mirrored", "relative", "one point"])
def test_training_poses_that_tell_no_lens_are_refused(save, make_record, change):
    data = views(make_record, {"0": "TS1"})
    points = data["0"]["data_3d"]
    if change == "mirrored":
        points[..., 0] *= -1
    elif change == "relative":
        points -= points[:, 14:15] + [0, 0, 5000]
    else:
        points[:] = [100, 100, 4000]
    with pytest.raises(ValueError, match=r"data_train_3dhp.npz, S1/Seq1/0: .*data_3d"):
        read_mpi_inf_3dhp(save({"S1 Seq1": [data]}, "data_train_3dhp.npz"), split="train")


# ---------------------------------------------------------------------------------------------------------------------
# What is refused, what is told
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r.pop("valid"), r"TS5: expected a dict with \['data_2d', 'data_3d', 'valid'\]"),
        (lambda r: r.update(data_3d=r["data_3d"][:, :16]), r"TS5, data_3d must have shape \(frames, 17, 3\), got \(30, 16, 3\)"),
        (lambda r: r.update(data_2d=r["data_2d"][:-1]), r"TS5, data_2d must have shape \(30, 17, 2\), got \(29, 17, 2\)"),
        (lambda r: r.update(valid=r["valid"][1:]), r"TS5, valid must have shape \(30\), got \(29,\)"),
        (lambda r: r.update(valid="all"), "TS5, valid must be numbers"),
        (lambda r: r.update(data_3d=r["data_3d"][:0]), r"TS5, data_3d must have shape"),
        (lambda r: r.update(data_3d=r["data_3d"] / 1000), "kilometres: multiply by 1000"),
        (lambda r: r.update(data_3d=r["data_3d"] * 1000), "millimetres: divide by 1000"),
    ],
)
def test_records_of_another_shape_or_unit(save, make_record, change, words):
    record = make_record()
    change(record)
    with pytest.raises(ValueError, match=words) as error:
        read_mpi_inf_3dhp(save({"TS5": record}))
    assert "data_test_3dhp.npz" in str(error.value)


@pytest.mark.parametrize("data", [{}, {"S1 Seq1": [{}]}, {"TS7": {}}, {5: {}}, [1, 2], np.zeros(3)])
def test_other_sequences_and_an_empty_split(save, data):
    with pytest.raises(ValueError, match="sequences of the split 'test' must be TS1 to TS6"):
        read_mpi_inf_3dhp(save(data))


def test_empty_training_sequences(save, make_record):
    for data, words in (
        ({"S1 Seq1": [{}]}, "holds no sequences"),
        ({"S1 Seq1": []}, "expected a dict"),
        ({"TS1": {}}, "'S1 Seq1' and so on"),
    ):
        with pytest.raises(ValueError, match=words):
            read_mpi_inf_3dhp(save(data, "data_train_3dhp.npz"), split="train")


def test_exchanged_sides_and_missing_truth_are_noted(save, make_record):
    record, other = make_record(), make_record(seed=1)
    record["data_2d"] = record["data_2d"][:, [0, 1, 5, 6, 7, 2, 3, 4, 11, 12, 13, 8, 9, 10, 14, 15, 16]]
    other["data_3d"][:3] = np.nan
    notes = read_mpi_inf_3dhp(save({"TS5": record, "TS6": other})).notes
    assert any("left and right look exchanged" in note and "TS5" in note and "TS6" not in note for note in notes)
    assert any(note == "NaN ground truth in 1 clip: TS6 (3 of 30 frames)" for note in notes)


def test_missing_keypoints_are_not_observed(save, make_record):
    record = make_record()
    record["data_2d"][7, 3] = np.nan
    (clip,) = read_mpi_inf_3dhp(save({"TS5": record}))
    assert clip.confidence[7, 3] == 0 and clip.confidence.sum() == 30 * 17 - 1


@pytest.mark.parametrize("name", ["annot2", "annot3", "valid_frame", "activity_annotation"])
def test_official_file_without_a_key(make_official, name):
    with pytest.raises(ValueError, match=rf"annot_data.mat lacks \['{name}'\]"):
        read_mpi_inf_3dhp(make_official(change=lambda content: content.pop(name)))


def test_official_file_with_other_joints(make_official):
    def change(content):
        content["annot3"] = content["annot3"][:, :, :14]

    with pytest.raises(ValueError, match=r"annot_data.mat: annot3 must have shape \(frames, 1, 17, 3\), got \(30, 1, 14, 3\)"):
        read_mpi_inf_3dhp(make_official(change=change))


@pytest.mark.parametrize("keep", [0, 100, 700, 3000])
def test_truncated_official_file(make_official, keep):
    path = make_official() / "TS5" / "annot_data.mat"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"annot_data.mat is not a whole MATLAB 7.3 \(HDF5\) file"):
        read_mpi_inf_3dhp(path)


@pytest.mark.parametrize("keep", [0, 20, 500, 5000])
def test_truncated_archive(save, make_record, keep):
    path = save({"TS5": make_record()})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"data_test_3dhp\.npz"):
        read_mpi_inf_3dhp(path)


def test_an_archive_without_data(tmp_path):
    np.savez(tmp_path / "data_test_3dhp.npz", other=np.zeros(3))
    with pytest.raises(ValueError, match="no entry 'data'"):
        read_mpi_inf_3dhp(tmp_path)


def test_an_archive_that_would_run_code_is_refused(tmp_path, save):
    class Harmful:
        def __reduce__(self):
            return (open, (str(tmp_path / "it ran"), "w"))

    path = save({"TS5": Harmful()})
    with pytest.raises(ValueError, match="would run code"):
        read_mpi_inf_3dhp(path)
    assert not (tmp_path / "it ran").exists()
    pickle.loads(pickle.dumps(Harmful())).close()
    assert (tmp_path / "it ran").exists()  # free unpickling would have run it


def test_wrong_options_and_paths(tmp_path, save, make_record):
    path = save({"TS5": make_record()})
    for option in ({"keypoints": "cpn"}, {"annotation": "annot2"}, {"split": "validation"}):
        with pytest.raises(ValueError, match=f"{next(iter(option))} of MPI-INF-3DHP must be one of"):
            read_mpi_inf_3dhp(path, **option)
    with pytest.raises(ValueError, match="TS8"):
        mpi_inf_3dhp_camera("TS8")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_mpi_inf_3dhp(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"data_train_3dhp\.npz"):
        read_mpi_inf_3dhp(tmp_path, split="train")
