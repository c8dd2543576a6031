"""Denoisers and lifters, all diffusers `ModelMixin`s with one calling convention."""

from diffusers.models.modeling_utils import ModelMixin  # diffusers finds the loader of a component by this name

from .adapters import AdapterMixin
from .attention_aggregator import AttentionAggregator, AttentionAggregatorOutput
from .frame_transformer import FrameTransformerModel
from .graformer import GraFormerDenoiser, GraFormerLifter
from .mixste import MixSTEModel
from .motion_prior import MotionPriorModel
from .outputs import PoseModelOutput
from .pose_refiner import PoseRefiner

# A saved pipeline names its components by this public module, so that moving a file never breaks a checkpoint.
for _public in (
    AttentionAggregator,
    AttentionAggregatorOutput,
    FrameTransformerModel,
    GraFormerDenoiser,
    GraFormerLifter,
    MixSTEModel,
    MotionPriorModel,
    PoseModelOutput,
    PoseRefiner,
):
    _public.__module__ = __name__

__all__ = [
    "AdapterMixin",
    "AttentionAggregator",
    "AttentionAggregatorOutput",
    "FrameTransformerModel",
    "GraFormerDenoiser",
    "GraFormerLifter",
    "MixSTEModel",
    "ModelMixin",
    "MotionPriorModel",
    "PoseModelOutput",
    "PoseRefiner",
]
