"""How fast is a pipeline on this machine, and what does the speed cost in accuracy?

Compares ways to sample (modes) and ways to run the network (engines). Every row has a process of its own, so that neither memory
nor compiled code is shared. The timing rounds of all rows are interleaved, the order turned round every time, and medians are
reported: on a shared machine a slow minute then hits every row alike. Timed is the sampling of hypotheses, without aggregation.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import statistics
import sys
import time
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path

# Neither torch nor probpose is imported up here: a new process inherits the peak memory of the one that started it.

HERE = Path(__file__).resolve().parent
EXACT = "exact"
MODES = [EXACT, "default", "3/last_step/shared", "2/none/shared"]
ENGINES = ["native", "xformers", "autocast", "bf16", "xformers+bf16"]
EPILOG = """
modes
  exact                   the published sampler: 10 steps, mirrored at every step
  default                 what the model's own configuration says
  STEPS/FLIP/FIRST        FLIP: every_step, last_step, alternate or none; FIRST: own or shared (first step), e.g. 2/none/shared

engines: words joined by +
  native, xformers, ...   attention backend of diffusers; others than native need CUDA
  autocast                float32 weights, matrix products in bfloat16
  bf16                    bfloat16 weights
  compile                 torch.compile of the denoiser; takes a minute or more to start

The first engine runs all modes, the other engines run the mode "default" only, unless --full is given.

examples
  python examples/benchmark.py
  python examples/benchmark.py --data mocap17_test.npz --clips 8 --hypotheses 20
  python examples/benchmark.py --pipeline user/model --devices cuda --compile --full --json > speed.json
  python examples/benchmark.py --modes exact,5/none/shared,1/none/own --engines native
"""


@dataclass
class Row:
    """One line of the table; times in seconds, memory in MiB, errors in mm."""

    mode: str
    device: str
    engine: str
    skipped: str | None = None
    passes: int | None = None
    windows: int | None = None
    rounds: list[float] = field(default_factory=list)
    seconds: float | None = None
    passes_per_second: float | None = None
    ms_per_window: float | None = None
    speedup: float | None = None
    peak_memory_mib: float | None = None
    p_agg_mm: float | None = None
    j_best_mm: float | None = None

    def summarise(self, exact: Row | None) -> None:
        """Medians of the rounds, and the median of the ratios to the exact mode's time of the same round."""
        self.seconds = statistics.median(self.rounds)
        self.passes_per_second = self.passes / self.seconds
        self.ms_per_window = 1000 * self.seconds / self.windows
        if exact is not None and exact.rounds:
            self.speedup = statistics.median(theirs / own for theirs, own in zip(exact.rounds, self.rounds))


def parse_mode(text: str) -> dict:
    """Sampler arguments of a mode; what is not among them is the model's default. ValueError if the mode is not understood."""
    if text == "default":
        return {}
    steps, flip, first = ("10/every_step/own" if text == EXACT else text).split("/")
    return {
        "num_inference_steps": int(steps),
        "flip": {"none": False, **{name: name for name in ("every_step", "last_step", "alternate")}}[flip],
        "share_first_step": {"own": False, "shared": True}[first],
    }


# ---------------------------------------------------------------------------------------------------------------------
# In the row's own process
# ---------------------------------------------------------------------------------------------------------------------


class Measurement:
    """A loaded pipeline and clips to run it on.

    Args:
        row: mode, device and engine.
        options: the command line.
    """

    def __init__(self, row: Row, options: argparse.Namespace):
        import torch
        from diffusers.utils import logging

        from probpose.pipelines import ProbPosePipeline

        logging.disable_progress_bar()
        words = set(row.engine.split("+"))
        backends = sorted(words - {"autocast", "bf16", "compile"}) or ["native"]
        self.device, self.options = torch.device(row.device), options
        dtype = torch.bfloat16 if "bf16" in words else torch.float32
        self.pipe = ProbPosePipeline.from_pretrained(options.pipeline, dtype=dtype).to(self.device)
        self.pipe.set_progress_bar_config(disable=True)
        self.pipe.denoiser.set_attention_backend(backends[0])
        if "compile" in words:
            self.pipe.denoiser.compile()
        self.autocast = torch.autocast(row.device, torch.bfloat16, enabled="autocast" in words)
        self.sampler = {"num_hypotheses": options.hypotheses, **parse_mode(row.mode)}
        self.benchmark = None
        if options.data is not None:
            from probpose.data.datasets import load_dataset

            self.benchmark = load_dataset(options.data).subset(max_clips=options.clips)
        self.clips = self._clips()

    def facts(self) -> dict:
        """Passes, windows, peak memory on top of the loaded pipeline and, with a benchmark, accuracy. Also warms up."""
        facts = {"peak_memory_mib": self._memory_of(max(self.clips, key=lambda clip: len(clip["keypoints_2d"])))}
        lengths = [len(clip["keypoints_2d"]) for clip in self.clips]
        facts["passes"] = sum(self.pipe.count_passes(length, **self.sampler) for length in lengths)
        facts["windows"] = sum(self.pipe.count_passes(length, 1, 1, False, False) for length in lengths)
        if self.benchmark is not None:
            from probpose.evaluation import evaluate

            with self.autocast:
                report = evaluate(self.pipe, self.benchmark, **self.sampler, max_batch_size=self.options.max_batch_size, progress=False)
            facts |= {"p_agg_mm": report["p_agg"], "j_best_mm": report["j_best"]}
        return facts

    def round(self) -> float:
        """Seconds for all clips."""
        self._synchronise()
        started = time.perf_counter()
        for clip in self.clips:
            self._run(clip)
        self._synchronise()
        return time.perf_counter() - started

    def _run(self, clip: dict) -> None:
        import torch

        generator = torch.Generator().manual_seed(0)
        with self.autocast:
            self.pipe(
                **clip, **self.sampler, aggregation=None, generator=generator, max_batch_size=self.options.max_batch_size
            )  # fmt: skip

    def _clips(self) -> list[dict]:
        """Arguments of the pipeline's call for every clip."""
        if self.benchmark is not None:
            return [
                {
                    "keypoints_2d": clip.keypoints_2d,
                    "confidence": clip.confidence,
                    "camera": clip.camera,
                    "skeleton": clip.skeleton,
                    "fps": clip.fps,
                }
                for clip in self.benchmark
            ]
        from probpose.data import read_keypoints

        track = read_keypoints(self.options.keypoints, image_size=self.options.image_size)[0]
        clip = {"keypoints_2d": track.keypoints_2d, "confidence": track.confidence, "skeleton": track.skeleton}
        return [{**clip, "image_size": track.image_size, "fps": track.fps or 30.0}]

    def _synchronise(self) -> None:
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _memory_of(self, clip: dict) -> float:
        """MiB that sampling a clip needs at its peak: tensors on the GPU, or the growth of the process."""
        if self.device.type == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            self._run(clip)
            return (torch.cuda.max_memory_allocated(self.device) - before) / 2**20
        import resource

        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self._run(clip)
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / (2**20 if sys.platform == "darwin" else 2**10)


def serve(connection, row: Row, options: argparse.Namespace) -> None:
    """Process of one row: sends its facts, then the seconds of a round whenever asked; an error's text if it cannot run."""
    try:
        measurement = Measurement(row, options)
        connection.send(measurement.facts())
        while connection.recv():
            connection.send(measurement.round())
    except Exception as error:  # a row that cannot run here must not stop the others
        connection.send((str(error) or type(error).__name__).splitlines()[0])


def describe_machine(connection) -> None:
    """Process that looks at the machine."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    cpu = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    connection.send({"cpu": cpu, "cuda": gpu, "torch": torch.__version__, "diffusers": metadata.version("diffusers")})


# ---------------------------------------------------------------------------------------------------------------------
# In the program's process
# ---------------------------------------------------------------------------------------------------------------------


def start(target, *arguments):
    """A fresh process and the connection to it."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    context.Process(target=target, args=(theirs, *arguments), daemon=True).start()
    theirs.close()  # so that a process that dies is noticed
    return ours


def receive(connection):
    """The next answer; an error's text if the process has died."""
    try:
        return connection.recv()
    except EOFError:
        return "its process ended without an answer (out of memory?)"


def plan(options: argparse.Namespace, devices: list[str]) -> list[Row]:
    """The rows to measure, those that cannot run here already marked."""
    rows = []
    for device in devices:
        for engine in options.engines:
            first = engine == options.engines[0]
            for mode in options.modes if first or options.full else ["default"]:
                row = Row(mode, device, engine)
                backend = set(engine.split("+")) - {"native", "autocast", "bf16", "compile"}
                if device == "cpu" and backend:
                    row.skipped = f"attention backend {backend.pop()} has no CPU kernels"
                rows.append(row)
    return rows


def measure(rows: list[Row], options: argparse.Namespace) -> None:
    """Fill in the rows."""
    running = []
    for row in rows:
        if row.skipped is not None:
            continue
        print(f"preparing {row.mode} on {row.device}, {row.engine}", file=sys.stderr)
        connection = start(serve, row, options)
        answer = receive(connection)
        if isinstance(answer, str):
            row.skipped = answer
        else:
            vars(row).update(answer)
            running.append((row, connection))
    for number in range(options.rounds if running else 0):
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
        for row, connection in running[:: -1 if number % 2 else 1]:
            connection.send(True)
            answer = receive(connection)
            if isinstance(answer, str):
                row.skipped = answer
                running.remove((row, connection))
            else:
                row.rounds.append(answer)
    exact = {row.device: row for row, _ in running if row.mode == EXACT and row.engine == options.engines[0]}
    for row, connection in running:
        row.summarise(exact.get(row.device))
        connection.send(False)


def format_table(rows: list[Row]) -> str:
    """Aligned columns; skipped rows say why."""
    columns = {
        "passes": ("passes", "d"),
        "seconds": ("seconds", ".3f"),
        "passes/s": ("passes_per_second", ".1f"),
        "ms/window": ("ms_per_window", ".2f"),
        "x exact": ("speedup", ".2f"),
        "peak MiB": ("peak_memory_mib", ".0f"),
        "P-Agg mm": ("p_agg_mm", ".1f"),
        "J-Best mm": ("j_best_mm", ".1f"),
    }
    table = [["mode", "device", "engine", *columns]]
    for row in rows:
        numbers = [(getattr(row, name), form) for name, form in columns.values()]
        table.append([row.mode, row.device, row.engine, *("-" if value is None else format(value, form) for value, form in numbers)])
    widths = [max(map(len, column)) for column in zip(*table)]
    lines = []
    for row, cells in zip([None, *rows], table):
        padded = [cell.ljust(width) if i < 3 else cell.rjust(width) for i, (cell, width) in enumerate(zip(cells, widths))]
        skipped = row is not None and row.skipped is not None
        lines.append("  ".join([*padded[:3], f"skipped: {row.skipped}"] if skipped else padded))
    return "\n".join(lines)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; exits with a message if something is wrong with it."""
    parser = argparse.ArgumentParser(description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)

    def words(text: str) -> list[str]:
        return [word for word in text.split(",") if word]

    def count(text: str) -> int:
        if int(text) < 1:
            raise ValueError
        return int(text)

    add = parser.add_argument
    add("--pipeline", default=str(HERE.parent / "hub/models/d3dp-mocap17"), help="model folder or Hub id (%(default)s)")
    add("--data", help="data set with true 3D (see probpose evaluate); without it no accuracy is printed")
    add("--clips", type=count, default=4, help="clips of the benchmark, spread evenly over the file (%(default)s)")
    add("--keypoints", default=str(HERE / "data/basketball.npz"), help="2D keypoint file to time without --data (%(default)s)")
    add("--image-size", type=count, nargs=2, metavar=("W", "H"), help="pixels, where the keypoint file does not say")
    add("--hypotheses", type=count, default=20, help="K (%(default)s)")
    add("--modes", type=words, default=MODES, help=f"comma-separated ({','.join(MODES)})")
    add("--engines", type=words, default=ENGINES, help=f"comma-separated ({','.join(ENGINES)})")
    add("--devices", type=words, help="cpu, cuda or both, comma-separated (all that are present)")
    add("--compile", action="store_true", help="add the engine compile")
    add("--full", action="store_true", help="all modes with all engines")
    add("--rounds", type=count, default=3, help="timing rounds (%(default)s)")
    add("--max-batch-size", type=count, default=256, help="windows x hypotheses per network call (%(default)s)")
    add("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    for mode in options.modes:
        try:
            parse_mode(mode)
        except (ValueError, KeyError):
            parser.error(f"--modes: {mode!r} is neither exact, default nor STEPS/FLIP/FIRST, e.g. 2/none/shared")
    if options.compile:
        options.engines = [*options.engines, "compile"]
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    machine = receive(start(describe_machine))
    devices = options.devices or ["cpu", *(["cuda"] if machine["cuda"] else [])]
    rows = plan(options, devices)
    measure(rows, options)
    if options.json:
        print(json.dumps({"machine": machine, "options": vars(options), "rows": [asdict(row) for row in rows]}, indent=2))
    else:
        print(f"{machine['cpu']}; CUDA: {machine['cuda'] or 'none'}; torch {machine['torch']}; {options.hypotheses} hypotheses")
        print(format_table(rows))
    return 0 if any(row.rounds for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
