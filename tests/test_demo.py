"""The web page: what it makes of a recording, what it says, and that it can be asked; test_demo_browser.py looks at it."""

import json
import re
import runpy
import socket
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tomllib

pytest.importorskip("gradio")
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from probpose import ProbPosePipeline
from probpose.data import KeypointTrack, read_keypoints, write_keypoints
from probpose.data.bvh import read_bvh
from probpose.demo import appearance, build_demo, read_recording, sample_people
from probpose.export import FORMATS
from probpose.results import SampledPerson
from probpose.video import People, write_video

ROOT = Path(__file__).resolve().parents[1]
SPACE = ROOT / "examples" / "space"
KINDS = ("npz", "bvh", "glb", "csv", "trc", "json", "png", "html")


def track(frames=20, person=0, skeleton="h36m_17", image_size=(640, 480), unseen=(), seed=0):
    rng = np.random.default_rng(seed + person)
    points = (rng.normal([320, 240], 40, (1, 17, 2)) + rng.normal(0, 1, (frames, 17, 2))).astype(np.float32)
    points[list(unseen)] = np.nan
    return KeypointTrack(points, np.ones((frames, 17)), np.arange(5, 5 + frames), person, skeleton, image_size, 25.0)


@pytest.fixture(scope="module")
def pipe(tiny_model):
    pipe = ProbPosePipeline.from_pretrained(tiny_model)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def no_detector():
    raise AssertionError("no video, no detector")


def filmed(path, frames=6):
    with write_video(path, (96, 64), 24) as append:
        for number in range(frames):
            append(np.full((64, 96, 3), 20 * number, np.uint8))
    return path


class OnePerson:
    """Somebody whose joints stand where the first joint's colour is that of the frame."""

    skeleton = "coco_17"

    def __call__(self, frames):
        rng = np.random.default_rng(0)
        return [People(rng.uniform([20, 10], [70, 55], (1, 17, 2)), np.ones((1, 17))) for _ in frames]


# ---------------------------------------------------------------------------------------------------------------------
# From a file to files
# ---------------------------------------------------------------------------------------------------------------------


def test_all_files_of_a_person(pipe, tmp_path):
    write_keypoints(tmp_path / "walk.npz", [track()])
    (tmp_path / "out").mkdir()
    tracks = read_recording(tmp_path / "walk.npz", no_detector)
    result = sample_people(pipe, tracks, tmp_path / "out", "walk", focal=700, seed=3, num_hypotheses=4, num_inference_steps=2)
    (person,) = result.people.values()
    assert [*result.people] == ["walk"] and result.overlay is None
    assert {suffix: path.name for suffix, path in person.files.items()} == {kind: f"walk.{kind}" for kind in KINDS}
    assert set(FORMATS) < set(KINDS)
    assert sorted(zipfile.ZipFile(result.archive).namelist()) == sorted(f"walk.{kind}" for kind in KINDS)
    stored = SampledPerson.load(person.files["npz"])
    assert stored.hypotheses.shape == (4, 20, 17, 3) and stored.settings["seed"] == 3
    assert stored.camera.focal.tolist() == [700, 700] and stored.camera.centre.tolist() == [320, 240]
    assert read_bvh(person.files["bvh"]).fps == 25
    assert "4 hypotheses, 20 frames (0.8 s at 25 fps)" in person.summary and "Not seen" not in person.summary
    assert f"mean uncertainty {1000 * stored.uncertainty.mean():.0f} mm" in person.summary
    np.testing.assert_allclose(person.per_joint.mm, 1000 * stored.uncertainty.mean(0), rtol=1e-5)
    right = person.over_time[person.over_time.side == "right"]
    np.testing.assert_allclose(right.mm, 1000 * stored.uncertainty[:, [1, 2, 3, 14, 15, 16]].mean(1), rtol=1e-5)
    np.testing.assert_allclose(right.second, np.arange(5, 25) / 25)


def test_a_long_recording_has_a_short_curve(pipe, tmp_path):
    result = sample_people(pipe, [track(1100)], tmp_path, "long", num_hypotheses=1, num_inference_steps=1)
    curve = result.people["long"].over_time
    assert len(curve) <= 3 * 500 and curve.second.max() > 43


def test_several_people_and_what_nobody_saw(pipe, tmp_path):
    tracks = [track(2, person=1), track(4, person=2, unseen=[1, 2])]
    result = sample_people(pipe, tracks, tmp_path, "pair", num_hypotheses=2, num_inference_steps=1)
    assert [*result.people] == ["pair_person1", "pair_person2"]
    assert "Not seen" not in result.people["pair_person1"].summary
    assert re.search(r"Not seen in frames 6\D7:", result.people["pair_person2"].summary)
    assert len(zipfile.ZipFile(result.archive).namelist()) == 2 * len(KINDS)


def test_names_and_notes_are_text(pipe, tmp_path):
    one = track(2)
    one.source["notes"] = ["joints < 3 & more"]
    summary = sample_people(pipe, [one], tmp_path, "<i>walk", num_hypotheses=1, num_inference_steps=1).people["<i>walk"].summary
    assert "<b>&lt;i&gt;walk</b>" in summary and "<p>joints &lt; 3 &amp; more</p>" in summary


def test_a_video(pipe, tmp_path):
    video = filmed(tmp_path / "street.mp4")
    (tmp_path / "out").mkdir()
    said = []
    tracks = read_recording(video, OnePerson, say=lambda *words: said.append(words))
    assert said == [(1, "finding people")]
    call = {"num_hypotheses": 2, "num_inference_steps": 2, "max_batch_size": 1}
    result = sample_people(pipe, tracks, tmp_path / "out", "street", video, say=lambda *words: said.append(words), **call)
    sampling = [(step / 8, "sampling street") for step in (1, 2, 3, 4)]  # two hypotheses after each other, two steps each
    assert said[1:] == [*sampling, (0.5, "writing street"), (1, "drawing into the video")]
    assert {"street_overlay.mp4", "street_keypoints.npz", "street.npz"} < set(zipfile.ZipFile(result.archive).namelist())
    assert result.overlay.stat().st_size > 1000
    (again,) = read_keypoints(tmp_path / "out" / "street_keypoints.npz")
    assert again.skeleton == "coco_17" and len(again) == 6 and again.image_size == (96, 64) and again.fps == 24
    assert SampledPerson.load(result.people["street"].files["npz"]).hypotheses.shape == (2, 6, 17, 3)


def test_nobody_in_a_video(tmp_path):
    with pytest.raises(ValueError, match=r"street\.mp4: nobody was found"):
        read_recording(filmed(tmp_path / "street.mp4"), lambda: lambda frames: [None] * len(frames))


def test_a_zip_of_one_file_per_frame(tmp_path):
    with zipfile.ZipFile(tmp_path / "walk.zip", "w") as archive:
        person = {"person_id": [-1], "pose_keypoints_2d": np.random.default_rng(0).uniform(50, 400, 75).tolist()}
        for frame in range(6):
            archive.writestr(f"walk/json/walk_{frame:012}_keypoints.json", json.dumps({"version": 1.3, "people": [person]}))
        archive.writestr("__MACOSX/walk/json/._walk", b"")
    (one,) = read_recording(tmp_path / "walk.zip", no_detector, image_size=(640, 480))
    assert len(one) == 6 and one.skeleton == "openpose_25" and one.image_size == (640, 480)


def test_zips_that_are_not_one_recording(tmp_path, monkeypatch):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/1.json", "[]")
        archive.writestr("b/1.json", "[]")
    with pytest.raises(ValueError, match=r"x.zip must hold one recording: files of one folder, not of 2"):
        read_recording(path, no_detector)
    monkeypatch.setattr("probpose.demo.MOST_UNPACKED", 3)
    with pytest.raises(ValueError, match=r"x.zip would unpack to"):
        read_recording(path, no_detector)
    path.write_bytes(b"no zip")
    with pytest.raises(ValueError, match=r"x.zip is no zip file"):
        read_recording(path, no_detector)


def test_what_is_wrong_with_a_file_names_the_file_and_no_folder(tmp_path):
    (tmp_path / "boxes.json").write_text(json.dumps([{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.9}]))
    with pytest.raises(ValueError, match=r"boxes\.json") as caught:
        read_recording(tmp_path / "boxes.json", no_detector)
    assert str(tmp_path) not in str(caught.value)
    (tmp_path / "broken.mp4").write_bytes(b"\0" * 100)
    with pytest.raises((ValueError, OSError), match=r"broken\.mp4") as caught:
        read_recording(tmp_path / "broken.mp4", OnePerson)
    assert str(tmp_path) not in str(caught.value)
    write_keypoints(tmp_path / "walk.npz", [track(image_size=None)])
    with pytest.raises(ValueError, match=r"^walk.npz does not tell the image size: give it under"):
        read_recording(tmp_path / "walk.npz", no_detector)
    assert read_recording(tmp_path / "walk.npz", no_detector, image_size=(640, 480))[0].image_size == (640, 480)


# ---------------------------------------------------------------------------------------------------------------------
# The page, asked without a browser
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(tiny_model, tmp_path_factory):
    """A client of the served page, and the folder that its results are in."""
    patch = pytest.MonkeyPatch()
    patch.setenv("NO_PROXY", "127.0.0.1,localhost")
    folder = tmp_path_factory.mktemp("served")
    patch.setattr("tempfile.tempdir", str(folder))
    page = build_demo(str(tiny_model), "cpu", "no_such_module:detect")
    patch.setattr("tempfile.tempdir", None)
    page.launch(server_name="127.0.0.1", server_port=_free_port(), prevent_thread_lock=True, quiet=True, **appearance())
    (root,) = folder.glob("probpose-demo-*")
    yield Client(page.local_url, verbose=False, download_files=str(folder / "downloads")), root, page.local_url
    page.close(verbose=False)
    patch.undo()


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ask(client, upload, model, **changes):
    words = {"hypotheses": 3, "steps": 2, "aggregation": "mean", "seed": 0, "size": "", "fps": "", "skeleton": "", "focal": ""}
    words |= changes
    return client.predict(handle_file(upload) if upload else None, str(model), *words.values(), api_name="/sample")


def test_asking_the_page(served, tiny_model, tmp_path):
    client, root, url = served
    write_keypoints(tmp_path / "pair.npz", [track(3, person=1), track(3, person=2)])
    answer = ask(client, tmp_path / "pair.npz", tiny_model, hypotheses=5, size="800×600", fps="50", focal="900")
    archive = next(value for value in map(_path, answer) if value and value.endswith("pair.zip"))
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(tmp_path)
    result = SampledPerson.load(tmp_path / "pair_person2.npz")
    assert result.hypotheses.shape[0] == 5 and result.settings["aggregation"] == "mean"
    assert result.track.image_size == (800, 600) and result.fps == 50 and result.camera.focal.tolist() == [900, 900]
    assert len(list(root.iterdir())) == 1
    scene = next(value for value in answer if isinstance(value, str) and "<iframe" in value)
    import httpx

    page = httpx.get(url + re.search(r'src="([^"]+)"', scene)[1], trust_env=False)
    assert page.headers["content-type"].startswith("text/html") and page.headers["content-disposition"].startswith("inline")
    assert page.content == (tmp_path / "pair_person1.html").read_bytes()
    # A second answer takes the first one's place.
    ask(client, tmp_path / "pair.npz", tiny_model)
    assert len(list(root.iterdir())) == 1


def _path(value):
    """The file of a component's value."""
    value = value.get("value") if isinstance(value, dict) else value
    return value if isinstance(value, str) and "\n" not in value and len(value) < 500 else None


@pytest.mark.parametrize(
    ("upload", "changes", "message"),
    [
        (None, {}, "Choose an example or drop a file first."),
        ("sizeless.npz", {}, "does not tell the image size"),
        ("sizeless.npz", {"size": "640"}, "the image size must be WIDTHxHEIGHT in pixels, e.g. 1920x1080, got '640'"),
        ("walk.npz", {"focal": "-5"}, "focal"),
        ("walk.npz", {"fps": "fast"}, "the frame rate must be a number, not 'fast'"),
        ("walk.npz", {"skeleton": "coco_wholebody"}, "coco_wholebody"),
        ("street.mp4", {}, "there is no module 'no_such_module'"),
        ("notes.txt", {}, "notes.txt"),
    ],
)
def test_refusals_are_said_on_the_page(served, tiny_model, tmp_path, upload, changes, message):
    client, root, _ = served
    write_keypoints(tmp_path / "walk.npz", [track()])
    write_keypoints(tmp_path / "sizeless.npz", [track(image_size=None)])
    (tmp_path / "notes.txt").write_text("no keypoints\n")
    if upload == "street.mp4":
        filmed(tmp_path / upload)
    before = set(root.iterdir())
    with pytest.raises((AppError, ValueError)) as caught:
        ask(client, upload and tmp_path / upload, tiny_model, **changes)
    said = str(caught.value)
    assert message in said and not any(
        str(place) in said for place in (tmp_path, root, "gradio")
    )  # the server's folders are nobody's business
    assert set(root.iterdir()) == before


# ---------------------------------------------------------------------------------------------------------------------
# The command and the Space
# ---------------------------------------------------------------------------------------------------------------------


def test_a_busy_port_is_one_line(run_command, tiny_model):
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        code, _, err = run_command("demo", "--model", tiny_model, "--port", busy.getsockname()[1], "--no-browser")
    assert code == 2 and "--port" in err and "cannot be used" in err and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "no/such/model"], "no/such/model"),
        (["--device", "cuda:99"], "cuda:99"),
        (["--host", "no.such.host.invalid"], "no.such.host.invalid"),
    ],
)
def test_bad_options_are_one_line(run_command, tiny_model, monkeypatch, words, message):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = [] if "--model" in words else ["--model", tiny_model]
    code, _, err = run_command("demo", *words, *model, "--no-browser", "--port", _free_port())
    lines = [line for line in err.splitlines() if line.startswith("probpose:")]
    assert code == 2 and len(lines) == 1 and message in lines[0]


def test_without_gradio(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ImportError, match=r"pip install probpose\[demo\]"):
        build_demo()


def test_the_space():
    import gradio

    header = re.match(r"---\n(.*?)\n---\n", (SPACE / "README.md").read_text(), re.S)[1]
    facts = dict(line.split(": ", 1) for line in header.splitlines() if ": " in line)
    assert facts["sdk"] == "gradio" and facts["app_file"] == "app.py" and facts["license"] == "apache-2.0"
    assert f"gradio=={facts['sdk_version']}" in (ROOT / "constraints.txt").read_text().splitlines()
    extra = re.fullmatch(r"probpose\[(\w+)\]\n", (SPACE / "requirements.txt").read_text())[1]
    assert extra in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    page = runpy.run_path(str(SPACE / "app.py"))["demo"]
    assert isinstance(page, gradio.Blocks)
    texts = json.dumps(page.get_config_file(), default=str)
    assert "d3dp-mocap17" in texts and "platypose-mocap17" in texts and "A basketball player" in texts
