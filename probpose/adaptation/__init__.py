"""Adapting a lifter to a new scene from its 2D keypoints alone: source poses are placed, and changed, until they look like the target's.

PoseDA (Chai et al., ICCV 2023, arXiv 2303.16456) and PoSynDA (Liu et al., ACM Multimedia 2023, arXiv 2308.09678).
"""

from diffusers.models.modeling_utils import ModelMixin  # diffusers finds the loader of a component by this name

from .adversary import PoseAdversary
from .alignment import global_position_alignment, plausible_depth
from .augmentor import AugmentedPose, PoseAugmentor, anatomy, bend_bones, bone_vectors, rotate_about_root, scale_bones, unit_bones
from .build import Build, body_size, change_build, fit_build
from .discriminators import KeypointDiscriminator, StructureDiscriminator, part_grams
from .losses import (
    MultiHypothesisLoss,
    bend_loss,
    best_hypothesis_composite,
    discriminator_loss,
    feedback_loss,
    generator_loss,
    hardness_ratio,
    multi_hypothesis_loss,
    range_loss,
    rectified_loss,
)
from .pool import ReplayPool

for _public in (PoseAugmentor, KeypointDiscriminator, StructureDiscriminator):
    _public.__module__ = __name__

__all__ = [
    "AugmentedPose",
    "Build",
    "KeypointDiscriminator",
    "ModelMixin",
    "MultiHypothesisLoss",
    "PoseAdversary",
    "PoseAugmentor",
    "ReplayPool",
    "StructureDiscriminator",
    "anatomy",
    "bend_bones",
    "bend_loss",
    "best_hypothesis_composite",
    "body_size",
    "bone_vectors",
    "change_build",
    "discriminator_loss",
    "feedback_loss",
    "fit_build",
    "generator_loss",
    "global_position_alignment",
    "hardness_ratio",
    "multi_hypothesis_loss",
    "part_grams",
    "plausible_depth",
    "range_loss",
    "rectified_loss",
    "rotate_about_root",
    "scale_bones",
    "unit_bones",
]
