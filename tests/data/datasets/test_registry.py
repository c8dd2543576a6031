"""Data sets by name and by their files."""

import inspect
import subprocess
import sys
from importlib import import_module

import numpy as np
import pytest

from probpose.data.datasets import list_datasets, load_dataset, recognise_dataset, registry


def test_names_and_descriptions():
    assert list(list_datasets()) == ["h36m", "3dhp", "3dpw", "humaneva", "mocap17", "motions"]
    assert all(text and "\n" not in text for text in list_datasets().values())


@pytest.mark.parametrize("name", list_datasets())
def test_every_reader_takes_a_path(name):
    reader = registry._READERS[name]
    function = getattr(import_module(f"probpose.data.datasets.{reader.module}"), reader.function)
    assert next(iter(inspect.signature(function).parameters)) == "path"
    assert getattr(import_module("probpose.data.datasets"), reader.function) is function


def test_listing_is_light():
    code = "import sys; from probpose.data.datasets import list_datasets; list_datasets(); print({'torch', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "set()"


def test_human36m_by_folder_file_and_name(h36m):
    for path in (h36m.path, h36m.path / "data_3d_h36m.npz"):
        data = load_dataset(path, keypoints="gt", subjects=["S11"])
        assert data.protocol == "h36m" and len(data) == 4
    assert len(load_dataset(str(h36m.path), "h36m", cameras=["54138969"])) == 4


def test_humaneva_by_folder_and_file(humaneva):
    for path in (humaneva.path, humaneva.path / "data_3d_humaneva15.npz"):
        assert load_dataset(path, cameras=humaneva.cameras).protocol == "humaneva"


def test_archives_by_their_entries(mocap17, make_archive):
    assert load_dataset(mocap17.save(), keypoints="true").name == "mocap17_test true"
    assert load_dataset(make_archive({"a/b": 9}, split="test")).name == "motions mocap"


@pytest.mark.parametrize(
    ("file", "dataset"),
    [
        ("data_test_3dhp.npz", "3dhp"),
        ("data_train_3dhp.npz", "3dhp"),
        ("TS1/annot_data.mat", "3dhp"),
        ("mpi_inf_3dhp_test_set/TS6/annot_data.mat", "3dhp"),
        ("sequenceFiles/test/downtown_walking_00.pkl", "3dpw"),
        ("test/downtown_walking_00.pkl", "3dpw"),
        ("downtown_walking_00.pkl", "3dpw"),
        ("deep/down/walk.bvh", "motions"),
        ("01.AMC", "motions"),
    ],
)
def test_folders_and_files_are_recognised(tmp_path, file, dataset):
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    if file.endswith(".npz"):
        np.savez(tmp_path / file, data={})
    else:
        (tmp_path / file).touch()
    assert recognise_dataset(tmp_path) == recognise_dataset(tmp_path / file) == dataset


def test_several_data_sets_in_one_folder(h36m, humaneva):
    assert h36m.path == humaneva.path
    with pytest.raises(ValueError, match=r"(?s)several data sets; choose one with dataset=.*h36m: .*humaneva: ") as caught:
        load_dataset(h36m.path)
    assert "3dpw" not in str(caught.value)
    assert load_dataset(h36m.path, "h36m").protocol == "h36m"


@pytest.mark.parametrize("kind", ["folder", "text", "archive"])
def test_what_is_not_recognised(tmp_path, kind):
    path = tmp_path / {"folder": "", "text": "video.mp4", "archive": "other.npz"}[kind]
    if kind == "text":
        path.write_text("frames")
    elif kind == "archive":
        np.savez(path, poses=np.zeros(3))
    with pytest.raises(ValueError, match="of no known data set; looked for") as caught:
        load_dataset(path)
    assert all(f"\n  {name}: " in str(caught.value) for name in list_datasets())
    assert recognise_dataset(path) is None


def test_unknown_names_and_options(h36m, tmp_path):
    with pytest.raises(ValueError, match="unknown data set 'human36m'; known are h36m, 3dhp"):
        load_dataset(h36m.path, "human36m")
    with pytest.raises(ValueError, match="'h36m' has no option split, stride; its options are keypoints, subjects, cameras, actions"):
        load_dataset(h36m.path, split="test", stride=2)
    with pytest.raises(FileNotFoundError, match="absent"):
        load_dataset(tmp_path / "absent")
