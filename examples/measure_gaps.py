"""How well a person who is out of sight for a while is bridged, and whether the uncertainty knows.

    python examples/measure_gaps.py d3dp-mocap17 diffpose-mocap17 --data mocap17_test.npz --every 8

Of every clip that is long enough, all keypoints of three stretches are taken away: 5, 15 and 30 frames. Printed are, for frames that were
seen and for each stretch: the mean error of the pose (MPJPE), its root mean square and the one that the pipeline predicts
(`uncertainty`), in millimetres, and the share of joints that lie within `radius` of the pose, which was fitted for 90 %.
"""

import argparse

import numpy as np
import torch
from tqdm import tqdm

from probpose import ProbPosePipeline
from probpose.data import load_dataset

STRETCHES = {5: 30, 15: 60, 30: 85}
"""Length of a gap, and its first frame."""


def measure(model: str, clips: list, frames: int, hypotheses: int) -> dict[int, np.ndarray]:
    """For every length of gap, 0 for frames that were seen: error, squared error, predicted squared error, share within the radius."""
    pipe = ProbPosePipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    rows: dict[int, list[np.ndarray]] = {0: [], **{length: [] for length in STRETCHES}}
    for clip in tqdm(clips, desc=model):
        truth = clip.positions_camera[:frames]
        keypoints, confidence = clip.keypoints_2d[:frames].clone(), clip.confidence[:frames].clone()
        gap = np.zeros(len(truth), dtype=int)
        for length, start in STRETCHES.items():
            gap[start : start + length] = length
        keypoints[gap > 0], confidence[gap > 0] = torch.nan, 0
        out = pipe(
            keypoints, confidence, camera=clip.camera, image_size=clip.camera.image_size, skeleton=clip.skeleton, fps=clip.fps,
            num_hypotheses=hypotheses, generator=torch.Generator().manual_seed(0), output_type="np",
        )  # fmt: skip
        error = np.linalg.norm(out.pose - (truth - truth[:, :1]).numpy(), axis=-1)[:, 1:]
        within, squares = error <= out.radius[:, 1:], (error**2, out.uncertainty[:, 1:] ** 2)
        for length, values in rows.items():
            values.append(np.array([quantity[gap == length].mean() for quantity in (error, *squares, within)]))
    return {length: np.mean(values, axis=0) for length, values in rows.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="bundled names or folders of calibrated models")
    parser.add_argument("--data", required=True, help="data set with true 3D")
    parser.add_argument("--every", type=int, default=1, help="take every n-th clip")
    parser.add_argument("--frames", type=int, default=240, help="most frames of a clip")
    parser.add_argument("--hypotheses", type=int, default=10)
    arguments = parser.parse_args()
    needed = max(start + length for length, start in STRETCHES.items()) + 5
    clips = [clip for clip in load_dataset(arguments.data).clips if len(clip.keypoints_2d) >= needed][:: arguments.every]
    print("| model | unseen frames | error | root mean square | predicted | within the radius |\n|---|---:|---:|---:|---:|---:|")
    for model in arguments.models:
        for length, (error, squared, predicted, share) in measure(model, clips, arguments.frames, arguments.hypotheses).items():
            figures = " | ".join(f"{1000 * value:.1f}" for value in (error, squared**0.5, predicted**0.5))
            print(f"| {model} | {length} | {figures} | {100 * share:.1f} % |", flush=True)


if __name__ == "__main__":
    main()
