"""Who keeps whom apart when two people meet: `probpose.video.track_people`, its parts, and the trackers of boxes.

    python tests/video/measure_tracking.py --seeds 5 [--garbled 0.05]

Scenes are those of `scenes.py`: six ways to meet, three speeds, three frame rates, one of the two hidden for 0 to 20 frames. Printed are,
in per cent, the scenes in which both have at the end the identity of the beginning; how often per scene a detection has another identity
than the one before it of the same person; and, in per cent, the detections that are in no track of at least 0.2 seconds.
"""

import argparse
from collections.abc import Callable, Iterator
from itertools import product

import numpy as np
from scenes import MEETINGS, Scene, meet
from supervision import Detections
from tqdm import tqdm
from trackers import BoTSORTTracker, ByteTrackTracker, CBIoUTracker, OCSORTTracker

from probpose.data.keypoints import link
from probpose.video.tracking import _follow_boxes, _rejoin

BELIEVE_ALL = {"track_activation_threshold": 0.3, "high_conf_det_threshold": 0.3, "minimum_consecutive_frames": 1}


def boxes_only(make: Callable[[float], object]) -> Callable[[Scene], np.ndarray]:
    def follow(scene: Scene) -> np.ndarray:
        tracker, identity = make(scene.fps), []
        for found in scene.people:
            place = {"place": np.arange(len(found))}
            kinds = np.zeros(len(found), int)
            followed = tracker.update(Detections(found.boxes.astype(np.float32), None, found.score.astype(np.float32), kinds, data=place))
            identity.append(np.full(len(found), -1))
            if len(followed):
                identity[-1][followed.data["place"]] = followed.tracker_id
        return np.concatenate(identity)

    return follow


def poses(scene: Scene) -> np.ndarray:
    frame, keypoints, _ = scene.flat()
    return link(frame, keypoints, round(scene.fps), scene.fps)


def poses_and_boxes(scene: Scene) -> np.ndarray:
    identity = poses(scene)
    _rejoin(identity, scene.flat()[0], _follow_boxes(scene.people))
    return identity


METHODS = {
    "ByteTrack": boxes_only(lambda fps: ByteTrackTracker(frame_rate=fps, **BELIEVE_ALL)),
    "C-BIoU": boxes_only(lambda fps: CBIoUTracker(frame_rate=fps, **BELIEVE_ALL)),
    "BoT-SORT": boxes_only(lambda fps: BoTSORTTracker(frame_rate=fps, enable_cmc=False, **BELIEVE_ALL)),
    "OC-SORT": boxes_only(
        lambda fps: OCSORTTracker(frame_rate=fps, minimum_consecutive_frames=1, high_conf_det_threshold=0.3, minimum_iou_threshold=0.1)
    ),
    "poses": poses,
    "poses and boxes": poses_and_boxes,
}


def all_scenes(seeds: int, garbled: float) -> Iterator[Scene]:
    number = 0
    for meeting, fps, speed, hidden in product(MEETINGS, (25, 30, 60), (0.5, 0.8, 1.6), (0, 6, 12, 20)):
        if meeting == "turn" and hidden > 6:  # nobody could tell
            continue
        for _ in range(seeds):
            number += 1
            yield meet(meeting, fps=fps, speed=speed, hidden=hidden, garbled=garbled, seed=number)


def score(scene: Scene, identity: np.ndarray) -> tuple[bool, int, float]:
    """Both kept, changes of identity, share of the detections without a track."""
    _, _, person = scene.flat()
    numbers, counts = np.unique(identity, return_counts=True)
    brief = numbers[counts < max(2, round(0.2 * scene.fps))]
    identity = np.where(np.isin(identity, brief), -1, identity)
    ends, changes = [], 0
    for who in (0, 1):
        own = identity[(person == who) & (identity >= 0)]
        changes += int((np.diff(own) != 0).sum())
        fifth = max(1, len(own) // 5)
        ends.append([np.bincount(part).argmax() if len(part) else -1 - who for part in (own[:fifth], own[-fifth:])])
    (a, b), (c, d) = ends
    return a == b and c == d and a != c, changes, float((identity[person >= 0] < 0).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="scenes of each kind")
    parser.add_argument("--garbled", type=float, default=0.0, help="share of the detections of which all joints are wrong")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD", help=", ".join(METHODS))
    arguments = parser.parse_args()
    found: dict[str, list] = {name: [] for name in arguments.methods}
    for scene in tqdm(list(all_scenes(arguments.seeds, arguments.garbled))):
        for name, scores in found.items():
            scores.append(score(scene, METHODS[name](scene)))
    print("| followed by | both keep their identity | changes per scene | without a track |\n|---|---:|---:|---:|")
    for name, scores in found.items():
        kept, changes, lost = np.mean(scores, axis=0)
        print(f"| {name} | {100 * kept:.1f} % | {changes:.2f} | {100 * lost:.2f} % |")


if __name__ == "__main__":
    main()
