"""Ten lines from 2D keypoints to a distribution over 3D motion.

python examples/sample_hypotheses.py
"""

from pathlib import Path

import torch

from probpose import ProbPosePipeline, read_keypoints

here = Path(__file__).resolve().parent
track = read_keypoints(here / "data" / "basketball.npz")[0]
pipe = ProbPosePipeline.from_pretrained(here.parent / "hub" / "models" / "d3dp-mocap17")
out = pipe(
    track.keypoints_2d,
    confidence=track.confidence,
    image_size=track.image_size,
    skeleton=track.skeleton,
    num_hypotheses=20,
    generator=torch.Generator().manual_seed(0),
)
print(f"hypotheses {tuple(out.hypotheses.shape)}, pose {tuple(out.pose.shape)}, root {tuple(out.root.shape)} in metres")
print(f"mean uncertainty {1000 * out.uncertainty.mean():.0f} mm")
for joint in ("hip", "right wrist", "left ankle"):
    index = {"hip": 0, "right wrist": 16, "left ankle": 6}[joint]
    print(f"  {joint}: {1000 * out.uncertainty[:, index].mean():.0f} mm")
