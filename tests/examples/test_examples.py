"""Every example runs as it stands."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run(name, *arguments):
    done = subprocess.run([sys.executable, str(ROOT / "examples" / name), *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_sample_hypotheses():
    out = run("sample_hypotheses.py")
    assert "hypotheses (20, 144, 17, 3)" in out and "hip: 0 mm" in out


def test_swap_scheduler():
    distances = [float(x) for x in re.findall(r"distance to D3DP with eta 0\s+([\d.]+) mm", run("swap_scheduler.py"))]
    assert len(distances) == 3 and distances[1] == 0
    assert distances[2] < 0.5 < distances[0] + 10


def test_benchmark_aggregators():
    data = ROOT / "tests" / "golden" / "benchmark_cmu.npz"
    out = run("benchmark_aggregators.py", "--data", str(data), "--rounds", "1")
    assert [line.split("  ")[0] for line in out.splitlines()[1:]] == [
        "sampling alone",
        "mean",
        "jpma",
        "attention",
        "attention, recalibrated",
    ]


def test_benchmark_scoring():
    out = run("benchmark_scoring.py", "--frames", "50", "--hypotheses", "3")
    assert out.startswith("50 frames, 3 hypotheses") and "total" in out


def test_the_readmes_ten_lines_run(tmp_path):
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[1]
    script = tmp_path / "readme.py"
    script.write_text(code + "\nprint(out.hypotheses.shape, out.pose.shape, out.uncertainty.shape, out.root.shape)\n")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "torch.Size([20, 144, 17, 3])" in done.stdout


def test_measure_gaps():
    data = ROOT / "tests" / "golden" / "benchmark_cmu.npz"
    table = run("measure_gaps.py", "d3dp-mocap17", "--data", str(data), "--frames", "125").splitlines()[2:]
    rows = [line.split("|")[1:-1] for line in table]
    assert [row[1].strip() for row in rows] == ["0", "5", "15", "30"]
    seen, *gaps = [float(row[2]) for row in rows]
    assert seen < gaps[-1] and all(float(row[4]) > 0 and 0 < float(row[5].strip(" %")) <= 100 for row in rows)
