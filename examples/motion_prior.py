"""What a motion prior is good for without any camera: it completes, cleans, interpolates and invents motions.

    python examples/motion_prior.py complete --missing arms
    python examples/motion_prior.py denoise --noise 40
    python examples/motion_prior.py interpolate --keys 4
    python examples/motion_prior.py generate --frames 128

Each writes a picture, COMMAND.png, and the motions, COMMAND.npz. What is known of a motion is told by one energy, `InpaintingEnergy`; the
numbers that are printed compare with the true motion, joints relative to the root, in millimetres.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers.utils.logging import disable_progress_bar
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from torch import Tensor

from probpose import ProbPosePipeline
from probpose.data import MocapClips
from probpose.files import replacing
from probpose.geometry import Camera, rotation_looking_along
from probpose.guidance import GaussNewtonGuide, InpaintingEnergy
from probpose.hub import bundled_model
from probpose.pipelines import PlatyposePipeline
from probpose.skeletons import get_skeleton
from probpose.visualization.common import upright

HERE = Path(__file__).resolve().parent
SKELETON = get_skeleton("h36m_17")
HEAD = SKELETON.joint_names.index("head_top")
MISSING = {
    "arms": (slice(None), range(11, 17)),
    "legs": (slice(None), range(1, 7)),
    "left": (slice(None), SKELETON.left),
    "right": (slice(None), SKELETON.right),
    "middle": (slice(0.35, 0.65), range(17)),
    "end": (slice(0.5, 1.0), range(17)),
}
"""What `complete` takes away: frames (shares of the clip) and joints."""

EXACT = 0.005
"""Metres: how far a motion may be from what is known exactly."""

WANDER = 2.0
"""Metres per second that a joint may wander from the straight line between the frames in which it is known. A prior that is told a single
frame takes it for a mistake; told what that means for its neighbours, it believes it."""

# A trust wider than the pipeline's own brings motions nearer to what is known. A trajectory may have metres to go.
GUIDE = GaussNewtonGuide(substeps=1, trust=3.0, max_step=10.0)

LEFT_OUT = 0.2
"""Share of the steps, the noisiest, that are left out where something is known: it hardly shows through so much noise, and what is decided
there (which way to face, what the arms are up to) is seldom revised. Where nothing is known, those steps are needed."""

INK, TRUE, COLOURS = "#111111", "#8C8C8C", ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


# Motions ---------------------------------------------------------------------------------------------------------------------------------
# As the prior has them: `(frames, 17, 3)` metres, joints relative to the root, and in the root's own place its trajectory.


def captured(path: Path, name: str, start: int, frames: int, pipe: PlatyposePipeline) -> Tensor:
    """A stretch of the first clip whose name matches, in the prior's axes."""
    clips = MocapClips(path, split=None, include=[name])
    root, local = (each[start : start + frames] for each in clips[0])
    if len(root) < 2:
        raise ValueError(f"{clips.names[0]} has {len(clips[0][0])} frames: --start {start} leaves {len(root)}")
    joints = root[:, None] + local
    if pipe.denoiser.config.axes == "camera":
        # Seen by a level camera 4 m away.
        rotation = rotation_looking_along(torch.tensor([0.0, 1.0, 0.0]))
        place = root.mean(0) - torch.tensor([0.0, 4.0, 0.0])
        joints = Camera((1.0, 1.0), (0.0, 0.0), rotation=rotation, translation=-rotation @ place).to_camera(joints)
    return torch.cat([joints[:, :1], joints[:, 1:] - joints[:, :1]], dim=1)


def in_between(values: Tensor) -> tuple[Tensor, Tensor]:
    """Straight lines in time through what is known of `(frames, joints, 3)`, the rest being NaN, and how many frames away that is.

    Of a joint that is never known this is zero, infinitely far away.
    """
    filled, away = torch.nan_to_num(values), torch.full(values.shape[:-1], math.inf)
    frames = np.arange(len(values))
    for joint in range(values.shape[1]):
        known = torch.isfinite(values[:, joint]).all(-1).nonzero()[:, 0].numpy()
        if len(known):
            lines = [np.interp(frames, known, values[known, joint, axis]) for axis in range(3)]
            filled[:, joint] = torch.from_numpy(np.stack(lines, axis=-1))
            away[:, joint] = torch.from_numpy(np.abs(frames[:, None] - known).min(1))
    return filled, away


def sampled(pipe: PlatyposePipeline, known: Tensor, sigma: float, options: argparse.Namespace) -> Tensor:
    """Motions `(motions, frames, 17, 3)` that agree with what is known of one, but for an error of `sigma` metres; the rest is NaN."""
    target, away = in_between(known)
    centre = target[:, 0].mean(0) if pipe.denoiser.config.trajectory == "relative" else torch.zeros(3)
    target[:, 0] -= centre
    set_steps(pipe, options.steps, LEFT_OUT)
    weights = (1 + WANDER / options.fps * away / sigma) ** -2
    motions, roots = pipe.generate(
        len(known),
        options.motions,
        guidance=InpaintingEnergy(target, weights, sigma),
        guide=GUIDE,
        num_inference_steps=options.steps,
        generator=torch.Generator().manual_seed(options.seed),
    )
    return torch.cat([(roots + centre)[:, :, None], motions[:, :, 1:]], dim=2)


def set_steps(pipe: PlatyposePipeline, steps: int, left_out: float) -> None:
    """Choose the steps; every one adds the full noise (eta 1), which makes up for what the ones before have got wrong."""
    settings = {"num_inference_steps": steps, "skip_first": round(left_out * steps), "eta": 1.0, "noise_scale": 1.0}
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, **settings)


def errors(motions: Tensor, true: Tensor, where: Tensor) -> Tensor:
    """Mean distance of joints relative to the root, in mm, where it is asked for: `(motions,)`."""
    where = where & (torch.arange(where.shape[1]) > 0)
    return 1000 * (motions - true).norm(dim=-1)[:, where].mean(1)


# Commands --------------------------------------------------------------------------------------------------------------------------------


def complete(pipe: PlatyposePipeline, options: argparse.Namespace) -> Picture:
    """Some joints or frames are missing."""
    true = captured(options.data, options.clip, options.start, options.frames, pipe)
    frames, joints = MISSING[options.missing]
    known = true.clone()
    share = [None if end is None else round(end * len(true)) for end in (frames.start, frames.stop)]
    known[slice(*share), list(joints)] = torch.nan
    return completed(pipe, true, known, f"{options.missing} completed", options)


def interpolate(pipe: PlatyposePipeline, options: argparse.Namespace) -> Picture:
    """A few poses are known, and when and where they are taken."""
    true = captured(options.data, options.clip, options.start, options.frames, pipe)
    if options.keys >= len(true):
        raise ValueError(f"--keys: {options.keys} poses do not fit into {len(true)} frames")
    known = torch.full_like(true, torch.nan)
    keys = np.linspace(0, len(true) - 1, options.keys).round()
    known[keys] = true[keys]
    return completed(pipe, true, known, f"{options.keys} key poses, the rest interpolated", options)


def completed(pipe: PlatyposePipeline, true: Tensor, known: Tensor, title: str, options: argparse.Namespace) -> Picture:
    """Motions that pass through what is known exactly."""
    motions = sampled(pipe, known, EXACT, options)
    # What little is left to what is known fades away between the frames in which it is known (motion warping, Witkin and Popović 1995).
    motions = torch.stack([motion + in_between(known - motion)[0] for motion in motions])
    missing = known.isnan().any(-1)
    each = errors(motions, true, missing)
    print(f"missing joints: {each.mean():.0f} mm off on average, the best of {len(each)} motions {each.min():.0f} mm")
    if not known.isnan().any(-1).all(0).any():
        print(f"straight lines in time: {errors(in_between(known)[0][None], true, missing).item():.0f} mm")
    title = f"{title}: {each.mean():.0f} mm off on average, the best {each.min():.0f} mm"
    rows = [Row("known", known), *(Row(f"completion {i + 1}", motion, known, COLOURS[i % 6]) for i, motion in enumerate(motions))]
    return Picture(title, [*rows, Row("truth", true, colour=TRUE)], {"motions": motions, "known": known, "true": true})


def denoise(pipe: PlatyposePipeline, options: argparse.Namespace) -> Picture:
    """A track with Gaussian noise, joints of which are lost for a third of a second at a time."""
    true = captured(options.data, options.clip, options.start, options.frames, pipe)
    random = torch.Generator().manual_seed(options.seed)
    sigma = options.noise / 1000
    track = true + sigma * torch.randn(true.shape, generator=random)
    spell = max(1, round(options.fps / 3))
    lost = torch.rand(-(-len(true) // spell), true.shape[1], generator=random) < options.lost
    track[lost.repeat_interleave(spell, dim=0)[: len(true)]] = torch.nan
    clean = sampled(pipe, track, sigma, options).mean(0)
    seen = torch.isfinite(track).all(-1)
    before, after = errors(track[None], true, seen).item(), errors(clean[None], true, seen).item()
    print(f"tracked joints: {before:.0f} mm off before, {after:.0f} mm after")
    if (~seen).any():
        print(f"lost joints: {errors(clean[None], true, ~seen).item():.0f} mm off")
    rows = [Row("track", track), Row("denoised", clean, colour=COLOURS[1]), Row("truth", true, colour=TRUE)]
    return Picture(
        f"{options.noise:g} mm of noise, {before:.0f} mm off; denoised {after:.0f} mm",
        rows,
        {"motion": clean, "track": track, "true": true},
    )


def generate(pipe: PlatyposePipeline, options: argparse.Namespace) -> Picture:
    """Anything goes."""
    set_steps(pipe, options.steps, left_out=0.0)
    motions, roots = pipe.generate(
        options.frames, options.motions, num_inference_steps=options.steps, generator=torch.Generator().manual_seed(options.seed)
    )
    motions = torch.cat([roots[:, :, None], motions[:, :, 1:]], dim=2)
    way = roots.diff(dim=1).norm(dim=-1).sum(1)
    print(f"ways of {', '.join(f'{each:.1f}' for each in way)} m in {options.frames / options.fps:.1f} s")
    rows = [Row(f"motion {i + 1}", motion, colour=COLOURS[i % 6]) for i, motion in enumerate(motions)]
    return Picture("motions out of nothing", rows, {"motions": motions}, paths=True)


COMMANDS = {"complete": complete, "denoise": denoise, "interpolate": interpolate, "generate": generate}


# Pictures --------------------------------------------------------------------------------------------------------------------------------


@dataclass
class Row:
    """A motion, drawn as figures side by side; NaN is left out, and what `known` knows is black."""

    label: str
    motion: Tensor
    known: Tensor | None = None
    colour: str = INK


@dataclass
class Picture:
    """Rows of figures, and the arrays to keep. With paths, the way of every root from above stands beside its row."""

    title: str
    rows: list[Row]
    arrays: dict[str, Tensor]
    paths: bool = False


SPACING, INCHES, COLUMNS, VIEW = 1.0, 0.85, 10, math.radians(30)
"""Metres between figures, inches per metre, figures in a row, and how far in front of the person's right the viewer stands."""


def draw(picture: Picture, axes: str, options: argparse.Namespace) -> Figure:
    """Some figures of every row, seen from the person's front right, at their height but not at their place; the left side is paler."""
    frames = np.unique(np.linspace(0, len(picture.rows[0].motion) - 1, COLUMNS).round().astype(int))
    seen = [_seen(row.motion, row.motion if picture.paths else picture.rows[-1].motion, axes) for row in picture.rows]
    low, high = (bound(np.concatenate([points[..., 1].ravel() for points, _ in seen])) for bound in (np.nanmin, np.nanmax))
    width, height = SPACING * len(frames), high - low + 0.3
    widths = [width, height][: 1 + picture.paths]
    figure = Figure(layout="constrained", figsize=(INCHES * (sum(widths) + 1.5), INCHES * height * len(seen) + 0.6))
    grid = figure.subplots(len(seen), len(widths), squeeze=False, gridspec_kw={"width_ratios": widths})
    for cells, row, (points, way) in zip(grid, picture.rows, seen):
        known = np.zeros(points.shape[:2], bool) if row.known is None else np.isfinite(row.known.numpy()).all(-1)
        _draw_figures(cells[0], points[frames], known[frames], row.colour)
        cells[0].axhline(np.nanmin(points[..., 1]), color="#DDDDDD", linewidth=0.8, zorder=0)
        cells[0].set(xlim=(-SPACING / 2, width - SPACING / 2), ylim=(low - 0.15, high + 0.15), xticks=[], yticks=[], aspect="equal")
        cells[0].set_ylabel(row.label, fontsize=8, rotation=0, ha="right", va="center")
        cells[0].spines[:].set_visible(False)
        if picture.paths:
            cells[1].plot(*way.T, color=row.colour, linewidth=1.2)
            cells[1].plot(*way[0], "o", color=row.colour, markersize=3)
            (x, y), reach = (way.min(0) + way.max(0)) / 2, max(0.6, 0.55 * np.ptp(way, axis=0).max())
            cells[1].set(xlim=(x - reach, x + reach), ylim=(y - reach, y + reach), aspect="equal")
            cells[1].tick_params(labelsize=6, length=2)
            cells[1].set_anchor("W")
    for column, frame in enumerate(frames):
        grid[0, 0].text(SPACING * column, high + 0.15, f"{frame / options.fps:.1f} s", fontsize=7, ha="center", va="bottom")
    if picture.paths:
        grid[0, 1].set_title("way from above (m)", fontsize=7)
    figure.suptitle(picture.title, fontsize=11)
    return figure


def _seen(motion: Tensor, whose: Tensor, axes: str) -> tuple[np.ndarray, np.ndarray]:
    """Joints `(frames, 17, 2)` as the viewer sees them, right and up, and the root's way from above `(frames, 2)`, metres.

    Args:
        whose: the motion whose front right the viewer stands at.
        axes: of both motions.
    """
    (joints, filled), whose = (motion.numpy(), in_between(motion)[0].numpy()), whose.numpy()
    if axes == "camera":
        joints, filled, whose = map(upright, (joints, filled, whose))
    way = filled[:, 0]
    joints = np.concatenate([joints[:, :1] - way[:, None], joints[:, 1:]], axis=1)
    x, y = (whose[:, 1] - whose[:, 4]).mean(0)[:2]  # from the left hip to the right one
    right, forward = np.array([[x, y], [-y, x]]) / math.hypot(x, y)
    across = math.cos(VIEW) * forward - math.sin(VIEW) * right
    return np.stack([joints[..., :2] @ across, joints[..., 2] + way[:, None, 2] - way[:, 2].mean()], axis=-1), way[:, :2]


def _draw_figures(cell: Axes, points: np.ndarray, known: np.ndarray, colour: str) -> None:
    """Figures `(figures, 17, 2)`, side by side; bones between joints that are known are black."""
    points = points + SPACING * np.arange(len(points))[:, None, None] * [1, 0]
    bones = np.array(SKELETON.bones)
    shades = np.array([[to_rgba(c, 0.45 if child in SKELETON.left else 1.0) for child in bones[:, 1]] for c in (colour, INK)])
    colours = np.where(known[:, bones].all(-1)[..., None], shades[1], shades[0])
    cell.add_collection(LineCollection(points[:, bones].reshape(-1, 2, 2), colors=colours.reshape(-1, 4), linewidths=1.6, capstyle="round"))
    cell.scatter(*points[:, HEAD].T, s=10, c=np.where(known[:, HEAD], INK, colour))


# The command line ------------------------------------------------------------------------------------------------------------------------


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; exits with a message if something is wrong with it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, command in COMMANDS.items():
        add = commands.add_parser(name, help=command.__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter).add_argument
        add("--model", default="platypose-mocap17", help="bundled name, folder or Hub id of a pipeline with a motion prior")
        add("--motions", type=int, default=5, metavar="K", help="how many motions to draw")
        add("--frames", type=int, default=128 if name == "generate" else 64, help="length of a motion")
        add("--steps", type=int, default=50, help="of the scheduler")
        add("--seed", type=int, default=0, help="random seed")
        add("--out", type=Path, default=Path(), metavar="FOLDER", help="where picture and motions are written")
        add("--overwrite", action="store_true", help="replace what is there")
        if name != "generate":
            add("--data", type=Path, default=HERE / "data" / "tiny_mocap.npz", help="archive of true motions (probpose.data.MocapClips)")
            add("--clip", default="*walking_7", metavar="PATTERN", help="name of the clip, * stands for anything")
            add("--start", type=int, default=0, metavar="FRAME", help="first frame of the clip")
        if name == "complete":
            add("--missing", choices=sorted(MISSING), default="arms", help="joints, or part of the clip")
        if name == "interpolate":
            add("--keys", type=int, default=4, help="number of poses that are known, evenly spaced")
        if name == "denoise":
            add("--noise", type=float, default=40.0, metavar="MM", help="standard deviation of every coordinate")
            add("--lost", type=float, default=0.1, metavar="SHARE", help="share of the spells of a joint that are lost")
    options = parser.parse_args(arguments)
    for name, least in {"motions": 1, "frames": 2, "start": 0, "keys": 2}.items():
        if getattr(options, name, least) < least:
            parser.error(f"--{name} must be at least {least}, got {getattr(options, name)}")
    if getattr(options, "noise", 1) <= 0:
        parser.error(f"--noise must be above 0, got {options.noise}")
    if not 0 <= getattr(options, "lost", 0) < 1:
        parser.error(f"--lost must lie in 0..1, 1 not included, got {options.lost}")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    disable_progress_bar()  # loading takes no time worth a bar
    files = [options.out / f"{options.command}{suffix}" for suffix in (".png", ".npz")]
    try:
        pipe = ProbPosePipeline.from_pretrained(bundled_model(options.model) or options.model)
        if not isinstance(pipe, PlatyposePipeline):
            raise ValueError(f"{options.model} is a {type(pipe).__name__}, which has no motion prior")
        options.fps = pipe.denoiser.config.fps or 30.0
        with replacing(files[0], options.overwrite) as image, replacing(files[1], options.overwrite) as archive:
            picture = COMMANDS[options.command](pipe, options)
            draw(picture, pipe.denoiser.config.axes, options).savefig(image, dpi=150, bbox_inches="tight")
            np.savez(archive, fps=options.fps, axes=pipe.denoiser.config.axes, **picture.arrays)
    except (ValueError, OSError) as error:
        print(f"motion_prior: {error}", file=sys.stderr)
        return 2
    print(f"written: {', '.join(map(str, files))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
