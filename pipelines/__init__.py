"""Pipelines: 2D keypoints in, hypotheses, aggregated pose and uncertainty out."""

# diffusers loads components only from modules that are imported already
import probpose.calibration
import probpose.models
import probpose.schedulers  # noqa: F401

from .adapting import AdaptationSettings
from .pipeline_d3dp import D3DPPipeline, SamplerSettings
from .pipeline_diffpose import DiffPosePipeline, DiffPoseSettings
from .pipeline_output import ProbPosePipelineOutput
from .pipeline_platypose import PlatyposePipeline, PlatyposeSettings
from .pipeline_posynda import AdaptationReport, PoSynDAPipeline
from .pipeline_probpose import ProbPosePipeline, fill_missing

for _public in (
    AdaptationReport,
    AdaptationSettings,
    D3DPPipeline,
    DiffPosePipeline,
    DiffPoseSettings,
    PlatyposePipeline,
    PlatyposeSettings,
    PoSynDAPipeline,
    ProbPosePipeline,
    ProbPosePipelineOutput,
    SamplerSettings,
):
    _public.__module__ = __name__

__all__ = [
    "AdaptationReport",
    "AdaptationSettings",
    "D3DPPipeline",
    "DiffPosePipeline",
    "DiffPoseSettings",
    "PlatyposePipeline",
    "PlatyposeSettings",
    "PoSynDAPipeline",
    "ProbPosePipeline",
    "ProbPosePipelineOutput",
    "SamplerSettings",
    "fill_missing",
]
