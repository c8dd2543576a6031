"""Guidance: energies that say how well motions agree with what is known, and guides that move motions towards lower ones (torch only)."""

from .energies import Energy, EnergySum, Expansion, absolute
from .guides import GaussNewtonGuide, GradientGuide, GuideOutput
from .motion import BoneLengthEnergy, GroundContactEnergy, InpaintingEnergy, SmoothnessEnergy
from .reprojection import GaussianReprojectionEnergy, HeatmapEnergy, ReprojectionEnergy, oracle_weights

__all__ = [
    "BoneLengthEnergy",
    "Energy",
    "EnergySum",
    "Expansion",
    "GaussNewtonGuide",
    "GaussianReprojectionEnergy",
    "GradientGuide",
    "GroundContactEnergy",
    "GuideOutput",
    "HeatmapEnergy",
    "InpaintingEnergy",
    "ReprojectionEnergy",
    "SmoothnessEnergy",
    "absolute",
    "oracle_weights",
]
