"""Several pipelines on the same motions: errors, calibration and time, one table.

A row is a model with a number of hypotheses K. Every clip goes through all rows before the next clip begins, the order turned round every
time: on a shared machine a slow minute then hits every row alike. Errors are means over all frames; times are of the sampling without
aggregation, medians over the clips.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from diffusers.utils.logging import disable_progress_bar
from tqdm.auto import tqdm

from probpose import ProbPosePipeline
from probpose.data import load_dataset
from probpose.data.datasets import PoseClip, PoseDataset
from probpose.evaluation import EvaluationReport, Table, evaluate
from probpose.hub import bundled_model

EPILOG = """
columns
  Lifter     MPJPE of the model's lifter before any diffusion, mm
  Mean       MPJPE of the mean of the hypotheses (P-Agg), mm
  Default    MPJPE of the model's own aggregation, named below the table, mm
  PA         MPJPE of the mean after Procrustes alignment of every frame, mm
  J-Best     oracle: MPJPE of the best hypothesis of each joint, mm; what K hypotheses could give at best
  ECE        expected calibration error of the hypotheses as sampled, 0..1
  ECE recal  the same after the model's calibrator
  ms/frame   sampling time

examples
  python examples/compare_models.py d3dp-mocap17 diffpose-mocap17 --data mocap17_test.npz --every 10
  python examples/compare_models.py d3dp-mocap17 user/model --data mocap17_test.npz --hypotheses 1,20,100 --markdown --json compared.json
"""

PROTOCOL = "clips"  # which groups any data set and has all of these numbers
AGGREGATIONS = {"mean": "p_agg", "jpma": "j_agg", "weighted": "weighted", "attention": "attention"}
COLUMNS = {
    "Lifter": ("lifter_mm", ".1f"),
    "Mean": ("mean_mm", ".1f"),
    "Default": ("default_mm", ".1f"),
    "PA": ("pa_mm", ".1f"),
    "J-Best": ("j_best_mm", ".1f"),
    "ECE": ("ece", ".3f"),
    "ECE recal": ("ece_recalibrated", ".3f"),
    "ms/frame": ("ms_per_frame", ".1f"),
}


@dataclass
class Row:
    """One line of the table; what a model has not, or one hypothesis cannot tell, is None."""

    model: str
    pipeline: str
    num_hypotheses: int
    aggregation: str | None
    lifter_mm: float | None
    mean_mm: float | None
    default_mm: float | None
    pa_mm: float | None
    j_best_mm: float | None
    ece: float | None
    ece_recalibrated: float | None
    ms_per_frame: float

    @classmethod
    def of(cls, model: str, pipe: ProbPosePipeline, count: int, report: EvaluationReport) -> Row:
        final = report.groups("all")["all"]
        aggregation = pipe.config.default_aggregation
        return cls(
            model=model,
            pipeline=type(pipe).__name__,
            num_hypotheses=count,
            aggregation=aggregation,
            lifter_mm=final.get("lifter"),
            mean_mm=final.get("p_agg"),
            default_mm=final.get(AGGREGATIONS.get(aggregation)),
            pa_mm=final.get("pa_mpjpe"),
            j_best_mm=final.get("j_best"),
            ece=final.get("ece"),
            ece_recalibrated=final.get("ece_calibrated"),
            ms_per_frame=statistics.median(1000 * result.seconds / result.frames for result in report.results),
        )


def compare(pipes: dict[str, ProbPosePipeline], data: PoseDataset, counts: list[int], seed: int = 0) -> list[Row]:
    """The rows, by model and number of hypotheses."""
    runs = [(model, count) for model in pipes for count in counts]
    reports: dict[tuple[str, int], list[EvaluationReport]] = {run: [] for run in runs}

    def run_clip(model: str, count: int, clip: PoseClip) -> EvaluationReport:
        alone = PoseDataset((clip,), data.name)
        return evaluate(pipes[model], alone, PROTOCOL, num_hypotheses=count, seed=seed, progress=False)

    for model in pipes:  # the first call is slower than any other
        run_clip(model, 1, min(data, key=len))
    with tqdm(total=len(runs) * data.num_frames, unit="frame") as bar:
        for number, clip in enumerate(data):
            for model, count in runs[:: -1 if number % 2 else 1]:
                bar.set_description(f"{model}, K = {count}")
                reports[model, count].append(run_clip(model, count, clip))
                bar.update(len(clip))
    return [Row.of(model, pipes[model], count, _joined(parts)) for (model, count), parts in reports.items()]


def _joined(parts: list[EvaluationReport]) -> EvaluationReport:
    """The report of all clips. A clip's random numbers depend on its name only, so this is what one run over all of them reports."""
    summed = {name: sum(part.settings[name] for part in parts) for name in ("clips", "frames", "scored_frames", "skipped_frames")}
    results = tuple(result for part in parts for result in part.results)
    return EvaluationReport({**parts[0].settings, **summed}, parts[0].protocol, results)


def table_of(rows: list[Row]) -> Table:
    def cell(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    lines = [[row.model, str(row.num_hypotheses), *(cell(getattr(row, name), form) for name, form in COLUMNS.values())] for row in rows]
    return Table(["model", "K", *COLUMNS], lines)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; exits with a message if something is wrong with it."""
    parser = argparse.ArgumentParser(description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)

    def numbers(text: str) -> list[int]:
        values = [int(word) for word in text.split(",")]
        if min(values) < 1:
            raise ValueError
        return sorted(set(values))

    add = parser.add_argument
    add("models", nargs="+", metavar="MODEL", help="bundled name, folder or Hub id of a pipeline")
    add("--data", required=True, help="data set with true 3D, as for probpose evaluate")
    add("--hypotheses", type=numbers, default=[1, 5, 20], metavar="K,K,...", help="numbers of hypotheses (1,5,20)")
    add("--every", type=int, default=1, metavar="N", help="use every N-th clip")
    add("--seed", type=int, default=0, help="random seed (%(default)s)")
    add("--device", default="cpu", help="%(default)s, cuda, mps")
    add("--markdown", action="store_true", help="print a Markdown table")
    add("--json", type=Path, metavar="FILE", help="also write the rows there, with all their digits")
    options = parser.parse_args(arguments)
    if len(set(options.models)) < len(options.models):
        parser.error("a model is named twice")
    if options.every < 1:
        parser.error(f"--every must be at least 1, got {options.every}")
    if options.json is not None and not options.json.parent.is_dir():
        parser.error(f"--json: there is no folder {options.json.parent}")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    disable_progress_bar()  # loading takes no time worth a bar
    try:
        data = load_dataset(options.data).subset(every=options.every).select(lambda clip: bool(clip.scored.any()))
        pipes = {name: ProbPosePipeline.from_pretrained(bundled_model(name) or name).to(options.device) for name in options.models}
        rows = compare(pipes, data, options.hypotheses, options.seed)
    except (ValueError, OSError) as error:
        print(f"compare_models: {error}", file=sys.stderr)
        return 2
    machine = {"device": options.device, "threads": torch.get_num_threads()}
    what = {"data": data.name, "clips": len(data), "frames": data.num_frames, "every": options.every, "seed": options.seed, **machine}
    if options.json is not None:
        options.json.write_text(json.dumps({**what, "rows": [asdict(row) for row in rows]}, indent=2) + "\n")
    table = table_of(rows)
    print(f"{data.name}: {len(data)} clips, {data.num_frames} frames; {options.device}, {machine['threads']} threads\n")
    print("\n".join(table.to_markdown() if options.markdown else table.to_text()))
    chosen = {row.model: row.aggregation for row in rows}
    print(f"\nDefault aggregation: {', '.join(f'{name} {model}' for model, name in chosen.items())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
