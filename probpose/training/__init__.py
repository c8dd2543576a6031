"""Training on 🤗 Accelerate: `probpose train CONFIG.yaml`. Names are imported on first use.

Raises:
    ImportError: on import, when a package of the training extra is missing.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_HOME = {
    "AggregatorConfig": "config",
    "AggregatorTrainer": "aggregator",
    "CalibrationReport": "calibration",
    "DiffPoseConfig": "config",
    "DiffPoseTrainer": "diffpose",
    "LifterConfig": "config",
    "LifterTrainer": "lifter",
    "PriorConfig": "config",
    "PriorTrainer": "prior",
    "Trainer": "trainer",
    "TrainingConfig": "config",
    "calibrate": "calibration",
    "load_data_section": "config",
    "load_recipe": "config",
}

__all__ = [*sorted(_HOME), "train"]

if _missing := [name for name in ("accelerate", "pydantic", "tensorboard", "yaml") if find_spec(name) is None]:
    raise ImportError(f"training needs {', '.join(_missing)}: pip install probpose[train]")


def train(config_path: str | Path, resume: bool = False, overwrite: bool = False) -> Path:
    """Train by a recipe; returns the folder of the final pipeline, or of the lifter.

    Args:
        config_path: a YAML recipe of a denoiser (`TrainingConfig`), a lifter (`LifterConfig`), DiffPose's denoiser (`DiffPoseConfig`),
            a motion prior (`PriorConfig`) or a learned aggregator (`AggregatorConfig`); paths in it are relative to the working directory.
        resume: continue from the newest checkpoint of the recipe's `output_dir`; start anew where there is none.
        overwrite: discard the checkpoints that are there and start anew.

    Raises:
        FileNotFoundError: the recipe, a motion archive or `initialise_from` does not exist.
        FileExistsError: `output_dir` holds checkpoints and neither `resume` nor `overwrite` was asked for.
        ValueError: a wrong recipe, with its fields named; or one that does not continue the run in `output_dir`.
        FloatingPointError: the loss is not finite any more; the checkpoints before it stay as they are.
    """
    from .config import load_recipe

    recipe = load_recipe(config_path)
    home, name = _TRAINERS[type(recipe).__name__]
    return getattr(import_module(f"{__name__}.{home}"), name)(recipe, resume, overwrite).train()


_TRAINERS = {
    "AggregatorConfig": ("aggregator", "AggregatorTrainer"),
    "DiffPoseConfig": ("diffpose", "DiffPoseTrainer"),
    "LifterConfig": ("lifter", "LifterTrainer"),
    "PriorConfig": ("prior", "PriorTrainer"),
    "TrainingConfig": ("trainer", "Trainer"),
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
