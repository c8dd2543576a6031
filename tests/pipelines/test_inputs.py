"""Bad input is one ValueError that names the value and what is allowed, before any work is done."""

import math

import numpy as np
import pytest
import torch
from tiny_pipelines import IMAGE, frame_pipeline, keypoints_of, mixste_pipeline, seeded, spy

from probpose.geometry import Camera, h36m_camera


@pytest.fixture(scope="module")
def pipe():
    return frame_pipeline()


def with_value(value, *index):
    keypoints = keypoints_of()
    keypoints[index] = value
    return keypoints


KEYPOINTS = keypoints_of()  # (2, 7, 17, 2)
NOISE = torch.zeros(2, 3, 7, 17, 3)

BAD_CALLS = {
    # keypoints
    "a string": ({"keypoints_2d": "walk.json"}, "keypoints_2d must be a numeric array.*str"),
    "nothing": ({"keypoints_2d": None}, "keypoints_2d must be a numeric array.*NoneType"),
    "ragged": ({"keypoints_2d": [[[0.0, 1.0]], [[0.0]]]}, "keypoints_2d must be a numeric array.*list"),
    "objects": ({"keypoints_2d": np.array([[{}]])}, "keypoints_2d must be a numeric array.*ndarray"),
    "complex": ({"keypoints_2d": KEYPOINTS + 0j}, "real numbers.*complex64"),
    "booleans": ({"keypoints_2d": KEYPOINTS > 0}, "pixel coordinates, got booleans"),
    "rank 2": ({"keypoints_2d": KEYPOINTS[0, 0]}, r"\(\[batch,\] frames, joints, 2\), got \(17, 2\)"),
    "rank 5": ({"keypoints_2d": KEYPOINTS[None]}, r"got \(1, 2, 7, 17, 2\)"),
    "with confidences": ({"keypoints_2d": torch.cat([KEYPOINTS, KEYPOINTS[..., :1]], -1)}, "confidences separately"),
    "joints": ({"keypoints_2d": KEYPOINTS[:, :, :15]}, r"'h36m_17' has 17 joints.*\(2, 7, 15, 2\).*coco_17"),
    "joints of the skeleton": ({"skeleton": "body_25"}, r"has 25 joints.*\(2, 7, 17, 2\)"),
    "unknown skeleton": ({"skeleton": "octopus_8"}, "octopus_8"),
    "no frames": ({"keypoints_2d": KEYPOINTS[:, :0]}, r"no frames: shape \(2, 0, 17, 2\)"),
    "no frames, unbatched": ({"keypoints_2d": KEYPOINTS[0, :0]}, r"no frames: shape \(0, 17, 2\)"),
    "no clips": ({"keypoints_2d": KEYPOINTS[:0]}, r"no clips: shape \(0, 7, 17, 2\)"),
    "infinite": ({"keypoints_2d": with_value(math.inf, 1, 2, 3, 0)}, r"infinite value at index \[1, 2, 3, 0\].*NaN"),
    "all missing": ({"keypoints_2d": with_value(math.nan, 1)}, "clip 1 of the batch has no observed keypoint"),
    "normalised": ({"keypoints_2d": KEYPOINTS / 1920}, "pixels of the 1920x1080 image.*look normalised"),
    "conversion of nothing": ({"conversion": "demo"}, "conversion='demo'.*'h36m_17'"),
    "unknown conversion": ({"skeleton": "coco_17", "conversion": "magic"}, "magic"),
    # confidence
    "confidence, shape": ({"confidence": torch.ones(2, 7)}, r"confidence must have shape \(2, 7, 17\).*got \(2, 7\)"),
    "confidence, above": ({"confidence": torch.full((2, 7, 17), 1.5)}, "confidence must lie in 0..1, got values from 1.5 to 1.5"),
    "confidence, below": ({"confidence": torch.full((2, 7, 17), -0.1)}, "0..1, got values from -0.1"),
    "confidence, infinite": ({"confidence": torch.full((2, 7, 17), math.inf)}, "0..1, got values from inf"),
    "confidence, none": ({"confidence": torch.zeros(2, 7, 17)}, "clip 0 of the batch has no observed keypoint"),
    "confidence, text": ({"confidence": "high"}, "confidence must be a numeric array.*str"),
    # image size and camera
    "no image size": ({"image_size": None}, r"image_size=\(width, height\).*camera"),
    "image size zero": ({"image_size": (0, 1080)}, r"positive.*\(0, 1080\)"),
    "image size negative": ({"image_size": (1920, -1)}, r"positive.*\(1920, -1\)"),
    "image size number": ({"image_size": 1920}, r"\(width, height\) in pixels, got 1920"),
    "image size text": ({"image_size": "1920x1080"}, r"\(width, height\) in pixels, got '1920x1080'"),
    "image size of three": ({"image_size": (3, 1920, 1080)}, r"\(width, height\) in pixels"),
    "image size nan": ({"image_size": (math.nan, 1080)}, r"\(width, height\) in pixels"),
    "camera vector": ({"camera": torch.zeros(9)}, "camera must be a probpose.geometry.Camera, got Tensor"),
    "camera batch": ({"camera": Camera(torch.ones(3, 2), torch.ones(3, 2))}, r"one per clip \(2\).*\(3, 2\)"),
    "camera per frame": ({"camera": Camera(torch.ones(2, 7, 2), torch.ones(2, 7, 2))}, r"one per clip \(2\).*\(2, 7, 2\)"),
    "contradiction": ({"camera": h36m_camera(0)}, r"image_size=\(1920, 1080\) contradicts.*\(1000, 1002\)"),
    # root
    "root behind": ({"root": torch.tensor([0.0, 0.0, -4.0]).expand(2, 7, 3)}, "in front of the camera.*-4"),
    "root shape": ({"root": torch.ones(2, 3)}, r"root must have shape \(2, 7, 3\), got \(2, 3\)"),
    "root nan": ({"root": torch.full((2, 7, 3), math.nan)}, "root must be finite, but 42"),
    "root text": ({"root": "here"}, "root must be a numeric array.*str"),
    # sampling
    **{f"K {v!r}": ({"num_hypotheses": v}, f"num_hypotheses must be an integer of at least 1, got {v!r}") for v in (0, -1, True, 2.0, "2")},
    **{f"steps {v!r}": ({"num_inference_steps": v}, f"num_inference_steps must be an integer from 1 to 1000, got {v!r}")
       for v in (0, -3, False, 1.5, 1001)},
    "flip": ({"flip": "sometimes"}, "flip must be one of.*every_step.*last_step.*False.*'sometimes'"),
    "share": ({"share_first_step": "yes"}, "share_first_step must be True or False, got 'yes'"),
    "eta": ({"eta": 1.5}, r"eta must lie in 0..1, got 1.5"),
    "eta text": ({"eta": "1"}, r"eta must lie in 0..1, got '1'"),
    "generators": ({"generator": [torch.Generator()]}, r"one per clip \(2\)"),
    "no generators": ({"generator": []}, r"one per clip \(2\)"),
    "seed": ({"generator": 42}, "torch.Generator.*got 42"),
    "seeds": ({"generator": [1, 2]}, r"torch.Generator.*got \[1, 2\]"),
    "noise shape": ({"noise": NOISE[:, :2]}, r"noise must have shape \(2, 3, 7, 17, 3\).*draws, got \(2, 2, 7, 17, 3\)"),
    "noise rank": ({"noise": NOISE[0]}, r"noise must have shape.*got \(3, 7, 17, 3\)"),
    "noise draws": ({"noise": NOISE.expand(2, -1, -1, -1, -1, -1)}, "1 draw or at least 3 in 3 steps, got 2"),
    "no noise draws": ({"noise": NOISE.expand(0, -1, -1, -1, -1, -1)}, r"noise must have shape.*got \(0, 2, 3, 7, 17, 3\)"),
    "noise nan": ({"noise": NOISE + math.nan}, "noise must be finite, but 2142"),
    "noise text": ({"noise": "white"}, "noise must be a numeric array.*str"),
    **{f"batch {v!r}": ({"max_batch_size": v}, f"max_batch_size must be an integer of at least 1, got {v!r}")
       for v in (0, -1, True, 1.0, None)},
    # output
    "aggregation": ({"aggregation": "best"}, "aggregation must be None.*'jpma'.*'best'"),
    "aggregation number": ({"aggregation": 3}, "aggregation must be None.*got 3"),
    "output type": ({"output_type": "pil"}, "output_type must be 'pt' or 'np', got 'pil'"),
    **{f"fps {v!r}": ({"fps": v}, f"fps must be a positive number, got {v!r}") for v in (0, -30.0, True, "30", None, math.inf, math.nan)},
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_bad_calls(pipe, arguments, message):
    call = {"keypoints_2d": KEYPOINTS, "image_size": IMAGE, "num_hypotheses": 3, "num_inference_steps": 3, "generator": seeded()}
    calls = spy(pipe.denoiser)
    with pytest.raises(ValueError, match=message):
        pipe(**call | arguments)
    assert not calls, "the network was called in spite of bad input"


def test_unbatched_messages_speak_of_unbatched_shapes(pipe):
    options = {"image_size": IMAGE, "num_hypotheses": 3}
    with pytest.raises(ValueError, match=r"confidence must have shape \(7, 17\).*got \(17, 7\)"):
        pipe(KEYPOINTS[0], torch.ones(17, 7), **options)
    with pytest.raises(ValueError, match=r"root must have shape \(7, 3\), got \(1, 7, 3\)"):
        pipe(KEYPOINTS[0], root=torch.ones(1, 7, 3), **options)
    with pytest.raises(ValueError, match=r"noise must have shape \(3, 7, 17, 3\).*got \(1, 3, 7, 17, 3, 1\)"):
        pipe(KEYPOINTS[0], noise=NOISE[:1, ..., None], **options)


def test_a_camera_without_image_size_is_enough_only_for_a_canonical_camera(pipe):
    camera = Camera([1000.0, 1000.0], [960.0, 540.0])
    options = {"num_hypotheses": 1, "num_inference_steps": 1}
    assert pipe(KEYPOINTS, camera=camera, **options).camera.image_size is None
    with pytest.raises(ValueError, match=r"normalises by the image width.*image_size"):
        mixste_pipeline()(KEYPOINTS, camera=camera, **options)
    assert mixste_pipeline()(KEYPOINTS, camera=camera, image_size=IMAGE, **options).hypotheses.isfinite().all()


def test_what_only_looks_bad_is_accepted(pipe):
    options = {"image_size": [1920.0, 1080], "num_hypotheses": np.int64(2), "num_inference_steps": np.int32(2)}
    missing_frame = with_value(math.nan, slice(None), 3)
    far_outside = KEYPOINTS - 5000
    single = torch.full((2, 7, 17, 2), math.nan)
    single[:, 3, 5] = KEYPOINTS[:, 3, 5]
    for keypoints in (missing_frame, far_outside, single):
        out = pipe(keypoints, fps=np.float32(25), max_batch_size=np.int64(3), generator=(seeded(1), seeded(2)), **options)
        assert all(torch.isfinite(out[name]).all() for name in ("hypotheses", "pose", "uncertainty", "root"))
        assert (out.root[..., 2] > 0).all()
    same_size = pipe(KEYPOINTS, camera=Camera.from_image_size(*IMAGE), **options)
    assert same_size.camera.image_size == IMAGE
