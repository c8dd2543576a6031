"""The detector that ships, with small models of the real classes: places, batches, labels, and folders that it refuses."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from probpose.skeletons import get_skeleton
from probpose.video import vitpose
from probpose.video.detector import detect
from probpose.video.vitpose import ViTPoseDetector

transformers = pytest.importorskip("transformers")

SPOTS = np.array([[0.3, 0.15], [0.7, 0.5], [0.4, 0.85]])
"""Where the red, the green and the blue spot are in a box, as shares of its width and height."""


@pytest.fixture(scope="module")
def frames():
    rng = np.random.default_rng(0)
    return [frame for size in ((120, 160, 3), (90, 60, 3)) for frame in rng.integers(0, 256, (3, *size), dtype=np.uint8)]


@pytest.fixture(scope="module")
def detector(tiny_detectors):
    return ViTPoseDetector(*tiny_detectors, threshold=0.0)


@pytest.fixture(scope="module")
def spot_finder(make_pose_model, tmp_path_factory):
    """Folder of a ViTPose whose joints 0, 3, … are where it is red, 1, 4, … where it is green, and 2, 5, … where it is blue."""
    source, folder = make_pose_model(), tmp_path_factory.mktemp("spots") / "pose"
    shutil.copytree(source, folder)
    model = transformers.VitPoseForPoseEstimation.from_pretrained(source)
    with torch.no_grad():
        model.backbone.embeddings.position_embeddings.zero_()
        for layer in model.backbone.encoder.layer:  # which add nothing
            for linear in (layer.attention.output.dense, layer.mlp.fc2):
                linear.weight.zero_()
                linear.bias.zero_()
        patch, head = model.backbone.embeddings.patch_embeddings.projection, model.head.conv
        for weights in (patch, head):
            weights.weight.zero_()
            weights.bias.zero_()
        for colour in range(3):  # the opposite next to it, and large constants: so the last normalisation only scales
            patch.weight[colour, colour] = 1 / 64
            patch.weight[colour + 3, colour] = -1 / 64
        patch.bias[6:8] = torch.tensor([10.0, -10.0])
        for joint in range(17):
            head.weight[joint, joint % 3, 1, 1] = 1
    model.save_pretrained(folder)
    return folder


def paint(boxes, height, width):
    """One black frame per box with the three spots in it, and where they are: `(boxes, 3, 2)`."""
    frames = np.zeros((len(boxes), height, width, 3), np.uint8)
    rows, columns = np.mgrid[:height, :width]
    places = boxes[:, None, :2] + SPOTS * (boxes[:, None, 2:] - boxes[:, None, :2])
    for frame, spots, r in zip(frames, places, patch_size(boxes)):
        for colour, (x, y) in enumerate(spots):
            frame[..., colour] = 255 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * r**2))
    return list(frames), places


def patch_size(boxes):
    """Side in the frame of a patch of 8 of the crop's 64 x 48 pixels."""
    width, height = (boxes[:, 2:] - boxes[:, :2]).T
    return 1.25 * np.maximum(height, width * 64 / 48) / 8


def same(people, others, **tolerance):
    assert [len(one) for one in people] == [len(other) for other in others]
    for one, other in zip(people, others):
        for name in ("boxes", "score", "confidence", "keypoints_2d"):
            np.testing.assert_allclose(getattr(one, name), getattr(other, name), **tolerance, err_msg=name)


@pytest.mark.parametrize("size", [(120, 160), (240, 90), (100, 500)], ids=str)
def test_joints_are_where_the_frame_shows_them(make_person_model, spot_finder, size):
    detector = ViTPoseDetector(make_person_model(blind=True), spot_finder)
    boxes = detector([np.zeros((*size, 3), np.uint8)])[0].boxes
    assert len(boxes) == 3 and (boxes >= 0).all() and (boxes[:, 2:] <= size[::-1]).all()
    frames, places = paint(boxes, *size)
    for number, people in enumerate(detector(frames)):
        np.testing.assert_allclose(people.boxes, boxes, atol=1e-3)
        off = np.abs(people.keypoints_2d[number] - places[number][np.arange(17) % 3]) / patch_size(boxes)[number]
        assert off.max() < 1 and (people.confidence[number] > 0.1).all()


def test_half_precision_finds_the_same_joints(make_person_model, spot_finder):
    person = make_person_model(blind=True)
    exact = ViTPoseDetector(person, spot_finder)
    rough = ViTPoseDetector(person, spot_finder, dtype="bfloat16")
    assert {weight.dtype for weight in [*rough.person_model.parameters(), *rough.pose_model.parameters()]} == {torch.bfloat16}
    frames, _ = paint(exact([np.zeros((120, 160, 3), np.uint8)])[0].boxes, 120, 160)
    for number, (one, other) in enumerate(zip(exact(frames), rough(frames))):
        np.testing.assert_allclose(one.boxes, other.boxes, atol=3)
        np.testing.assert_allclose(one.keypoints_2d[number], other.keypoints_2d[number], atol=3)


def test_shapes_and_ranges(detector, frames):
    found = detector(frames)
    assert detector.skeleton == "coco_17" and len(found) == len(frames)
    assert not detector.person_model.training and not detector.pose_model.training
    for frame, people in zip(frames, found):
        assert people.keypoints_2d.shape == (3, 17, 2) and people.boxes.shape == (3, 4)
        assert (people.boxes >= 0).all() and (people.boxes[:, 2:] <= frame.shape[1::-1]).all()
        assert (np.diff(people.score) <= 0).all() and (people.score > 0.5).all()
        seen = people.confidence > 0
        assert seen.mean() > 0.3 and (people.confidence <= 1).all()
        size = people.boxes[:, 2:] - people.boxes[:, :2]
        crop = 1.25 * np.maximum(size, size[:, ::-1] * [0.75, 4 / 3])
        away = np.abs(people.keypoints_2d - (people.boxes[:, None, :2] + people.boxes[:, None, 2:]) / 2)
        assert (away <= crop[:, None] / 2 + 1e-3)[seen].all() and np.isnan(away[~seen]).all()


def test_any_batch_gives_the_same(detector, frames, monkeypatch):
    together = detector(frames)
    same(together, [detector([frame])[0] for frame in frames], rtol=1e-3, atol=0.05)
    monkeypatch.setattr(vitpose, "CROPS_AT_ONCE", 2)
    same(together, detector(frames), rtol=1e-3, atol=0.05)
    same([people[people.confidence.any(1)] for people in together], list(detect(frames, detector, 4)), rtol=1e-3, atol=0.05)


def test_threshold_and_number_of_people(detector, tiny_detectors, frames):
    found = detector(frames)
    limit = float(np.median(np.concatenate([people.score for people in found])))
    above = ViTPoseDetector(*tiny_detectors, threshold=limit)(frames)
    assert 0 < sum(map(len, above)) < sum(map(len, found))
    same(above, [people[people.score > limit] for people in found], rtol=1e-3, atol=0.05)
    same(ViTPoseDetector(*tiny_detectors, max_people=1)(frames), [people[:1] for people in found], rtol=1e-3, atol=0.05)


def test_nobody_there(tiny_detectors, frames):
    detector = ViTPoseDetector(*tiny_detectors, threshold=1.0)
    calls = []
    detector.pose_model.register_forward_pre_hook(lambda *_: calls.append(1))
    assert [people.keypoints_2d.shape for people in detector(frames)] == [(0, 17, 2)] * len(frames)
    assert detector([]) == [] and not calls
    detector.threshold = 0.0
    detector(frames[:1])
    assert calls  # so the hook does count


def test_only_persons_are_people(make_person_model, tiny_detectors, frames):
    pose = tiny_detectors[1]
    assert sum(map(len, ViTPoseDetector(make_person_model(("Person", "cat", "kite")), pose)(frames))) == 0
    with pytest.raises(ValueError, match="has no label 'person' among its 3: dog, cat, kite"):
        ViTPoseDetector(make_person_model(("dog", "cat", "kite")), pose)


def test_the_coco_expert_of_a_mixture(make_pose_model, tiny_detectors, frames):
    detector = ViTPoseDetector(tiny_detectors[0], make_pose_model(num_experts=2))
    before = detector(frames)

    def forget(number):
        for layer in detector.pose_model.backbone.encoder.layer:
            torch.nn.init.constant_(layer.mlp.experts[number].weight, 3.0)

    forget(1)
    same(before, detector(frames), rtol=0)
    forget(0)
    assert not np.array_equal(before[0].confidence, detector(frames)[0].confidence)


def test_joint_sets(make_pose_model, tiny_detectors, frames):
    whole = ViTPoseDetector(tiny_detectors[0], make_pose_model(133))
    assert get_skeleton(whole.skeleton).num_joints == 133
    assert whole(frames[:1])[0].keypoints_2d.shape == (3, 133, 2)
    with pytest.raises(ValueError, match=r"has 5 joints; known are 17 \(coco_17\) or 133"):
        ViTPoseDetector(tiny_detectors[0], make_pose_model(5))


def test_loading_is_quiet_without_torchvision(tiny_detectors, capfd, recwarn):
    ViTPoseDetector(*tiny_detectors)
    assert "torchvision" not in capfd.readouterr().err
    assert not list(recwarn)


def test_models_that_are_not_there(tiny_detectors, tmp_path, monkeypatch):
    person, pose = tiny_detectors
    with pytest.raises(OSError, match=r"person_model '.*nowhere' is no folder here.*Give the folder of a model"):
        ViTPoseDetector(tmp_path / "nowhere", pose)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(OSError, match=r"pose_model 'nobody/nothing' .*cannot be fetched: .* not \(completely\) in the cache"):
        ViTPoseDetector(person, "nobody/nothing", local_files_only=True)
    with pytest.raises(ValueError, match=r"person_model .* cannot be loaded: .*config\.json"):
        ViTPoseDetector(tmp_path, pose)


def test_weights_that_are_refused(tiny_detectors, tmp_path):
    person, pose = tiny_detectors
    weights = load_file(pose / "model.safetensors")

    def changed(name, change):
        folder = shutil.copytree(pose, tmp_path / name)
        (folder / "model.safetensors").unlink()
        change(folder)
        return folder

    pickled = changed("pickled", lambda folder: torch.save(weights, folder / "pytorch_model.bin"))
    with pytest.raises(OSError, match=r"pose_model .*pickled cannot be loaded: .*model\.safetensors"):
        ViTPoseDetector(person, pickled)
    broken = changed("broken", lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 99))
    with pytest.raises(ValueError, match=r"pose_model .*broken cannot be loaded"):
        ViTPoseDetector(person, broken)
    part = {key: weight for key, weight in weights.items() if not key.startswith("head")}
    headless = changed("headless", lambda folder: save_file(part, folder / "model.safetensors", {"format": "pt"}))
    with pytest.raises(ValueError, match=r"has no weights for head\.conv\.bias and 1 more: no VitPoseForPoseEstimation"):
        ViTPoseDetector(person, headless)
    with pytest.raises(ValueError, match=r"pose_model .* must be a vitpose model, not a rt_detr one"):
        ViTPoseDetector(person, person)
    no_detector = shutil.copytree(pose, tmp_path / "no_detector")
    config = json.loads((pose / "config.json").read_text())
    (no_detector / "config.json").write_text(json.dumps({**config, "id2label": {"0": "person"}, "label2id": {"person": 0}}))
    with pytest.raises(ValueError, match=r"person_model .* cannot be loaded: Unrecognized configuration class"):
        ViTPoseDetector(no_detector, pose)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.5}, r"threshold must be a score in 0\.\.1, got 1\.5"),
        ({"max_people": 0}, "max_people must be None or at least 1, got 0"),
        ({"device": "cuda:99"}, "device 'cuda:99' cannot be used here"),
        ({"device": "toaster"}, "device 'toaster' cannot be used here"),
        ({"dtype": "float7"}, "dtype must be float32, float16 or bfloat16, got 'float7'"),
    ],
)
def test_options_that_cannot_be(tiny_detectors, options, message):
    with pytest.raises(ValueError, match=message):
        ViTPoseDetector(*tiny_detectors, **options)


def test_without_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install probpose\[video\]"):
        ViTPoseDetector()
