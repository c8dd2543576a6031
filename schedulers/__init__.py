"""Noise schedules and samplers, all diffusers `SchedulerMixin`s."""

from diffusers.schedulers.scheduling_utils import SchedulerMixin  # diffusers finds a component's loader by this name

from .scheduling_d3dp import D3DPScheduler, D3DPSchedulerOutput
from .scheduling_energy_guided_ddim import EnergyGuidedDDIMScheduler, EnergyGuidedDDIMSchedulerOutput
from .scheduling_gmm import GMMScheduler, GMMSchedulerOutput

for _public in (
    D3DPScheduler,
    D3DPSchedulerOutput,
    EnergyGuidedDDIMScheduler,
    EnergyGuidedDDIMSchedulerOutput,
    GMMScheduler,
    GMMSchedulerOutput,
):
    _public.__module__ = __name__

__all__ = [
    "D3DPScheduler",
    "D3DPSchedulerOutput",
    "EnergyGuidedDDIMScheduler",
    "EnergyGuidedDDIMSchedulerOutput",
    "GMMScheduler",
    "GMMSchedulerOutput",
    "SchedulerMixin",
]
