"""A recording for the Rerun viewer: the motion in space beside the image it was seen in."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from probpose.files import replacing
from probpose.results import SampledPerson
from probpose.skeletons import Skeleton, get_skeleton
from probpose.visualization.common import check_people, open_video, rgb, side_of

if TYPE_CHECKING:
    from rerun import RecordingStream, TimeColumn
    from rerun.blueprint import Blueprint

    from probpose.data import KeypointTrack
    from probpose.video import Video

BOLD, THIN, DOT = 0.012, 0.002, 0.02  # radii in metres


def write_rerun(
    path: str | Path,
    people: Sequence[SampledPerson],
    video: Video | str | Path | None = None,
    overwrite: bool = False,
    max_hypotheses: int = 20,
) -> Path:
    """Writes all people of a recording for the Rerun viewer (`rerun FILE.rrd`), with the timelines "frame" and "time" (seconds).

    `/people/NAME` holds `pose`, `joints`, `hypotheses`, `uncertainty` (spheres, of the calibrated radius where there is one) and `root`
    (the whole way), each to be switched on and off, in camera axes (x right, y down, z forward; metres). Poses of frames in which the
    person was not seen are pale. `/camera` is the camera without its lens distortion, `/camera/NAME` the 2D input in pixels, larger the
    higher its confidence.

    Args:
        path: the file to write, `.rrd`.
        people: who share the frame rate and the image size of one recording; `track.frame` counts the frames of the video.
        video: the recording, as a file or an open `Video` of the people's frame rate, to stand behind the 2D input.
        overwrite: whether an existing file may be replaced.
        max_hypotheses: at most so many hypotheses are kept, the first ones.

    Returns:
        The path.

    Raises:
        ValueError: nobody, people of different frame rates or image sizes or of the same name, somebody without a root trajectory or a
            camera, a video of another size or rate, another suffix, or `max_hypotheses` below 1.
        FileExistsError: `path` exists and `overwrite` is false.
        FileNotFoundError: the folder of `path` or the video does not exist.
        ImportError: the Rerun SDK is missing, or PyAV for a video.
    """
    try:
        import rerun as rr
    except ImportError as error:
        raise ImportError("write_rerun needs the Rerun SDK: pip install probpose[rerun]") from error

    path = Path(path)
    if path.suffix.lower() != ".rrd":
        raise ValueError(f"`path` must end in .rrd, not {str(path)!r}")
    if max_hypotheses < 1:
        raise ValueError(f"`max_hypotheses` must be at least 1, not {max_hypotheses}")
    fps, size = check_people(people)
    names = [person.name for person in people]
    if len(set(names)) < len(names):
        raise ValueError(f"`people` must have different names, not {', '.join(names)}")
    if video is not None:
        video = open_video(video, people[0].track)
        fps = video.fps
    frames = range(min(int(person.track.frame[0]) for person in people), max(int(person.track.frame[-1]) for person in people) + 1)

    with replacing(path, overwrite) as unfinished:
        recording = rr.RecordingStream("probpose")
        try:
            recording.save(unfinished, default_blueprint=_blueprint(people))
            recording.log("/", rr.ViewCoordinates.RDF, static=True)
            camera = people[0].camera
            pinhole = rr.Pinhole(focal_length=camera.focal.tolist(), principal_point=camera.centre.tolist(), resolution=size)
            recording.log("camera", pinhole, static=True)
            for person in people:
                name = rr.escape_entity_path_part(person.name)
                _log_person(recording, person, f"people/{name}", fps, max_hypotheses)
                _log_input(recording, person.track, f"camera/{name}", fps)
                end = person.track.frame[-1:] + 1
                if end in frames:  # or the last pose would stay
                    for entity in (f"people/{name}", f"camera/{name}"):
                        recording.send_columns(entity, _times(end, fps), rr.Clear.columns(is_recursive=[True]))
            if video is not None:
                _log_video(recording, video, frames)
        finally:
            recording.disconnect()  # writes what is left, and closes the file
    return path


def _blueprint(people: Sequence[SampledPerson]) -> Blueprint:
    """The motion over a floor at the lowest joint of all, and the 2D input to the right of it."""
    import rerun.blueprint as rrb
    from rerun.components import Plane3D

    lowest = max((person.hypotheses.mean(axis=0) + person.root[:, None])[..., 1].max() for person in people)
    floor, white = rrb.LineGrid3D(plane=Plane3D((0, -1, 0), -lowest), spacing=0.5), (255, 255, 255)
    space = rrb.Spatial3DView(origin="/", name="motion", background=white, line_grid=floor)
    image = rrb.Spatial2DView(origin="/camera", name="2D input", background=white)
    panels = rrb.SelectionPanel(state="collapsed"), rrb.TimePanel(state="collapsed")
    return rrb.Blueprint(rrb.Horizontal(space, image, column_shares=[3, 2]), *panels, auto_views=False)


def _times(frames: np.ndarray, fps: float) -> list[TimeColumn]:
    from rerun import TimeColumn

    return [TimeColumn("frame", sequence=frames), TimeColumn("time", duration=frames / fps)]


def _log_person(recording: RecordingStream, person: SampledPerson, entity: str, fps: float, max_hypotheses: int) -> None:
    import rerun as rr

    skeleton, times = get_skeleton(person.skeleton), _times(person.track.frame, fps)
    bones, names = np.array(skeleton.bones), [name.replace("_", " ") for name in skeleton.joint_names]
    frames, joints = person.root.shape[0], skeleton.num_joints
    full, pale = _colours(skeleton), _colours(skeleton, white=0.6)

    def send(name: str, columns: Any, each_frame: int) -> None:
        recording.send_columns(f"{entity}/{name}", times, columns.partition([each_frame] * frames))

    def stay(name: str, values: Any) -> None:
        recording.log(f"{entity}/{name}", values, static=True)

    hypotheses = (person.hypotheses[:max_hypotheses] + person.root[:, None]).swapaxes(0, 1)  # frame by frame
    several = hypotheses.shape[1]
    send("hypotheses", rr.LineStrips3D.columns(strips=hypotheses[:, :, bones].reshape(-1, 2, 3)), several * len(bones))
    stay("hypotheses", rr.LineStrips3D.from_fields(colors=np.tile(pale[bones[:, 1]], (several, 1)), radii=THIN))
    stay("root", rr.LineStrips3D([person.root], colors=rgb("centre", 0.5), radii=THIN))
    if person.pose is None:
        return
    pose = person.pose + person.root[:, None]
    shown = np.where(person.bridged[:, None, None], pale, full)
    limbs = rr.LineStrips3D.columns(strips=pose[:, bones].reshape(-1, 2, 3), colors=shown[:, bones[:, 1]].reshape(-1, 3))
    send("pose", limbs, len(bones))
    stay("pose", rr.LineStrips3D.from_fields(radii=BOLD))
    send("joints", rr.Points3D.columns(positions=pose.reshape(-1, 3), colors=shown.reshape(-1, 3)), joints)
    stay("joints", rr.Points3D.from_fields(radii=DOT, labels=names, show_labels=False))
    radius = person.uncertainty if person.radius is None else person.radius
    if radius is not None:
        sizes = np.repeat(radius.reshape(-1, 1), 3, axis=1)
        send("uncertainty", rr.Ellipsoids3D.columns(centers=pose.reshape(-1, 3), half_sizes=sizes), joints)
        stay("uncertainty", rr.Ellipsoids3D.from_fields(colors=pale, line_radii=THIN / 2, labels=names, show_labels=False))


def _log_input(recording: RecordingStream, track: KeypointTrack, entity: str, fps: float) -> None:
    """What was seen, as it was detected: joints and the bones between them."""
    import rerun as rr

    skeleton, times, points = get_skeleton(track.skeleton), _times(track.frame, fps), track.keypoints_2d
    bones, colours = np.array(skeleton.bones), np.broadcast_to(_colours(skeleton), (*points.shape[:2], 3))
    seen = track.confidence > 0
    radii = -(1.5 + 3 * track.confidence)  # negative: pixels of the screen
    marks = rr.Points2D.columns(positions=points[seen], colors=colours[seen], radii=radii[seen])
    recording.send_columns(f"{entity}/joints", times, marks.partition(seen.sum(axis=1)))
    whole = seen[:, bones].all(axis=-1)
    strips = rr.LineStrips2D.columns(strips=points[:, bones][whole], colors=colours[:, bones[:, 1]][whole])
    recording.send_columns(f"{entity}/bones", times, strips.partition(whole.sum(axis=1)))


def _colours(skeleton: Skeleton, white: float = 0.0) -> np.ndarray:
    return np.array([rgb(side_of(skeleton, joint), white) for joint in range(skeleton.num_joints)], np.uint8)


def _log_video(recording: RecordingStream, video: Video, frames: range) -> None:
    import rerun as rr

    for number, picture in zip(frames, islice(video.frames(), frames[0], None)):
        recording.set_time("frame", sequence=number)
        recording.set_time("time", duration=number / video.fps)
        recording.log("camera", rr.Image(picture).compress(jpeg_quality=80))
