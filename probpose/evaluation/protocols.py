"""The field's protocols: what is measured, how clips are grouped, how groups become one number, and what papers do differently.

A protocol is data. `measure.py` computes what it lists for every clip, `report.py` averages and prints it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

# ---------------------------------------------------------------------------------------------------------------------
# What can be reported
# ---------------------------------------------------------------------------------------------------------------------


class Metric(NamedTuple):
    """A number of a report: its heading, its meaning with the unit, and the decimals it is printed with."""

    heading: str
    meaning: str
    digits: int = 1


SETTINGS: dict[str, tuple[str, str]] = {
    "lifter": ("Lifter", "the pipeline's lifter alone, before any diffusion"),
    "p_agg": ("P-Agg", "mean of the hypotheses"),
    "j_agg": ("J-Agg", "JPMA, the root estimated as in the pipeline"),
    "j_agg_true_root": ("J-Agg*", "JPMA with the true root and camera, the published definition"),
    "weighted": ("Weighted", "hypotheses weighted by their reprojection, the root estimated"),
    "attention": ("Attention", "the pipeline's learned aggregator"),
    "p_best": ("P-Best", "oracle: the best hypothesis of each clip or window"),
    "j_best": ("J-Best", "oracle: the best hypothesis of each joint of each frame"),
}
"""Ways to one pose, from K hypotheses (D3DP, ICCV 2023, and this library's own) or before there are any: heading and meaning."""

_MEASURES = {
    "": "MPJPE in mm: {}",
    "p2_": "MPJPE in mm after Procrustes alignment of every frame: {}",
    "p3_": "MPJPE in mm after scaling of every frame: {}",
    "pck_": "joints within 150 mm in percent: {}",
    "auc_": "mean of PCK at 0, 5, ..., 150 mm in percent: {}",
}

METRICS: dict[str, Metric] = {
    **{f"{prefix}{name}": Metric(head, text.format(what)) for prefix, text in _MEASURES.items() for name, (head, what) in SETTINGS.items()},
    "pa_mpjpe": Metric("PA", "P-Agg in mm after Procrustes alignment of every frame"),
    "n_mpjpe": Metric("N", "P-Agg in mm after scaling of every frame"),
    "min_mpjpe": Metric("min", "oracle: MPJPE in mm of the best hypothesis of each frame"),
    "min_pa_mpjpe": Metric("PA min", "oracle: the best hypothesis of each frame after Procrustes alignment, mm"),
    "mpjve": Metric("MPJVE", "velocity error of P-Agg, mm per frame"),
    "acceleration": Metric("Accel", "acceleration error of P-Agg, mm per frame²"),
    "uncertainty": Metric("Uncert", "mean root-mean-square radius of the hypotheses about their mean, mm"),
    "root": Metric("Root", "distance of the estimated root trajectory from the true one, mm"),
    "ece": Metric("ECE", "expected calibration error, 0..1", 3),
    "signed_miscalibration": Metric("Signed", "mean of coverage minus quantile; below zero: too sure", 3),
    "sharpness": Metric("Sharp", "mean distance of the hypotheses from their median, mm"),
    "energy_score": Metric("Energy", "energy score, a proper score of the whole distribution, mm"),
    "bones": Metric("Bones", "standard deviation over time of the hypotheses' bone lengths, mm"),
    "symmetry": Metric("Sym", "difference between left and right bone lengths of the hypotheses, mm"),
    "limits": Metric("Limits", "limbs of the hypotheses that bend further than bodies can, percent", 2),
    "pss": Metric("PSS@50", "hypotheses in the cluster of the true pose (pose structure score), percent"),
    "within_uncertainty": Metric("< Uncert", "joints of the aggregated pose nearer to the truth than its uncertainty, percent"),
    "within_radius": Metric("< Radius", "joints of the aggregated pose within its conformal radius of the truth, percent"),
    "radius": Metric("Radius", "mean conformal radius, mm"),
}  # fmt: skip
"""Every number that a report can hold. Those of the hypotheses come again with `_calibrated`, after the pipeline's calibrator."""

OF_HYPOTHESES = {
    "calibration": ("ece", "signed_miscalibration", "sharpness", "energy_score"),
    "plausibility": ("bones", "symmetry", "limits", "pss"),
}
"""Tables about the hypotheses rather than a pose made of them; every report has them."""

OF_UNCERTAINTY = ("within_uncertainty", "within_radius", "radius")
"""About the uncertainty of the pose that the pipeline's default aggregator makes, root joint apart; of pipelines with a calibrator."""

METRICS |= {
    f"{name}_calibrated": METRICS[name]._replace(meaning=f"{METRICS[name].meaning}, recalibrated")
    for names in OF_HYPOTHESES.values()
    for name in names
}

# ---------------------------------------------------------------------------------------------------------------------
# What original repositories do differently
# ---------------------------------------------------------------------------------------------------------------------

QUIRKS: dict[str, str] = {
    "published_windows": "windows of the model's length at 0, F, 2F, ..., the last one right-aligned, without blending; on Human3.6M the "
    "overlap is scored twice and the padding of short clips is scored, on MPI-INF-3DHP the last window wins (D3DP)",
    "p_best_batch": "one P-Best choice for a batch of windows, 4 on Human3.6M and 2 on MPI-INF-3DHP; needs published_windows (D3DP)",
    "drop_tails": "the frames behind a clip's last whole window are not scored (MotionBERT, MotionAGFormer)",
    "camera_by_last_digit": "the camera of the subject whose number is the last digit of the name: S11 is seen by S1's (Platypose)",
    "ignore_pixel_aspect": "vertical focal length = horizontal one (D3DP on MPI-INF-3DHP)",
    "count_invalid_frames": "frames that the benchmark marks as not valid are scored as well",
    "running_mean": "a sequence's numbers are the mean over it and all sequences before it (totals that are never reset: D3DP's log)",
    "exclude_root": "the root joint, whose error is zero, is left out of means over joints",
    "epipolar_14_joints": "means over the 14 joints 0-2, 4-12, 14, 15, without right ankle and wrists (EpipolarPose)",
    "procrustes_n_mpjpe": "N-MPJPE scales by the Procrustes scale, which knows the rotation (EpipolarPose)",
    "recentred_pa": "after Procrustes alignment poses are moved to the true root joint (EpipolarPose)",
    "acceleration_over_all_frames": "the acceleration error's sum is divided by all frames, two more than have one (PMCE)",
    "single_frame_ece": "coverage of one-frame clips compares every joint's radius with every joint's error (Platypose)",
}
"""Departures from the correct computation that published numbers contain, all off by default."""

EPIPOLAR_JOINTS = (0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 15)

_ALWAYS = ("exclude_root", "single_frame_ece")

# ---------------------------------------------------------------------------------------------------------------------
# The protocols
# ---------------------------------------------------------------------------------------------------------------------

SEVEN = ("lifter", "p_agg", "j_agg", "j_agg_true_root", "attention", "p_best", "j_best")


@dataclass(frozen=True)
class Block:
    """A table: its title and the keys of `METRICS` in it, a row each (or a column each, see `Protocol.groups_in_rows`)."""

    title: str
    metrics: tuple[str, ...]


@dataclass(frozen=True)
class Protocol:
    """How a data set is scored.

    Args:
        name: registry name.
        title: for the heading of a report.
        blocks: the tables; `attention` and `lifter` appear where the pipeline has an aggregator or a lifter.
        levels: tags that clips are grouped by, coarse to fine; several tags in one level are separated by spaces.
        mean_of_groups: the final number is the unweighted mean over the groups of the last level; else the mean over all frames.
        groups_in_rows: tables have a row per group instead of a row per metric.
        joint_groups: PCK and AUC are also reported per group of joints.
        columns: groups in the papers' order, and what the papers call them; others follow by name.
        pooled_column: the mean over all frames is printed beside the mean of the groups.
        overlap_counts_twice: what `published_windows` does with frames that two windows predict and with padding: all of it is scored, or
            the last window overwrites the others and padding is dropped.
        p_best_windows: windows that share a choice under the quirk `p_best_batch`.
        quirks: names of `QUIRKS` that concern it.
    """

    name: str
    title: str
    blocks: tuple[Block, ...]
    levels: tuple[str, ...] = ()
    mean_of_groups: bool = True
    groups_in_rows: bool = False
    joint_groups: bool = False
    columns: Mapping[str, str] = field(default_factory=dict)
    pooled_column: bool = False
    overlap_counts_twice: bool = True
    p_best_windows: int = 1
    quirks: tuple[str, ...] = _ALWAYS

    @property
    def metrics(self) -> tuple[str, ...]:
        """All keys of `METRICS` in its tables, calibration apart."""
        return tuple(name for block in self.blocks for name in block.metrics)

    def check_quirks(self, quirks: Iterable[str]) -> tuple[str, ...]:
        """The quirks, sorted.

        Raises:
            ValueError: an unknown one, one that does not concern this protocol, or one without the other that it needs.
        """
        quirks = tuple(sorted({quirks} if isinstance(quirks, str) else set(quirks)))
        for quirk in quirks:
            if quirk not in QUIRKS:
                raise ValueError(f"unknown quirk {quirk!r}; known are {', '.join(QUIRKS)}")
            if quirk not in self.quirks:
                raise ValueError(f"the quirk {quirk!r} does not concern the protocol {self.name!r}, only {', '.join(self.quirks)} do")
        if "p_best_batch" in quirks and "published_windows" not in quirks:
            raise ValueError("the quirk 'p_best_batch' chooses for batches of windows: it needs 'published_windows' as well")
        return quirks

    def labels(self, name: str, tags: dict[str, str]) -> tuple[str, ...]:
        """Groups of a clip, one per level. A clip without a tag goes by its kind of motion, the tag "family", if it has that.

        Raises:
            ValueError: the clip lacks a tag and a family.
        """
        return tuple(" ".join(dict.fromkeys(_tag(self.name, name, tags, tag) for tag in level.split())) for level in self.levels)

    def substitutes(self, tags: Mapping[str, str]) -> tuple[str, ...]:
        """Tags that a clip lacks and its family stands for."""
        wanted = {tag for level in self.levels for tag in level.split()}
        return tuple(sorted(wanted - tags.keys() - {"source", "family"})) if "family" in tags else ()


def _tag(protocol: str, name: str, tags: dict[str, str], tag: str) -> str:
    if tag in tags:
        return tags[tag]
    parts = name.split("/")
    if tag == "source":
        return parts[0]
    if tag == "family":
        return "/".join(parts[:2])
    if "family" in tags:
        return tags["family"]
    raise ValueError(f"the protocol {protocol!r} groups by the tag {tag!r}, which clip {name!r} lacks; its tags are {sorted(tags)}")


ACTIONS = {
    "Directions": "Dir.", "Discussion": "Disc.", "Eating": "Eat", "Greeting": "Greet", "Phoning": "Phone", "Photo": "Photo",
    "TakingPhoto": "Photo", "Posing": "Pose", "Purchases": "Purch.", "Sitting": "Sit", "SittingDown": "SitD.", "Smoking": "Smoke",
    "Waiting": "Wait", "WalkDog": "WalkD.", "WalkingDog": "WalkD.", "Walking": "Walk", "WalkTogether": "WalkT.",
    "WalkingTogether": "WalkT.",
}  # fmt: skip
"""Actions of Human3.6M under the names in circulation, in the order of the papers' tables."""


def _h36m(name: str, *numbers: int) -> Protocol:
    blocks = {
        1: Block("Protocol 1: MPJPE, mm", SEVEN),
        2: Block("Protocol 2: PA-MPJPE, mm", tuple(f"p2_{setting}" for setting in SEVEN)),
        3: Block("Protocol 3: N-MPJPE, mm", tuple(f"p3_{setting}" for setting in SEVEN)),
    }
    quirks = {2: ("recentred_pa",), 3: ("procrustes_n_mpjpe",)}
    return Protocol(
        name,
        f"Human3.6M {', '.join(f'P{number}' for number in numbers)}",
        (*(blocks[number] for number in numbers), Block("MPJVE, mm per frame", ("mpjve",))),
        levels=("action",),
        columns=ACTIONS,
        p_best_windows=4,
        quirks=(
            *("published_windows", "p_best_batch", "drop_tails", "camera_by_last_digit", "epipolar_14_joints"),
            *(quirk for number in numbers for quirk in quirks.get(number, ())),
            *_ALWAYS,
        ),
    )


PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        _h36m("h36m", 1, 2, 3),
        _h36m("h36m-p1", 1),
        _h36m("h36m-p2", 2),
        _h36m("h36m-p3", 3),
        Protocol(
            "3dhp",
            "MPI-INF-3DHP",
            (
                Block("MPJPE, mm", SEVEN),
                Block("PCK at 150 mm, %", tuple(f"pck_{setting}" for setting in SEVEN)),
                Block("AUC, %", tuple(f"auc_{setting}" for setting in SEVEN)),
            ),
            levels=("sequence",),
            joint_groups=True,
            columns={f"TS{number}": f"TS{number}" for number in range(1, 7)},
            pooled_column=True,
            overlap_counts_twice=False,
            p_best_windows=2,
            quirks=("published_windows", "p_best_batch", "ignore_pixel_aspect", "count_invalid_frames", "running_mean", *_ALWAYS),
        ),
        Protocol(
            "3dpw",
            "3DPW",
            (
                Block("mm", (*SEVEN, "min_mpjpe", "pa_mpjpe", "min_pa_mpjpe", "mpjve", "acceleration")),
            ),
            mean_of_groups=False,
            groups_in_rows=True,
            quirks=("recentred_pa", "acceleration_over_all_frames", "count_invalid_frames", *_ALWAYS),
        ),
        Protocol(
            "humaneva",
            "HumanEva-I",
            (Block("Protocol 2: PA-MPJPE, mm", tuple(f"p2_{setting}" for setting in SEVEN)),),
            levels=("action subject",),
            columns={f"{action} S{number}": f"{action} S{number}" for action in ("Walk", "Jog", "Box") for number in (1, 2, 3)},
            quirks=("recentred_pa", "count_invalid_frames", *_ALWAYS),
        ),
        Protocol(
            "clips",
            "motion clips",
            (
                Block(
                    "mm",
                    (
                        *("lifter", "p_agg", "j_agg", "j_agg_true_root", "weighted", "attention", "p_best", "j_best"),
                        *("pa_mpjpe", "n_mpjpe", "mpjve", "acceleration", "uncertainty", "root"),
                    ),
                ),
            ),
            levels=("source", "family"),
            mean_of_groups=False,
            groups_in_rows=True,
            quirks=("procrustes_n_mpjpe", "recentred_pa", "acceleration_over_all_frames", "count_invalid_frames", *_ALWAYS),
        ),
    )
}  # fmt: skip

_SPELLINGS = {
    **{f"{prefix}{number}": f"h36m-p{number}" for number in (1, 2, 3) for prefix in ("", "p", "h36m_p", "h36m p", "protocol ", "protocol")},
    **{name: "h36m" for name in ("human3.6m", "human36m")},
    **{name: "3dhp" for name in ("mpi-inf-3dhp", "mpi_inf_3dhp", "mpiinf3dhp")},
    **{name: "humaneva" for name in ("humaneva-i", "heva", "humaneva15")},
    **{name: "clips" for name in ("mocap17", "mocap")},
}  # fmt: skip


def get_protocol(name: str | int | Protocol) -> Protocol:
    """A protocol by name; a `Protocol` is returned as it is.

    Upper and lower case are the same. Accepted besides the names of `PROTOCOLS`: "1", "2", "3", "p1" to "p3" and "protocol 1" to
    "protocol 3" for those of Human3.6M; "human3.6m"; "mpi-inf-3dhp" (also with underscores); "humaneva-i"; "mocap17" for "clips".

    Raises:
        ValueError: an unknown name; the message lists the known ones.
    """
    if isinstance(name, Protocol):
        return name
    key = str(name).strip().lower()
    key = _SPELLINGS.get(key, key)
    if key not in PROTOCOLS:
        raise ValueError(f"unknown protocol {name!r}; known are {', '.join(PROTOCOLS)}, and 1, 2, 3 for those of h36m")
    return PROTOCOLS[key]
