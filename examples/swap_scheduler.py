"""The scheduler is a part like any other: sample with diffusers' DDIM in place of D3DP's own.

    python examples/swap_scheduler.py

Where the step count divides 1000 the two define the same steps, so with the same noise they agree up to float32 rounding of DDIM's tables.
"""

from pathlib import Path

import torch
from diffusers import DDIMScheduler

from probpose import ProbPosePipeline, read_keypoints

here = Path(__file__).resolve().parent
track = read_keypoints(here / "data" / "basketball.npz")[0]
pipe = ProbPosePipeline.from_pretrained(here.parent / "hub" / "models" / "d3dp-mocap17")
settings = {
    "confidence": track.confidence,
    "image_size": track.image_size,
    "num_hypotheses": 5,
    "num_inference_steps": 4,
    "noise": torch.randn(5, len(track), 17, 3, generator=torch.Generator().manual_seed(0)),
}
stochastic = pipe(track.keypoints_2d, **settings)

pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, eta=0.0)
deterministic = pipe(track.keypoints_2d, **settings)

pipe.scheduler = DDIMScheduler(
    beta_schedule="squaredcos_cap_v2",
    prediction_type="sample",
    timestep_spacing="trailing",
    clip_sample=True,
    clip_sample_range=1.1,
    set_alpha_to_one=True,
)
ddim = pipe(track.keypoints_2d, **settings)

for name, out in (("D3DP, eta 1", stochastic), ("D3DP, eta 0", deterministic), ("DDIM", ddim)):
    distance = 1000 * (out.pose - deterministic.pose).norm(dim=-1).mean()
    print(f"{name:12s} mean uncertainty {1000 * out.uncertainty.mean():5.1f} mm, distance to D3DP with eta 0 {distance:5.2f} mm")
