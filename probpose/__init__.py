"""probpose: probabilistic 3D human pose.

2D keypoints in, K sampled 3D motions, one aggregated pose and an uncertainty out.

    from probpose import ProbPosePipeline
    pipe = ProbPosePipeline.from_pretrained("hub/models/d3dp-mocap17")
    out = pipe(keypoints_2d, image_size=(1920, 1080), skeleton="coco_17")
    out.hypotheses, out.pose, out.uncertainty

Names are imported on first use: `import probpose` itself loads neither torch nor diffusers.
"""

from __future__ import annotations

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .geometry import Camera as Camera
    from .mixtures import PoseMixture as PoseMixture
    from .pipelines import D3DPPipeline as D3DPPipeline
    from .pipelines import DiffPosePipeline as DiffPosePipeline
    from .pipelines import ProbPosePipeline as ProbPosePipeline

_HOME = {
    "Camera": "probpose.geometry",
    "D3DPPipeline": "probpose.pipelines",
    "DiffPosePipeline": "probpose.pipelines",
    "PoseMixture": "probpose.mixtures",
    "ProbPosePipeline": "probpose.pipelines",
    "convert_original": "probpose.hub",
    "get_skeleton": "probpose.skeletons",
    "read_keypoints": "probpose.data",
    "read_video": "probpose.video",
    "sample_person": "probpose.results",
}

__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return metadata.version("probpose")
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'probpose' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
