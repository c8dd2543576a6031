"""The web page of `probpose demo`: keypoints or a video in, 3D motions to turn, to question and to download out.

    from probpose.demo import appearance, build_demo
    build_demo().launch(**appearance())

needs `pip install probpose[demo]`. The page loads nothing from elsewhere and sends nothing away.
"""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, wraps
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from .results import SampledPerson, name_clips, sample_person

if TYPE_CHECKING:
    import gradio
    import pandas

    from .data import KeypointTrack

EXAMPLES = {"A basketball player": "basketball.npz", "Two people walking": "two_people.npz"}
EXAMPLE_FOCAL = "1145"  # pixels
MOST_HYPOTHESES, MOST_STEPS = 200, 100
MOST_UNPACKED = 1 << 30  # bytes
MOST_POINTS = 500  # of a curve


# ---------------------------------------------------------------------------------------------------------------------
# From a file to files
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class PersonResult:
    """What the page shows of one person.

    Attributes:
        summary: a sentence or two, HTML.
        over_time: mean uncertainty in mm of either side of the body and of the rest, by the second of the recording.
        per_joint: mean uncertainty in mm of every joint.
        files: all that can be downloaded by suffix: npz, bvh, glb, csv, trc, json, png, html.
    """

    summary: str
    over_time: pandas.DataFrame
    per_joint: pandas.DataFrame
    files: dict[str, Path]


@dataclass(eq=False)
class Result:
    """What came of one recording.

    Attributes:
        folder: what all of it is in.
        people: by name.
        archive: a zip of all files.
        overlay: a video with the motion drawn into it, if the recording is a video.
    """

    folder: Path
    people: dict[str, PersonResult]
    archive: Path
    overlay: Path | None


Say = Callable[[float, str], None]
"""Is told which share of a piece of work is done, and what is being done."""


def _nothing(share: float, what: str) -> None:
    """Nobody wants to know."""


def read_recording(
    upload: Path, detector: Callable[[], Any], skeleton: str | None = None, image_size: tuple[int, int] | None = None,
    fps: float | None = None, say: Say = _nothing,
) -> list[KeypointTrack]:  # fmt: skip
    """The people in a keypoint file, in a zip of a folder with one such file per frame, or in a video.

    Args:
        upload: the file.
        detector: gives a `probpose.video.Detector`; is asked only for a video.
        skeleton, image_size, fps: what a keypoint file does not tell. A video is read at `fps` and tells the rest.
        say: is told how far it is.

    Raises:
        ValueError: a file that is not understood, holds nobody, or leaves the image size open.
        OSError: the file or the detector's weights cannot be read.
        ImportError: the extra `video` is missing.
    """
    from .data import read_keypoints
    from .video import Video, is_video, read_video

    with tempfile.TemporaryDirectory(prefix="probpose-") as scratch:
        path = _unpack(upload, Path(scratch)) if upload.suffix.lower() == ".zip" else upload
        try:
            if is_video(path):
                video = Video.open(path, fps)
                tracks = read_video(video, _counting(detector(), video.num_frames, say), progress=False)
            else:
                tracks = read_keypoints(path, skeleton=skeleton, image_size=image_size, fps=fps)
        except (ValueError, OSError) as error:  # the server's folders are nobody's business
            kind = ValueError if isinstance(error, ValueError) else OSError
            raise kind(str(error).replace(str(path), upload.name)) from error
    if not tracks:
        raise ValueError(f"{upload.name}: nobody was found in it")
    if tracks[0].image_size is None:
        raise ValueError(f"{upload.name} does not tell the image size: give it under “What the file does not tell”")
    return tracks


def sample_people(
    pipe: Any, tracks: list[KeypointTrack], folder: Path, name: str, video: Path | None = None, focal: float | None = None,
    say: Say = _nothing, **call: Any,
) -> Result:  # fmt: skip
    """Sample everybody in a recording, and write all that there is to look at and to download.

    Args:
        pipe: a pipeline.
        tracks: the people, of one recording.
        folder: an empty folder.
        name: of the recording.
        video: the film that the people were found in.
        focal: focal length in pixels, if known.
        say: is told how far it is.
        call: the seed and further words of `probpose.results.sample_person`.

    Raises:
        ValueError: what the pipeline refuses.
    """
    from .geometry import Camera

    width, height = tracks[0].image_size
    camera = None if focal is None else Camera((focal, focal), (width / 2, height / 2), image_size=(width, height))
    calibrator = getattr(pipe, "calibrator", None)
    clips = name_clips(tracks, name)
    people, results, files = [], {}, []
    for number, (clip, track) in enumerate(clips.items()):
        # Writing takes about as long as sampling a short clip.
        with _steps_told(pipe, lambda share: say((number + share / 2) / len(clips), f"sampling {clip}")):  # noqa: B023
            people.append(person := sample_person(pipe, track, clip, camera=camera, **call))
        say((number + 0.5) / len(clips), f"writing {clip}")
        summary = _summary(person, None if calibrator is None else calibrator.config.coverage)
        results[clip] = PersonResult(summary, _over_time(person), _per_joint(person), write_files(person, folder))
        files += results[clip].files.values()
    overlay = None
    if video is not None:
        from .data import write_keypoints
        from .visualization import write_overlay

        say(1, "drawing into the video")
        overlay = write_overlay(folder / f"{name}_overlay.mp4", people, video)
        write_keypoints(keypoints := folder / f"{name}_keypoints.npz", tracks)
        files += [overlay, keypoints]
    archive = folder / f"{name}.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for path in files:
            packed.write(path, path.name)
    return Result(folder, results, archive, overlay)


def write_files(person: SampledPerson, folder: Path) -> dict[str, Path]:
    """Write a person, sampled with an aggregation, in every format; the paths by suffix."""
    from .export import FORMATS, Motion, export
    from .visualization import draw_person

    motion = Motion.from_person(person)
    paths = {suffix: folder / f"{person.name}.{suffix}" for suffix in dict.fromkeys(("npz", *FORMATS, "png", "html"))}
    for suffix, path in paths.items():
        if suffix == "npz":
            person.save(path)
        elif suffix in FORMATS:
            export(motion, path)
        else:
            draw_person(person, path)
    return paths


def _counting(detector: Any, frames: int, say: Say) -> Any:
    """A detector that tells how many of the frames it has seen."""
    seen = 0

    def counting(batch: list[np.ndarray]) -> Any:
        nonlocal seen
        found, seen = detector(batch), seen + len(batch)
        say(min(1, seen / frames), "finding people")
        return found

    counting.skeleton = getattr(detector, "skeleton", None)
    return counting


@contextmanager
def _steps_told(pipe: Any, say: Callable[[float], None]) -> Iterator[None]:
    """In place of the progress bar that the pipeline would show on the server's screen."""

    class Bar(nullcontext):
        def __init__(self, total: int):
            super().__init__(self)
            self.total, self.done = total, 0

        def update(self, steps: int = 1) -> None:
            self.done += steps
            say(self.done / self.total)

    pipe.progress_bar = Bar
    try:
        yield
    finally:
        del pipe.progress_bar


def _unpack(upload: Path, folder: Path) -> Path:
    """The one file, or the one folder of files, in a zip."""
    try:
        with zipfile.ZipFile(upload) as archive:
            if (size := sum(member.file_size for member in archive.infolist())) > MOST_UNPACKED:
                raise ValueError(f"{upload.name} would unpack to {size / 1e9:.1f} GB; {MOST_UNPACKED / 1e9:.1f} GB are allowed")
            archive.extractall(folder)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{upload.name} is no zip file: {error}") from error
    found = [path for path in folder.rglob("*") if path.is_file() and "__MACOSX" not in path.parts]
    folders = {path.parent for path in found}
    if len(folders) != 1:
        raise ValueError(f"{upload.name} must hold one recording: files of one folder, not of {len(folders)}")
    return found[0] if len(found) == 1 else folders.pop()


# ---------------------------------------------------------------------------------------------------------------------
# What there is to say of a person
# ---------------------------------------------------------------------------------------------------------------------


def _summary(person: SampledPerson, coverage: float | None) -> str:
    from .data import describe_frames

    frames, millimetres = len(person.track), 1000 * person.uncertainty.mean()
    facts = [
        f"{len(person.hypotheses)} hypotheses",
        f"{frames} frames ({frames / person.fps:.1f} s at {person.fps:g} fps)",
        f"mean uncertainty {millimetres:.0f} mm",
    ]
    if person.radius is not None:
        facts.append(f"{coverage:.0%} of the time a joint is within {1000 * person.radius.mean():.0f} mm")
    notes = list(person.track.source.get("notes", ()))
    if person.bridged.any():
        unseen = describe_frames(person.bridged, person.track.frame[0])
        notes.insert(0, f"Not seen in frames {unseen}: there the motion is what the frames around suggest.")
    lines = [f"<b>{escape(person.name)}</b>: {', '.join(facts)}.", *(escape(note) for note in notes)]
    return "".join(f"<p>{line}</p>" for line in lines)


def _sides(person: SampledPerson) -> list[str]:
    from .skeletons import get_skeleton
    from .visualization.common import side_of

    skeleton = get_skeleton(person.skeleton)
    return [side_of(skeleton, joint) for joint in range(skeleton.num_joints)]


def _over_time(person: SampledPerson) -> pandas.DataFrame:
    import pandas

    stride = -(-len(person.track) // MOST_POINTS)
    seconds, sides = person.track.frame / person.fps, np.array(_sides(person))
    curves = {side: 1000 * person.uncertainty[:, sides == side].mean(1) for side in dict.fromkeys(sides.tolist())}
    columns = [pandas.DataFrame({"second": seconds, "mm": values, "side": side})[::stride] for side, values in curves.items()]
    return pandas.concat(columns, ignore_index=True)


def _per_joint(person: SampledPerson) -> pandas.DataFrame:
    import pandas

    from .skeletons import get_skeleton

    names = [name.replace("_", " ") for name in get_skeleton(person.skeleton).joint_names]
    return pandas.DataFrame({"joint": names, "mm": 1000 * person.uncertainty.mean(0), "side": _sides(person)})


def _embed(page: Path) -> str:
    """The interactive page within the page, kept from everything around it."""
    return f'<iframe src="gradio_api/file={quote(str(page))}" title="3D view" sandbox="allow-scripts allow-downloads"></iframe>'


# ---------------------------------------------------------------------------------------------------------------------
# The page
# ---------------------------------------------------------------------------------------------------------------------

WELCOME = """
<p>Choose an example or drop a file of your own, then press <b>Sample</b>.</p>
<p>Keypoints: NumPy files, and what COCO, OpenPose, AlphaPose, MMPose, Ultralytics, MediaPipe and others write; as a zip where that is one
file per frame. Videos: people and their joints are found first, which takes a while.</p>
"""
PURPOSES = """
<p>npz: NumPy, all there is. bvh: Blender, MotionBuilder. glb: Blender, game engines. csv: spreadsheets, pandas, R. trc: OpenSim.
json: COCO’s layout. png and html: what is shown here.</p>
"""

# On a phone the result is below all settings.
TO_THE_RESULT = """(...words) => {
  if (innerWidth < 640) document.getElementById("summary").scrollIntoView({behavior: "smooth"});
  return words;
}"""


def build_demo(model: str = "d3dp-mocap17", device: str = "auto", detector: Any = "vitpose") -> gradio.Blocks:
    """The page; `.launch(**appearance())` serves it.

    One recording is sampled at a time, others wait. What was made of a recording is deleted an hour after its reader has left, and at
    the end of the process.

    Args:
        model: bundled name, folder or Hub id of the pipeline that is chosen at first. The bundled ones are there to choose, too.
        device: auto, cpu, cuda, cuda:1, mps.
        detector: what finds people in videos: a `probpose.video.Detector`, or a name for `probpose.video.load_detector`, which is
            called when the first video comes.

    Raises:
        ImportError: Gradio is missing.
        ValueError, OSError: the model cannot be loaded.
    """
    gr = _gradio()
    from .aggregation import AGGREGATORS
    from .geometry import parse_image_size
    from .hub import list_bundled_models
    from .skeletons import list_skeletons
    from .video import is_video
    from .visualization.common import COLOURS

    root = tempfile.TemporaryDirectory(prefix="probpose-demo-")
    gr.set_static_paths(root.name)
    settings = _load_pipeline(str(model), device).settings()

    @_told
    def choose_model(name: str) -> tuple[int, int]:
        defaults = _load_pipeline(name, device).settings()
        return defaults.num_hypotheses, defaults.num_inference_steps

    @cache
    def find_people() -> Any:
        return _load_detector(detector, device) if isinstance(detector, str) else detector

    progress = gr.Progress()

    @_told
    def sample(upload, name, hypotheses, steps, aggregation, seed, size, fps, skeleton, focal, before, progress=progress):
        if upload is None:
            raise ValueError("Choose an example or drop a file first.")
        upload, focal, fps = Path(upload), _number(focal, "the focal length"), _number(fps, "the frame rate")
        size = parse_image_size(size) if size else None
        tracks = read_recording(upload, find_people, skeleton or None, size, fps, progress)
        folder = Path(tempfile.mkdtemp(dir=root.name))
        try:
            result = sample_people(
                _load_pipeline(name, device), tracks, folder, upload.stem, upload if is_video(upload) else None, focal, progress,
                seed=int(seed), num_hypotheses=int(hypotheses), num_inference_steps=int(steps), aggregation=aggregation,
            )  # fmt: skip
        except BaseException:
            shutil.rmtree(folder)
            raise
        forget(before)
        labels = [(clip.removeprefix(f"{upload.stem}_").replace("_", " "), clip) for clip in result.people]
        first = next(iter(result.people))
        people = gr.Radio(labels, value=first, visible=len(labels) > 1)
        archive = gr.DownloadButton(value=result.archive, visible=True)
        film = gr.Tab(visible=result.overlay is not None)
        return result, gr.Column(visible=True), archive, people, film, result.overlay, *show(first, result)

    def show(name: str, result: Result) -> tuple:
        person = result.people[name]
        return (
            person.summary,
            _embed(person.files["html"]),
            person.files["png"],
            person.over_time,
            person.per_joint,
            [*map(str, person.files.values())],
        )

    def forget(result: Result | None) -> None:
        if result is not None:
            shutil.rmtree(result.folder, ignore_errors=True)

    colours = {**COLOURS, "centre": "#8A8A8A"}  # a grey to be seen on white and on black
    with gr.Blocks(title="probpose", analytics_enabled=False, fill_width=True, delete_cache=(3600, 86400)) as page:
        gr.HTML("<h1>probpose</h1><p>2D keypoints or a video in, a distribution over 3D motion out.</p>", elem_id="head")
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=320):
                upload = gr.File(label="Keypoint file or video", height=140, elem_id="upload")
                size = gr.Textbox("", label="Image size", placeholder="1920x1080", min_width=120, render=False)
                fps = gr.Textbox("", label="Frames per second", placeholder="30", min_width=120, render=False)
                skeleton = gr.Dropdown([("as in the file", ""), *list_skeletons()], label="Joint set", render=False)
                focal = gr.Textbox("", label="Focal length in pixels", placeholder="of a 55° field of view", render=False)
                untold = [size, fps, skeleton, focal]
                data = files("probpose.examples")
                examples = [[str(data / name), "", "", "", EXAMPLE_FOCAL] for name in EXAMPLES.values()]
                gr.Examples(examples, [upload, *untold], example_labels=[*EXAMPLES])
                names = dict.fromkeys([str(model), *list_bundled_models()])
                chosen = gr.Dropdown([*names], value=str(model), label="Model")
                hypotheses = gr.Slider(1, MOST_HYPOTHESES, settings.num_hypotheses, step=1, label="Hypotheses (K)", elem_id="hypotheses")
                steps = gr.Slider(1, MOST_STEPS, settings.num_inference_steps, step=1, label="Sampling steps")
                button = gr.Button("Sample", variant="primary", size="lg", elem_id="sample")
                with gr.Accordion("What the file does not tell", open=False):
                    gr.Markdown("A video tells its own image size and joints.")
                    with gr.Row():
                        size.render(), fps.render()
                    skeleton.render(), focal.render()
                with gr.Accordion("How to sample", open=False):
                    aggregation = gr.Dropdown([("the model's own", "default"), *AGGREGATORS], label="Aggregation")
                    seed = gr.Number(0, label="Seed", precision=0)
            with gr.Column(scale=5, min_width=320):
                with gr.Row(equal_height=False):
                    with gr.Column(scale=4, min_width=280):
                        summary = gr.HTML(WELCOME, elem_id="summary", min_height=80)
                    with gr.Column(scale=1, min_width=180):
                        archive = gr.DownloadButton("Download all", variant="primary", visible=False, elem_id="archive")
                with gr.Column(visible=False) as results:
                    person = gr.Radio(show_label=False, container=False, visible=False, elem_id="person")
                    with gr.Tab("3D view"):
                        scene = gr.HTML(elem_id="scene", padding=False)
                    with gr.Tab("Uncertainty"):
                        curves = gr.LinePlot(
                            x="second", y="mm", color="side", color_map=colours, title="Mean uncertainty over time", x_title="seconds",
                            y_title="mm", color_title=" ", y_lim=[0, None], height=300, buttons=["fullscreen"],
                        )  # fmt: skip
                        bars = gr.BarPlot(
                            x="joint", y="mm", color="side", color_map=colours, title="Mean uncertainty of the joints", x_title=" ",
                            y_title="mm", color_title=" ", sort="-y", x_label_angle=-40, height=340, buttons=["fullscreen"],
                        )  # fmt: skip
                    with gr.Tab("Picture"):
                        picture = gr.Image(show_label=False, interactive=False, type="filepath", buttons=["download", "fullscreen"])
                    with gr.Tab("Video", visible=False) as film:
                        overlay = gr.Video(show_label=False, interactive=False, elem_id="film")
                    with gr.Tab("Files"):
                        gr.HTML(PURPOSES, padding=False)
                        downloads = gr.File(show_label=False, file_count="multiple", interactive=False, elem_id="files")
        memory = gr.State(delete_callback=forget)

        shown = [summary, scene, picture, curves, bars, downloads]
        one_at_a_time = {"concurrency_limit": 1, "concurrency_id": "model"}
        # What was said of another file does not hold for this one; told within the browser, it is so before anything can be pressed.
        upload.upload(None, outputs=untold, js=f"() => {[''] * len(untold)}", api_visibility="private")
        chosen.input(choose_model, chosen, [hypotheses, steps], api_visibility="private", **one_at_a_time)
        asked = button.click(
            sample, [upload, chosen, hypotheses, steps, aggregation, seed, *untold, memory],
            [memory, results, archive, person, film, overlay, *shown],
            api_name="sample", show_progress_on=summary, js=TO_THE_RESULT, **one_at_a_time,
        )  # fmt: skip
        asked.success(None, js=TO_THE_RESULT, api_visibility="private")  # by now there is room to scroll
        person.input(show, [person, memory], shown, api_visibility="private", show_progress="hidden")
    return page


def appearance() -> dict[str, Any]:
    """Words for `launch`: the house's colours, the reader's own fonts, nothing about Gradio."""
    gr = _gradio()
    from .visualization.common import COLOURS

    blue = gr.themes.Color(*_tints(COLOURS["left"]), name="blue")
    theme = gr.themes.Default(primary_hue=blue, secondary_hue=blue, font=FONTS, font_mono=["ui-monospace", "monospace"])
    return {"theme": theme, "css": CSS, "footer_links": [], "run_history": False, "ssr_mode": False}


FONTS = ["system-ui", "Helvetica", "Arial", "sans-serif"]
CSS = """
#head h1 { margin: 0; font-size: 1.6rem }
#head p, #summary p { margin: 0.2rem 0 }
#summary .pending { visibility: hidden }
#scene iframe { width: 100%; height: max(540px, 100vh - 400px); border: 0; background: white }
#film video { max-height: 62vh }
#files .label-clear-button { display: none }
@media (max-width: 640px) { #scene iframe { height: 760px } }
"""


def _tints(colour: str) -> list[str]:
    """Eleven shades from nearly white to nearly black, the colour itself in the middle."""
    middle = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    lighter = [255 + share * (middle - 255) for share in (0.06, 0.12, 0.28, 0.5, 0.75, 1)]
    darker = [share * middle for share in (0.85, 0.7, 0.55, 0.42, 0.3)]
    return ["#" + "".join(f"{round(value):02x}" for value in shade) for shade in (*lighter, *darker)]


def _number(text: str, what: str) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        raise ValueError(f"{what} must be a number, not {text!r}") from None


def _told(handler: Callable) -> Callable:
    """The handler, with what was wrong with the input said on the page."""
    gr = _gradio()

    @wraps(handler)
    def telling(*words):
        try:
            return handler(*words)
        except (ValueError, OSError, ImportError, FloatingPointError) as error:
            message = escape(str(error), quote=False).replace("\n", "<br>")
            raise gr.Error(message, duration=None, print_exception=False) from error

    return telling


@cache
def _load_pipeline(name: str, device: str) -> Any:
    from diffusers.utils.logging import disable_progress_bar

    from . import ProbPosePipeline
    from .devices import choose_device

    disable_progress_bar()  # loading takes no time worth a bar
    return ProbPosePipeline.from_pretrained(name).to(choose_device(device))


def _load_detector(name: str, device: str) -> Any:
    from .video import load_detector

    return load_detector(name, **({"device": device} if name == "vitpose" else {}))


def _gradio() -> Any:
    try:
        import gradio
    except ImportError as error:
        raise ImportError("the demo needs Gradio: pip install probpose[demo]") from error
    return gradio
