"""Does the uncertainty mean something? Coverage, proper scores, recalibration, conformal radii."""

from diffusers.models.modeling_utils import ModelMixin  # diffusers finds the loader of a component by this name

from .conformal import conformal_quantile, empirical_coverage, fit_conformal, one_frame_per_clip
from .coverage import coverage_curve, ece, ece_of_curve, hypothesis_centre, pit, signed_miscalibration
from .recalibration import Recalibration
from .scores import crps, energy_score, gaussian_nll, nll_of_std, sharpness

# A saved pipeline names its components by this public module, so that moving a file never breaks a checkpoint.
Recalibration.__module__ = __name__

__all__ = [
    "ModelMixin",
    "Recalibration",
    "conformal_quantile",
    "coverage_curve",
    "crps",
    "ece",
    "ece_of_curve",
    "empirical_coverage",
    "energy_score",
    "fit_conformal",
    "gaussian_nll",
    "hypothesis_centre",
    "nll_of_std",
    "one_frame_per_clip",
    "pit",
    "sharpness",
    "signed_miscalibration",
]
