"""What do an aggregator and the calibration cost beside the sampling?

python examples/benchmark_aggregators.py --data mocap17_test.npz
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from probpose import ProbPosePipeline
from probpose.data import load_dataset
from probpose.hub import bundled_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="data set as for probpose evaluate; its longest clip is used")
    parser.add_argument("--pipeline", default="d3dp-mocap17", help="bundled name, folder or Hub id")
    parser.add_argument("--rounds", type=int, default=5, help="calls of each kind, interleaved; medians are printed")
    arguments = parser.parse_args()

    pipe = ProbPosePipeline.from_pretrained(bundled_model(arguments.pipeline) or arguments.pipeline)
    pipe.set_progress_bar_config(disable=True)
    clip = max(load_dataset(arguments.data), key=len)
    kinds = [(None, False), ("mean", False), ("jpma", False)]
    kinds += [("attention", False)] if pipe.aggregator is not None else []
    kinds += [("attention" if pipe.aggregator is not None else "jpma", True)] if pipe.calibrator is not None else []
    seconds = {kind: [] for kind in kinds}
    for _ in range(arguments.rounds):
        for aggregation, calibrated in kinds:
            generator, started = torch.Generator().manual_seed(0), time.perf_counter()
            pipe(
                clip.keypoints_2d, clip.confidence, camera=clip.camera, generator=generator, aggregation=aggregation, calibrated=calibrated
            )
            seconds[aggregation, calibrated].append(time.perf_counter() - started)
    base = statistics.median(seconds[None, False])
    print(f"{len(clip)} frames, {pipe.config.default_num_hypotheses} hypotheses, {torch.get_num_threads()} threads")
    for (aggregation, calibrated), values in seconds.items():
        middle = statistics.median(values)
        name = f"{aggregation or 'sampling alone'}{', recalibrated' if calibrated else ''}"
        print(f"{name:<26}{middle:>8.2f} s   {middle / base:.2f} x")


if __name__ == "__main__":
    main()
