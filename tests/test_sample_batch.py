"""`probpose sample --batch`, run as a user runs it: alone, under a launcher, killed and resumed."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from probpose.data import KeypointTrack, write_keypoints
from probpose.shards import read_shards

PEOPLE = [
    "clips/late.npz/person2",
    "frames/person0",
    "openpose/person0",
    "pair.npz/person0",
    "pair.npz/person1",
    "takes/take1.json/person0",
    "takes/take2.json/person0",
    "walk.npz/person0",
]
LAUNCHER = {"num_processes": 2, "num_machines": 1, "mixed_precision": "no", "dynamo_backend": "no", "main_process_port": 0}
LAUNCH = ["--multi_gpu", *(str(word) for key, value in LAUNCHER.items() for word in (f"--{key}", value))]  # which works without a GPU


@pytest.fixture
def run(run_command, model):
    """Run `probpose sample … --model TINY` in this process; returns (exit code, stdout, stderr)."""
    threads = torch.get_num_threads()
    yield lambda *words: run_command("sample", *words, "--device", "cpu", *([] if "--model" in words else ["--model", model]))
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model


def person(index=0, frames=8, skeleton="h36m_17", joints=17, image_size=(640, 480), fps=25.0):
    rng = np.random.default_rng(index)
    points = rng.normal(0, 40, (1, joints, 2)) + 20 * rng.normal(size=(frames, 1, 2)) + np.array([320 + 50 * index, 240])
    shape = (frames, joints)
    return KeypointTrack(points, rng.uniform(0.5, 1, shape), np.arange(frames) + 3, index, skeleton, image_size, fps)


def instance(seed):
    points = np.random.default_rng(seed).normal(240, 40, (17, 2))
    return {"keypoints": points.tolist(), "keypoint_scores": [0.9] * 17, "bbox": [[100, 100, 400, 400]], "bbox_score": 0.9}


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Seven recordings with eight people, in files, sub-folders and folders of frames; one of nobody; one that is damaged."""
    folder = tmp_path_factory.mktemp("data") / "recordings"
    for name in ("clips", "openpose", "frames", "takes"):
        (folder / name).mkdir(parents=True)
    write_keypoints(folder / "walk.npz", [person(frames=20)])
    write_keypoints(folder / "pair.npz", [person(0, 9, "coco_17"), person(1, 8, "coco_17")])
    write_keypoints(folder / "clips" / "late.npz", [person(2, 30, fps=None)])
    for frame in range(3):
        points = np.random.default_rng(frame).uniform(100, 400, (25, 3))
        points[:, 2] = 0.9
        people = {"people": [{"pose_keypoints_2d": points.ravel().tolist()}]}
        (folder / "openpose" / f"video_{frame:012d}_keypoints.json").write_text(json.dumps(people))
        (folder / "frames" / f"image{frame}.json").write_text(json.dumps([instance(0)] if frame else []))
    for take in (1, 2):
        frames = [{"frame_id": frame, "instances": [instance(take)]} for frame in range(4)]
        (folder / "takes" / f"take{take}.json").write_text(json.dumps({"meta_info": {}, "instance_info": frames}))
    (folder / "nobody.json").write_text('{"version": 1.3, "people": []}')
    (folder / "bad.json").write_text('{"people": [')
    (folder / "notes.txt").write_text("filmed in May")
    write_keypoints(folder / ".hidden.npz", [person()])
    return folder


def batch(out, *words):
    return "--batch", "--out", str(out), "--image-size", "640x480", *words


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def environment():
    return {key: value for key, value in os.environ.items() if not key.startswith(("ACCELERATE_", "MASTER_", "RANK", "WORLD_", "LOCAL_"))}


def test_recordings_of_all_kinds(run, model, recordings, tmp_path):
    from probpose import ProbPosePipeline

    code, out, err = run(recordings, "--batch", "--out", tmp_path / "out", "--image-size", "640x480", "--fps", 20, "--shard-size", 3)
    assert code == 1 and "9 recordings: 8 people, 80 frames" in out and "1 without people; 1 failed:" in out, err
    assert "recordings/bad.json: expected JSON" in out and "skipped 2 that are no keypoints: .hidden.npz, notes.txt" in err
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert list(manifest["failures"]) == ["bad.json"] and manifest["settings"]["fps"] == 20
    assert manifest["metadata"]["joint_names"][0] == "pelvis" and manifest["metadata"]["units"]["pose"] == "m"
    results = dict(read_shards(tmp_path / "out"))
    assert list(results) == PEOPLE

    name, track = "pair.npz/person1", person(1, 8, "coco_17")
    seed = int.from_bytes(hashlib.sha256(f"0/{name}".encode()).digest()[:7], "big")
    expected = ProbPosePipeline.from_pretrained(model)(
        track.keypoints_2d, track.confidence, image_size=(640, 480), skeleton="coco_17", fps=20.0,
        generator=torch.Generator().manual_seed(seed), output_type="np",
    )  # fmt: skip
    found = results[name]
    for key in ("hypotheses", "pose", "uncertainty", "root"):
        np.testing.assert_array_equal(found[key], expected[key])
    np.testing.assert_array_equal(found["camera"], expected.camera.to_vector())
    np.testing.assert_array_equal(found["keypoints_2d"], track.keypoints_2d)
    assert found["observed"].dtype == bool and found["observed"].all()
    assert (found["recording"], found["person"], found["fps"], found["input_skeleton"]) == ("pair.npz", 1, 20, "coco_17")
    assert found["frame"].tolist() == list(range(3, 11)) and found["image_size"].tolist() == [640, 480]


def test_two_processes_write_what_one_does(run, model, recordings, tmp_path):
    pytest.importorskip("accelerate")
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    words = ["--shards", "parquet", "--shard-size", "2", "--store-hypotheses", "float16", "--aggregation", "mean", "--model", str(model)]
    assert run(recordings, *batch(tmp_path / "one", *words))[0] == 1
    command = [sys.executable, "-m", "accelerate.commands.launch", *LAUNCH, "-m", "probpose", "sample", str(recordings)]
    done = subprocess.run(
        [*command, *batch(tmp_path / "two", *words), "--device", "cpu"], env=environment(), capture_output=True, text=True, timeout=200
    )
    assert done.returncode != 0 and done.stdout.count("9 recordings: 8 people") == 1, done.stderr
    assert done.stderr.count("skipped 2") == 1
    assert contents(tmp_path / "one") == contents(tmp_path / "two")

    table = pandas.concat([pandas.read_parquet(path) for path in sorted((tmp_path / "two").glob("*.parquet"))])
    assert table["name"].unique().tolist() == PEOPLE
    walk = table[table["name"] == "walk.npz/person0"]
    hypotheses, pose = np.stack(walk["hypotheses"]).reshape(20, 3, 17, 3), np.stack(walk["pose"]).reshape(20, 17, 3)
    assert hypotheses.dtype == np.float16 and walk["frame"].tolist() == list(range(3, 23)) and set(walk["fps"]) == {25.0}
    np.testing.assert_allclose(hypotheses.astype(np.float32).mean(1), pose, atol=2e-3)


def test_a_killed_batch_is_resumed(run, model, recordings, tmp_path):
    words = [str(recordings), *batch(tmp_path / "out", "--shard-size", "1", "--steps", "12", "-k", "6")]
    command = [sys.executable, "-m", "probpose", "sample", *words, "--model", str(model), "--device", "cpu"]
    process = subprocess.Popen(command, env=environment(), start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (tmp_path / "out" / "shard-00001.json").exists():
        assert process.poll() is None
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out" / "manifest.json").exists()
    first = tmp_path / "out" / "shard-00001.npz"
    made = first.stat().st_mtime_ns
    code, out, err = run(*words, "--resume")
    assert code == 1 and "9 recordings" in out, err
    assert first.stat().st_mtime_ns == made
    resumed = contents(tmp_path / "out")
    assert run(*words, "--overwrite")[0] == 1
    assert contents(tmp_path / "out") == resumed


def test_a_result_does_not_depend_on_its_neighbours(run, tmp_path):
    (tmp_path / "few").mkdir()
    write_keypoints(tmp_path / "few" / "walk.npz", [person(frames=20)])
    assert run(tmp_path / "few", "--batch", "--out", tmp_path / "a", "--store-hypotheses", "none")[0] == 0
    write_keypoints(tmp_path / "few" / "a.npz", [person(4)])
    assert run(tmp_path / "few", "--batch", "--out", tmp_path / "few" / "out")[0] == 0
    before, after = dict(read_shards(tmp_path / "a")), dict(read_shards(tmp_path / "few" / "out"))
    assert "hypotheses" not in before["walk.npz/person0"]
    np.testing.assert_array_equal(before["walk.npz/person0"]["pose"], after["walk.npz/person0"]["pose"])
    code, _, err = run(tmp_path / "few", "--batch", "--out", tmp_path / "few" / "out")
    assert code == 2 and "--resume to continue or --overwrite" in err
    code, _, err = run(tmp_path / "few", "--batch", "--out", tmp_path / "few" / "out", "--resume", "--seed", 5, "--aggregation", "mean")
    assert code == 2 and "settings.seed was 0, now is 5" in err and "settings.aggregation was 'not given', now is 'mean'" in err
    code, _, err = run(tmp_path / "few", "--batch", "--out", tmp_path / "few" / "out", "--resume")  # whose files are no recordings
    assert code == 0, err
    write_keypoints(tmp_path / "few" / "b.npz", [person(5)])  # but a run is over a certain list
    code, _, err = run(tmp_path / "few", "--batch", "--out", tmp_path / "few" / "out", "--resume")
    assert code == 2 and "'b.npz' is new" in err


def test_a_pipeline_with_a_lifter(run, tiny_diffpose, tmp_path):
    (tmp_path / "in").mkdir()
    write_keypoints(tmp_path / "in" / "walk.npz", [person(frames=20)])
    words = [tmp_path / "in", "--batch", "--out", tmp_path / "out", "--model", tiny_diffpose, "--start", "mixture", "--flip", "alternate"]
    code, _, err = run(*words, "-k", 4)
    assert code == 0, err
    arrays = dict(read_shards(tmp_path / "out"))["walk.npz/person0"]
    assert arrays["hypotheses"].shape == (4, 20, 17, 3) and arrays["pose"].shape == (20, 17, 3) and "lifted" not in arrays
    code, _, err = run(*words, "-k", 4, "--resume", "--start", "noisy")
    assert code == 2 and "settings.start was 'mixture', now is 'noisy'" in err


def test_a_mended_recording_is_tried_again(run, tmp_path):
    (tmp_path / "in").mkdir()
    write_keypoints(tmp_path / "in" / "walk.npz", [person()])
    write_keypoints(tmp_path / "in" / "sizeless.npz", [person(image_size=None)])
    words = [tmp_path / "in", "--batch", "--out", tmp_path / "out"]
    code, out, _ = run(*words)
    assert code == 1 and "sizeless.npz does not tell the image size: pass --image-size" in out
    write_keypoints(tmp_path / "in" / "sizeless.npz", [person()], overwrite=True)
    code, out, _ = run(*words, "--resume")
    assert code == 0 and "2 recordings: 2 people, 16 frames" in out and "failed" not in out


def test_strict_stops_at_once(run, recordings, tmp_path):
    code, _, err = run(recordings, *batch(tmp_path / "out", "--strict"))
    assert code == 2 and "bad.json" in err and list(contents(tmp_path / "out")) == ["run.json"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["RECORDINGS"], "pass --batch if it holds many recordings"),
        (["RECORDINGS/walk.npz", "--batch"], "walk.npz: --batch needs a folder"),
        (["nowhere", "--batch"], "nowhere: --batch needs a folder"),
        (["EMPTY", "--batch"], "holds no keypoint recordings, nothing"),
        (["RECORDINGS/walk.npz", "--resume", "--shards", "npz"], "--shards, --resume: for a --batch only"),
        (["RECORDINGS", "--batch", "--page"], "--page: for one recording, not for a --batch"),
        (["RECORDINGS", "--batch", "-k", "0"], "num_hypotheses"),
        (["RECORDINGS", "--batch", "--start", "noisy"], "--start: not for a D3DPPipeline, whose sampler has --num-hypotheses"),
        (["RECORDINGS", "--batch", "--flip", "lifter"], "--flip of a D3DPPipeline must be one of every_step"),
        (["RECORDINGS", "--batch", "--aggregation", "best"], "aggregation"),
        (["RECORDINGS", "--batch", "--skeleton", "coco_71"], "coco_71"),
        (["RECORDINGS", "--batch", "--format", "csv"], "--format must be one of npz, "),
        (["RECORDINGS", "--batch", "--focal", "-5"], "focal"),
        (["RECORDINGS", "--batch", "--fps", "0"], "fps must be a positive number"),
        (["RECORDINGS", "--batch", "--model", "no/such/model"], "no/such/model"),
        (["RECORDINGS", "--batch", "--resume", "--overwrite"], "exclude each other"),
    ],
)
def test_what_is_wrong_for_all_is_one_line_and_writes_nothing(run, recordings, tmp_path, words, message):
    (tmp_path / "empty").mkdir()
    words = [word.replace("RECORDINGS", str(recordings)).replace("EMPTY", str(tmp_path / "empty")) for word in words]
    code, _, err = run(*words, "--out", tmp_path / "out")
    lines = [line for line in err.splitlines() if line.startswith("probpose:")]
    assert code == 2 and len(lines) == 1 and message in lines[0], err
    assert not (tmp_path / "out").exists()


def test_another_model_of_the_same_name_is_noticed(run, model, tmp_path):
    from probpose import ProbPosePipeline

    (tmp_path / "in").mkdir()
    write_keypoints(tmp_path / "in" / "walk.npz", [person()])
    pipe = ProbPosePipeline.from_pretrained(model)
    pipe.save_pretrained(tmp_path / "tiny")
    words = [tmp_path / "in", "--batch", "--out", tmp_path / "out", "--model", tmp_path / "tiny", "--resume"]
    assert run(*words)[0] == 0 and run(*words)[0] == 0
    with torch.no_grad():
        next(pipe.denoiser.parameters()).add_(1e-3)
    pipe.save_pretrained(tmp_path / "tiny")
    code, _, err = run(*words)
    assert code == 2 and "settings.weights was" in err


def test_a_launcher_that_starts_one_process_only(run, recordings, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    code, _, err = run(recordings, *batch(tmp_path / "out"))
    assert code == 1 and "starts one process" in err and "torchrun --nproc-per-node COUNT" in err


TOGETHER = """
import os, signal, sys, time
from probpose.processes import started_together

with started_together() as processes:
    print(processes.from_main(lambda: {"by": processes.index}))
    try:
        processes.from_main(lambda: 1 / 0)
    except (ZeroDivisionError, SystemExit) as error:
        print(repr(error))
    calls = []
    time.sleep(0 if processes.is_main else 0.5)
    processes.wait(lambda: calls.append(1), every=0.05)
    print(len(calls) > 3, flush=True)
    if not processes.is_main:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        processes.wait(every=0.05)
    except ChildProcessError as error:
        print(error)
"""


def test_processes_wait_for_each_other(tmp_path):
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {**environment(), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-c", TOGETHER]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**common, "RANK": str(rank)}) for rank in range(2)]
    said = [process.communicate(timeout=100)[0].splitlines() for process in started]
    assert said[0] == [
        "{'by': 0}",
        "ZeroDivisionError('division by zero')",
        "True",
        "another of the processes ended before its work was done",
    ]
    assert said[1] == ["{'by': 0}", "SystemExit(2)", "False"] and started[0].returncode == 0
