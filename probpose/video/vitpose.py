"""The detector that ships: people by RT-DETR, their joints by ViTPose, both from Hugging Face's transformers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from probpose.devices import choose_device
from probpose.hub.client import download

from .detector import People

CROPS_AT_ONCE = 32
"""Most people in one call of the pose model; bounds the memory in frames of crowds."""

PADDING = 1.25
"""Of the box is what the image processor cuts out for the pose model."""

JOINT_SETS = {17: ("coco_17", 0), 133: ("wholebody_133", 5)}
"""Number of joints: the skeleton, and the number of its data set among those that ViTPose+ has experts for."""


class ViTPoseDetector:
    """People in frames and their 2D joints: a person detector finds boxes, and ViTPose the joints in each box.

        detector = ViTPoseDetector(pose_model="usyd-community/vitpose-plus-large")
        people = detector(frames)  # one `People` per frame

    Needs `pip install probpose[video]`. Models are read from safetensors, never from pickles, and no code is fetched with them.

    Args:
        person_model: Hub id or folder of an object detector that knows persons: RT-DETR, or another one of transformers.
        pose_model: Hub id or folder of a ViTPose or ViTPose+ with the 17 joints of COCO or the 133 of COCO-WholeBody.
        device: auto (a GPU if there is one), cpu, cuda, cuda:1, mps.
        dtype: of the weights, for example "float16" on a GPU.
        threshold: score in 0..1 above which a person counts as found.
        max_people: most people per frame, those with the best scores; default all.
        local_files_only: fetch nothing from the Hub, use what was fetched before.

    Attributes:
        skeleton: joint order of the keypoints, `coco_17` or `wholebody_133`.

    Raises:
        ImportError: transformers is not installed, or too old.
        OSError: a model is not there, cannot be fetched, or has no safetensors weights.
        ValueError: a folder with another kind of model, one that knows no persons or whose joints nobody knows; a threshold,
            number of people or device that cannot be.
    """

    def __init__(
        self,
        person_model: str | Path = "PekingU/rtdetr_r50vd_coco_o365",
        pose_model: str | Path = "usyd-community/vitpose-base-simple",
        *,
        device: str = "auto",
        dtype: str | torch.dtype = "float32",
        threshold: float = 0.5,
        max_people: int | None = None,
        local_files_only: bool = False,
    ) -> None:
        try:
            from transformers import AutoModelForObjectDetection, VitPoseForPoseEstimation
        except ImportError as error:
            raise ImportError(f"ViTPoseDetector needs transformers: pip install probpose[video] ({error})") from error
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold must be a score in 0..1, got {threshold}")
        if max_people is not None and max_people < 1:
            raise ValueError(f"max_people must be None or at least 1, got {max_people}")
        dtype = getattr(torch, dtype, dtype) if isinstance(dtype, str) else dtype
        if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise ValueError(f"dtype must be float32, float16 or bfloat16, got {dtype!r}")
        self.threshold, self.max_people = threshold, max_people
        self.device = choose_device(device)

        person = _folder(person_model, "person_model", local_files_only)
        pose = _folder(pose_model, "pose_model", local_files_only)
        labels = _config(person, "person_model").id2label
        self._persons = [label for label, name in labels.items() if name.lower() == "person"]
        if not self._persons:
            first = ", ".join(list(labels.values())[:10])
            raise ValueError(f"person_model {person_model} has no label 'person' among its {len(labels)}: {first}")
        config = _config(pose, "pose_model", "vitpose")
        if config.num_labels not in JOINT_SETS:
            known = " or ".join(f"{joints} ({name})" for joints, (name, _) in JOINT_SETS.items())
            raise ValueError(f"pose_model {pose_model} has {config.num_labels} joints; known are {known}")
        self.skeleton, dataset = JOINT_SETS[config.num_labels]
        self._expert = dataset if config.backbone_config.num_experts > 1 else None

        self.person_processor, self.person_model = _load(AutoModelForObjectDetection, person, "person_model", dtype)
        self.pose_processor, self.pose_model = _load(VitPoseForPoseEstimation, pose, "pose_model", dtype)
        self.person_model.to(self.device)
        self.pose_model.to(self.device)

    @torch.inference_mode()
    def __call__(self, frames: list[np.ndarray]) -> list[People]:
        """The people in each of the frames `(height, width, 3)`, uint8, RGB; boxes are cut off at the frame."""
        found = self._persons_in(frames) if len(frames) else []
        crops = [(frame, box) for frame, (boxes, _) in zip(frames, found) for box in boxes]
        joints = self.pose_model.config.num_labels
        keypoints, confidence = np.empty((len(crops), joints, 2)), np.empty((len(crops), joints))
        for start in range(0, len(crops), CROPS_AT_ONCE):
            chunk = slice(start, start + CROPS_AT_ONCE)
            keypoints[chunk], confidence[chunk] = self._joints_in(*zip(*crops[chunk]))
        people, first = [], 0
        for boxes, score in found:
            mine = slice(first, first := first + len(boxes))
            people.append(People(keypoints[mine], confidence[mine], boxes, score))
        return people

    def _persons_in(self, frames: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Boxes `(P, 4)`, x0 y0 x1 y1 in pixels, and scores `(P,)` of each frame, best first."""
        inputs = self.person_processor(images=list(frames), input_data_format="channels_last", return_tensors="pt")
        outputs = self.person_model(**inputs.to(self.device, self.person_model.dtype))
        outputs.logits, outputs.pred_boxes = outputs.logits.float(), outputs.pred_boxes.float()
        sizes = [frame.shape[:2] for frame in frames]
        results = self.person_processor.post_process_object_detection(outputs, threshold=self.threshold, target_sizes=sizes)
        found = []
        for result, (height, width) in zip(results, sizes):
            labels, boxes, scores = (result[key].numpy(force=True) for key in ("labels", "boxes", "scores"))
            boxes = boxes.clip(0, [width, height, width, height])
            persons = np.flatnonzero(np.isin(labels, self._persons) & (boxes[:, 2:] - boxes[:, :2] >= 1).all(1))
            best = persons[np.argsort(-scores[persons], kind="stable")][: self.max_people]
            found.append((boxes[best], scores[best]))
        return found

    def _joints_in(self, frames: Sequence[np.ndarray], boxes: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Keypoints `(P, joints, 2)` in pixels and heatmap peaks `(P, joints)` of one person per frame, in that box."""
        corner, end = np.split(np.stack(boxes), 2, axis=1)
        size = end - corner
        corner_and_size = [[box] for box in np.concatenate([corner, size], axis=1).tolist()]
        inputs = self.pose_processor(images=list(frames), boxes=corner_and_size, input_data_format="channels_last", return_tensors="pt")
        if self._expert is not None:
            inputs["dataset_index"] = torch.full((len(boxes),), self._expert)
        outputs = self.pose_model(**inputs.to(self.device, self.pose_model.dtype))
        outputs.heatmaps = outputs.heatmaps.float()
        results = self.pose_processor.post_process_pose_estimation(outputs, boxes=corner_and_size)
        keypoints = np.stack([person["keypoints"].numpy() for (person,) in results])
        peaks = np.stack([person["scores"].numpy() for (person,) in results])

        # Sharpening a peak that is none can throw it anywhere. What lies outside the crop was not seen.
        # (A heatmap without a positive value has no peak; `People` takes it for not seen, too.)
        aspect = self.pose_processor.size["width"] / self.pose_processor.size["height"]
        width = PADDING * np.maximum(size[:, 0], size[:, 1] * aspect)
        reach = np.stack([width, width / aspect], axis=1)[:, None] / 2
        inside = (np.abs(keypoints - (corner + size / 2)[:, None]) <= reach).all(-1)
        return keypoints, np.where(inside, peaks, 0)


def _folder(model: str | Path, role: str, local_files_only: bool) -> Path:
    """The folder that a model is in, fetched if it has to be."""
    if Path(model).is_dir():
        return Path(model)
    try:
        return download(str(model), local_files_only=local_files_only)
    except (OSError, ValueError) as error:
        raise OSError(
            f"{role} {str(model)!r} is no folder here, and cannot be fetched: {error}. Give the folder of a model that was fetched "
            "elsewhere, or find the keypoints with another tool and read its file"
        ) from error


def _config(folder: Path, role: str, model_type: str | None = None) -> Any:
    from transformers import AutoConfig

    with _reading(folder, role):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if model_type not in (None, config.model_type):
        raise ValueError(f"{role} {folder} must be a {model_type} model, not a {config.model_type} one")
    return config


def _load(kind: Any, folder: Path, role: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """Image processor and model, which is in evaluation mode."""
    from transformers import AutoImageProcessor

    with _reading(folder, role):
        # The backend that is always there, so that frames are scaled alike with torchvision and without.
        processor = AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False)
        model, loaded = kind.from_pretrained(folder, dtype=dtype, use_safetensors=True, trust_remote_code=False, output_loading_info=True)
    if missing := sorted(set(loaded["missing_keys"]) & dict(model.named_parameters()).keys()):
        raise ValueError(f"{role} {folder} has no weights for {missing[0]} and {len(missing) - 1} more: no {type(model).__name__}")
    return processor, model


@contextmanager
def _reading(folder: Path, role: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        kind = OSError if isinstance(error, OSError) else ValueError
        raise kind(f"{role} {folder} cannot be loaded: {(str(error) or type(error).__name__).splitlines()[0]}") from error
