"""From what each clip gave to the tables of the field: averages, text, Markdown, LaTeX, JSON."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from probpose.calibration import ece_of_curve
from probpose.skeletons import get_skeleton

from .protocols import METRICS, OF_HYPOTHESES, OF_UNCERTAINTY, SETTINGS, Block, Protocol

QUANTILES = [number / 20 for number in range(21)]
"""Levels of the coverage curves."""

# ---------------------------------------------------------------------------------------------------------------------
# Results and averages
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClipResult:
    """What one clip gave: plain numbers, so that processes can exchange them.

    Args:
        name: of the clip.
        labels: the groups it belongs to, one per level of the protocol.
        frames: its length.
        scored: frames that entered the numbers (some twice under the quirk `published_windows`).
        skipped: frames without ground truth, or that the data set does not score.
        errors: by key of `METRICS`, or `KEY/GROUP` for a group of joints; NaN where the clip cannot tell.
        per_joint: mean error of each joint in mm, by key.
        coverage: `(quantiles, joints)`, "raw" and, with a calibrator, "recalibrated".
        passes: network passes (one window, one hypothesis, one orientation each), or None if the pipeline does not count them.
        seconds: wall time of the pipeline's call.
    """

    name: str
    labels: tuple[str, ...]
    frames: int
    scored: int
    skipped: int
    errors: dict[str, float]
    per_joint: dict[str, list[float]]
    coverage: dict[str, list[list[float]]]
    passes: int | None
    seconds: float


@dataclass(frozen=True)
class EvaluationReport:
    """The result of `evaluate`.

    `report["j_agg"]` is a final number: the mean over all frames, or over the groups where the protocol says so (the row "average").

    Args:
        settings: data set, protocol, clips, frames, camera, sampler settings, seed, quirks.
        protocol: how it was scored.
        results: one per clip.
        notes: what a reader of the numbers should know.
    """

    settings: dict[str, Any]
    protocol: Protocol
    results: tuple[ClipResult, ...]
    notes: tuple[str, ...] = ()

    @property
    def passes(self) -> int | None:
        """Network passes of all clips, or None."""
        passes = [result.passes for result in self.results]
        return None if None in passes else sum(passes)

    @property
    def seconds(self) -> float:
        """Wall time of all pipeline calls, without measuring."""
        return sum(result.seconds for result in self.results)

    @property
    def milliseconds_per_frame(self) -> float:
        return 1000 * self.seconds / self.settings["frames"]

    @cached_property
    def metrics(self) -> tuple[str, ...]:
        """Keys of `METRICS` that this report holds, those of the distribution last."""
        found = {name for result in self.results for name, value in result.errors.items() if not math.isnan(value)}
        found |= {name for name in METRICS if name in self._rows["all"]}
        others = [f"{name}{suffix}" for suffix in ("", "_calibrated") for names in OF_HYPOTHESES.values() for name in names]
        return tuple(name for name in (*self.protocol.metrics, *others, *OF_UNCERTAINTY) if name in found)

    def groups(self, level: str | None = None) -> dict[str, dict[str, float]]:
        """The numbers of all groups: first "average" (protocols that average over groups), then "all" frames, then the groups.

        Args:
            level: the finest rows: "all" or a level of the protocol; the last one by default.

        Returns:
            Row name to `clips`, scored `frames`, and a value for every key of `metrics` that the row's clips can tell, and for
            `KEY/GROUP` where the protocol looks at groups of joints.

        Raises:
            ValueError: an unknown level.
        """
        levels = ("all", *self.protocol.levels)
        if level is not None and level not in levels:
            raise ValueError(f"level must be one of {levels}, got {level!r}")
        shown = set(self._members(levels[: levels.index(level) + 1] if level else levels))
        return {name: dict(row) for name, row in self._rows.items() if name in shown or name == "average"}

    def joint_means(self) -> dict[str, dict[str, list[float]]]:
        """Mean error in mm of every joint, by group (as in `groups`) and key; NaN for joints that are not scored."""
        rows = {name: _pool(members, _by_joint) for name, members in self._members(("all", *self.protocol.levels)).items()}
        if self.protocol.mean_of_groups:
            rows = {"average": _mean(rows[name] for name in self._finest), **rows}
        count = get_skeleton(self.settings["skeleton"]).num_joints
        keys = {name: list(dict.fromkeys(key for key, _ in row)) for name, row in rows.items()}
        return {name: {key: [row.get((key, j), math.nan) for j in range(count)] for key in keys[name]} for name, row in rows.items()}

    def __getitem__(self, metric: str) -> float:
        """A final number.

        Raises:
            KeyError: the report does not hold it.
        """
        row = self._rows["average" if self.protocol.mean_of_groups else "all"]
        if metric not in row:
            raise KeyError(f"{metric!r} is not in this report; it holds {', '.join(key for key in row if key not in ('clips', 'frames'))}")
        return row[metric]

    @cached_property
    def _finest(self) -> list[str]:
        """Groups of the last level, in the papers' order, then by name."""
        known = list(self.protocol.columns)
        labels = {result.labels[-1] for result in self.results if result.scored} if self.protocol.levels else set()
        return sorted(labels, key=lambda label: (known.index(label) if label in known else len(known), label))

    def _members(self, levels: Iterable[str]) -> dict[str, list[ClipResult]]:
        """Results of every row of these levels, "all" among them."""
        rows = {"all": list(self.results)}
        for level in levels:
            if level == "all":
                continue
            number = self.protocol.levels.index(level)
            last = number == len(self.protocol.levels) - 1
            for label in self._finest if last else sorted({result.labels[number] for result in self.results}):
                rows.setdefault(label, [result for result in self.results if result.labels[number] == label])
        if "running_mean" in self.settings["quirks"]:
            before: list[ClipResult] = []
            for label in self._finest:
                before = rows[label] = [*before, *rows[label]]
        return rows

    @cached_property
    def _rows(self) -> dict[str, dict[str, float]]:
        members = self._members(("all", *self.protocol.levels))
        rows = {name: _pool(results, lambda result: result.errors) | _calibration(results) for name, results in members.items()}
        counts = {name: {"clips": len(results), "frames": sum(result.scored for result in results)} for name, results in members.items()}
        if self.protocol.mean_of_groups:
            # A coverage curve takes many frames: the final one is that of all clips.
            rows = {"average": _mean(rows[name] for name in self._finest) | _calibration(self.results), **rows}
            counts["average"] = counts["all"]
        return {name: counts[name] | row for name, row in rows.items()}

    # -----------------------------------------------------------------------------------------------------------------
    # Formats
    # -----------------------------------------------------------------------------------------------------------------

    def to_dict(self, level: str | None = None) -> dict[str, Any]:
        """Settings, cost, notes, groups, errors per joint and coverage curves; plain Python types, None for NaN."""
        cost = {"passes": self.passes, "seconds": self.seconds, "milliseconds_per_frame": self.milliseconds_per_frame}
        coverage = {kind: curve.tolist() for kind, curve in _coverage(self.results).items()}
        content = {
            "settings": dict(self.settings),
            "cost": cost,
            "notes": list(self.notes),
            "groups": self.groups(level),
            "per_joint": {"joints": list(get_skeleton(self.settings["skeleton"]).joint_names), "groups": self.joint_means()},
            "coverage": {"quantiles": QUANTILES, **coverage},
        }
        return _without_nan(content)

    def to_json(self, level: str | None = None) -> str:
        return json.dumps(self.to_dict(level), indent=2)

    def tables(self, level: str | None = None, per_joint: bool = False) -> list[Table]:
        """The report's tables, numbers already printed.

        Args:
            level: see `groups`.
            per_joint: also the mean error of every joint.
        """
        rows = self.groups(level)
        tables = [self._block(block, rows) for block in self.protocol.blocks if set(block.metrics) & set(self.metrics)]
        if self.protocol.joint_groups:
            tables += [table for name in ("pck", "auc") if len((table := self._joint_groups(name)).rows)]
        tables += [table for title in OF_HYPOTHESES if (table := self._hypotheses(title)).rows]
        if "radius" in self.metrics:
            final = self._rows["average" if self.protocol.mean_of_groups else "all"]
            headings = [METRICS[name].heading for name in OF_UNCERTAINTY]
            tables.append(Table(["uncertainty", *headings], [["pose", *(_cell(name, final) for name in OF_UNCERTAINTY)]]))
        if per_joint:
            tables += [table for block in self.protocol.blocks if (table := self._joints(block)) is not None]
        return tables

    def to_text(self, level: str | None = None, per_joint: bool = False) -> str:
        """Aligned columns, the settings above and the legend below."""
        legend = [f"{heading:<9} {meaning}" for heading, meaning in self._legend().items()]
        return "\n".join([*self._summary(), "", *("\n".join([*table.to_text(), ""]) for table in self.tables(level, per_joint)), *legend])

    def to_markdown(self, level: str | None = None, per_joint: bool = False) -> str:
        """The same as Markdown tables, for model cards; by default without the last of several levels of groups."""
        if level is None and len(self.protocol.levels) > 1:
            level = self.protocol.levels[-2]
        legend = "; ".join(f"{heading}: {meaning}" for heading, meaning in self._legend().items())
        tables = ("\n".join([*table.to_markdown(), ""]) for table in self.tables(level, per_joint))
        return "\n".join([*self._summary(), "", *tables, _escaped(f"{legend}.", _MARKDOWN)])

    def to_latex(self, level: str | None = None, per_joint: bool = False) -> str:
        """The tables for a paper, with `booktabs`; the settings stand above as comments."""
        comments = [f"% {line}" for line in self._summary()]
        tables = ("\n".join(["", *table.to_latex()]) for table in self.tables(level, per_joint))
        return "\n".join([*comments, "% \\usepackage{booktabs}", *tables]) + "\n"

    def _summary(self) -> list[str]:
        settings = self.settings
        skipped = f" ({settings['skipped_frames']} not scored)" if settings["skipped_frames"] else ""
        sampler = [f"{settings[key]} {name}" for key, name in (("num_hypotheses", "hypotheses"), ("num_inference_steps", "steps"))
                   if key in settings]  # fmt: skip
        if "start" in settings:
            sampler.append(f"start {settings['start']}")
        if "flip" in settings:
            sampler.append(f"flip {str(settings['flip'] or 'none').replace('_', ' ')}")
        if "share_first_step" in settings:
            sampler.append(f"first step {'shared' if settings['share_first_step'] else 'own'}")
        passes = "" if self.passes is None else f"{self.passes} network passes, "
        lines = [
            f"{settings['dataset']}, protocol {self.protocol.title}: {settings['clips']} clips, {settings['frames']} frames{skipped}; "
            f"camera {settings['camera'].replace('_', ' ')}, seed {settings['seed']}.",
            f"{', '.join(sampler) or 'The pipeline as it is'}: {passes}{self.milliseconds_per_frame:.1f} ms per frame.",
        ]
        if settings["quirks"]:
            lines.append(f"Quirks, as original repositories compute: {', '.join(settings['quirks'])}.")
        expected = set(self.protocol.columns.values())
        found = {self.protocol.columns.get(label) for label in self._finest}
        if self.protocol.mean_of_groups and expected & found and expected - found:
            lines.append(f"The average is over {len(self._finest)} of {len(expected)} groups.")
        return [*lines, *(f"Note: {note}" for note in self.notes)]

    def _legend(self) -> dict[str, str]:
        """Heading to meaning; a setting is explained once for all protocols."""
        legend = {}
        for name in self.metrics:
            setting = next((key for key in SETTINGS if name in _keys_of(key)), None)
            legend.setdefault(METRICS[name].heading, METRICS[name].meaning if setting is None else SETTINGS[setting][1])
        return legend

    def _block(self, block: Block, rows: dict[str, dict[str, float]]) -> Table:
        metrics = [name for name in block.metrics if name in self.metrics]
        if self.protocol.groups_in_rows:
            header = [block.title, "clips", "frames", *(METRICS[name].heading for name in metrics)]
            lines = [[label, str(row["clips"]), str(row["frames"]), *(_cell(name, row) for name in metrics)] for label, row in rows.items()]
            return Table(header, lines)
        columns = {label: self.protocol.columns.get(label, label) for label in self._finest if label in rows}
        columns |= {"average": "Avg"} | ({"all": "All frames"} if self.protocol.pooled_column else {})
        header = [block.title, *columns.values()]
        return Table(header, [[METRICS[name].heading, *(_cell(name, rows[label]) for label in columns)] for name in metrics])

    def _joint_groups(self, measure: str) -> Table:
        final = self._rows["average"]
        metrics = [name for name in self.metrics if name.startswith(f"{measure}_")]
        names = list(dict.fromkeys(key.split("/")[1] for name in metrics for key in final if key.startswith(f"{name}/")))
        header = [f"{measure.upper()} by joint, %", *(name.capitalize() for name in names), "Total"]
        lines = [[METRICS[name].heading, *(_cell(name, final, f"/{group}") for group in names), _cell(name, final)] for name in metrics]
        return Table(header, lines)

    def _hypotheses(self, title: str) -> Table:
        final = self._rows["average" if self.protocol.mean_of_groups else "all"]
        names = [name for name in OF_HYPOTHESES[title] if name in self.metrics]
        kinds = {"raw": "", "recalibrated": "_calibrated"} if names else {}
        lines = [[kind, *(_cell(f"{name}{s}", final) for name in names)] for kind, s in kinds.items() if f"{names[0]}{s}" in self.metrics]
        return Table([title, *(METRICS[name].heading for name in names)], lines)

    def _joints(self, block: Block) -> Table | None:
        final = self.joint_means()["average" if self.protocol.mean_of_groups else "all"]
        metrics = [name for name in block.metrics if name in final]
        names = get_skeleton(self.settings["skeleton"]).joint_names
        lines = [[name.replace("_", " "), *(_number(final[key][j], 1) for key in metrics)] for j, name in enumerate(names)]
        return Table([f"{block.title}, per joint", *(METRICS[name].heading for name in metrics)], lines) if metrics else None


def _keys_of(setting: str) -> tuple[str, ...]:
    return tuple(f"{prefix}{setting}" for prefix in ("", "p2_", "p3_", "pck_", "auc_"))


def _pool(results: Iterable[ClipResult], values: Callable[[ClipResult], Mapping[Hashable, float]]) -> dict[Any, float]:
    """Means weighted by scored frames, each over the clips that can tell."""
    sums: dict[Hashable, list[float]] = {}
    for result in results:
        for key, value in values(result).items():
            if not math.isnan(value):
                total = sums.setdefault(key, [0.0, 0])
                total[0] += value * result.scored
                total[1] += result.scored
    return {key: total / frames for key, (total, frames) in sums.items()}


def _mean(rows: Iterable[Mapping[Hashable, float]]) -> dict[Any, float]:
    """Unweighted means, each over the rows that have it."""
    gathered: dict[Hashable, list[float]] = {}
    for row in rows:
        for key, value in row.items():
            gathered.setdefault(key, []).append(value)
    return {key: statistics.fmean(values) for key, values in gathered.items()}


def _by_joint(result: ClipResult) -> dict[tuple[str, int], float]:
    return {(key, joint): value for key, values in result.per_joint.items() for joint, value in enumerate(values)}


def _coverage(results: Iterable[ClipResult]) -> dict[str, np.ndarray]:
    """Coverage curves `(quantiles, joints)`: every clip weighs the same, however long (Platypose, 2024); NaN for joints never scored."""
    curves: dict[str, list[list[list[float]]]] = {}
    for result in results:
        for kind, curve in result.coverage.items():
            curves.setdefault(kind, []).append(curve)
    pooled = {}
    for kind, values in curves.items():
        array = np.array(values)
        known = ~np.isnan(array)
        sums, counts = np.where(known, array, 0.0).sum(0), known.sum(0)
        pooled[kind] = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    return pooled


def _calibration(results: Iterable[ClipResult]) -> dict[str, float]:
    """ECE and its sign; the median over joints comes after pooling the clips."""
    values = {}
    for kind, curve in _coverage(results).items():
        suffix = "" if kind == "raw" else "_calibrated"
        curve = curve[:, ~np.isnan(curve).any(0)]
        values[f"ece{suffix}"] = ece_of_curve(curve, QUANTILES)
        values[f"signed_miscalibration{suffix}"] = float((np.median(curve, axis=1) - QUANTILES).mean())
    return values


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


# ---------------------------------------------------------------------------------------------------------------------
# Tables
# ---------------------------------------------------------------------------------------------------------------------

_MARKDOWN = {"*": "\\*", "|": "\\|", "_": "\\_"}
_LATEX = {
    "\\": "\\textbackslash{}", "{": "\\{", "}": "\\}", "&": "\\&", "%": "\\%", "$": "\\$", "#": "\\#", "_": "\\_",
    "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "<": "\\textless{}", ">": "\\textgreater{}", "²": "\\textsuperscript{2}",
}  # fmt: skip


@dataclass(frozen=True)
class Table:
    """Printed cells.

    Args:
        header: one cell per column; the first says what the table shows.
        rows: cells, the first of each is the row's name.
    """

    header: list[str]
    rows: list[list[str]]

    def to_text(self) -> list[str]:
        widths = [max(map(len, column)) for column in zip(self.header, *self.rows)]
        return [
            "  ".join(cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(zip(row, widths)))
            for row in (self.header, *self.rows)
        ]

    def to_markdown(self) -> list[str]:
        heading, *rows = (f"| {' | '.join(_escaped(cell, _MARKDOWN) for cell in row)} |" for row in (self.header, *self.rows))
        return [heading, "|".join(["", "---", *["---:"] * (len(self.header) - 1), ""]), *rows]

    def to_latex(self) -> list[str]:
        heading, *rows = (f"  {' & '.join(_escaped(cell, _LATEX) for cell in row)} \\\\" for row in (self.header, *self.rows))
        columns = f"l{'r' * (len(self.header) - 1)}"
        return [f"\\begin{{tabular}}{{{columns}}}", "  \\toprule", heading, "  \\midrule", *rows, "  \\bottomrule", "\\end{tabular}"]


def _escaped(text: str, table: dict[str, str]) -> str:
    return "".join(table.get(character, character) for character in text)


def _cell(metric: str, row: Mapping[str, float], group: str = "") -> str:
    return _number(row.get(f"{metric}{group}", math.nan), METRICS[metric].digits)


def _number(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"
