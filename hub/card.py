"""Model cards: read, held against the licences of the training data, and made from the model itself."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

from .repository import CONFIG, INDEX, parts_of, read_index, read_json, read_weights

CARD = "README.md"

LICENSES = (
    "apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "isc", "cc0-1.0", "unlicense", "mpl-2.0", "gpl-3.0", "lgpl-3.0", "agpl-3.0",
    "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nd-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0", "openrail", "other",
)  # fmt: skip
"""What a card's `license` may be, in the Hub's words; "other" goes with a `license_name`."""


class DataSource(NamedTuple):
    """Something that weights were made from.

    Args:
        name: for the card.
        license: one of `LICENSES`; "other": research only, by an agreement; None: free for all uses.
        note: whom to credit.
    """

    name: str
    license: str | None
    note: str


DATA_SOURCES = {
    "cmu": DataSource(
        "CMU Graphics Lab Motion Capture Database", None, "mocap.cs.cmu.edu; created with funding from NSF EIA-0196217"
    ),
    "bandai": DataSource(
        "Bandai-Namco-Research-Motiondataset", "cc-by-nc-4.0", "Kobayashi et al., arXiv 2306.08861"
    ),
    "h36m": DataSource("Human3.6M", "other", "Ionescu et al., TPAMI 2014; for academic use"),
    "3dhp": DataSource("MPI-INF-3DHP", "other", "Mehta et al., 3DV 2017; for non-commercial research"),
    "3dpw": DataSource("3DPW", "other", "von Marcard et al., ECCV 2018; for non-commercial research"),
    "humaneva": DataSource("HumanEva-I", "other", "Sigal et al., IJCV 2010; for research"),
}  # fmt: skip
"""Training data by the name that cards (`training_data`) and recipes have for it."""


class _System(NamedTuple):
    tag: str
    summary: str
    citation: str


_D3DP = 'Shan et al., "Diffusion-Based 3D Human Pose Estimation with Multi-Hypothesis Aggregation", ICCV 2023, arXiv 2303.11579.'
_SYSTEMS = {
    "D3DPPipeline": _System("d3dp", "Samples 3D motions from 2D keypoints by D3DP's diffusion.", _D3DP),
    "PoSynDAPipeline": _System(
        "posynda",
        "Samples 3D motions from 2D keypoints by D3DP's diffusion, and can be adapted to a scene of which only 2D is known.",
        "Liu et al., \"PoSynDA: Multi-Hypothesis Pose Synthesis Domain Adaptation for Robust 3D Human Pose Estimation\", ACM Multimedia "
        f"2023, arXiv 2308.09678. {_D3DP}",
    ),
    "DiffPosePipeline": _System(
        "diffpose",
        "Samples 3D motions from 2D keypoints by DiffPose's diffusion, which begins at the detector's uncertainty.",
        "Gong et al., \"DiffPose: Toward More Reliable 3D Pose Estimation\", CVPR 2023, arXiv 2211.16940.",
    ),
    "PlatyposePipeline": _System(
        "platypose",
        "Samples 3D motions from 2D keypoints of one or several cameras: a prior of motion, guided while sampling.",
        "Pierzchlewicz et al., \"Platypose: Calibrated Zero-Shot Multi-Hypothesis 3D Human Motion Estimation\", arXiv 2403.06164.",
    ),
}  # fmt: skip
_PROBPOSE = "probpose: probabilistic 3D human pose, CITATION.cff in its repository."


# ---------------------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------------------


def read_front_matter(text: str, source: str = CARD) -> dict[str, Any]:
    """The YAML block that a card begins with; empty if it has none.

    Raises:
        ValueError: it is damaged; `source` says whose.
    """
    import yaml

    match = re.match(r"\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*$", text, re.DOTALL | re.MULTILINE)
    if match is None:
        return {}
    try:
        content = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        raise ValueError(f"the front matter of {source} is damaged: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ValueError(f"the front matter of {source} must be fields with values, got {content!r}")
    return content


def check_card(text: str, source: str = CARD) -> dict[str, Any]:
    """A card's front matter, if the model may be published with it.

    Raises:
        ValueError: no licence, an unknown one, or one that allows what the training data do not; or the card of another library.
    """
    front = read_front_matter(text, source)
    license_ = front.get("license")
    if not license_:
        raise ValueError(f"{source} names no licence: put `license: …` into its front matter, e.g. {', '.join(LICENSES[:2])}, cc-by-nc-4.0")
    if license_ not in LICENSES:
        raise ValueError(f"{source} has an unknown licence {license_!r}; known are {', '.join(LICENSES)}")
    if license_ == "other" and not front.get("license_name"):
        raise ValueError(f"{source} has `license: other`, which goes with a `license_name: …`")
    if front.get("library_name") != "probpose":
        raise ValueError(f"{source} must have `library_name: probpose` in its front matter, got {front.get('library_name')!r}")
    check_licenses(license_, find_sources(front.get("training_data") or ()), source)
    return front


def check_licenses(license_: str, sources: Iterable[DataSource], subject: str = "the model") -> None:
    """Raise ValueError if the data are for non-commercial use and the licence of what was made from them is not."""
    for data in sources:
        if _is_noncommercial(data.license) and not _is_noncommercial(license_):
            allowed = ", ".join(name for name in LICENSES if _is_noncommercial(name))
            raise ValueError(
                f"{subject} cannot be {license_}: {data.name} is for non-commercial use ({data.note or data.license}); it may be {allowed}"
            )


def _is_noncommercial(license_: str | None) -> bool:
    return license_ is not None and (license_ == "other" or license_.startswith("cc-by-nc"))


def find_sources(names: str | Iterable[str]) -> list[DataSource]:
    """Training data by their names in `DATA_SOURCES`, or as "my recordings (cc0-1.0)"; ValueError says whose licence is not known."""
    sources = []
    for name in [names] if isinstance(names, str) else names:
        match = re.fullmatch(r"(.+?)\s*\(([\w.-]+)\)", str(name))
        if match is None and name not in DATA_SOURCES:
            raise ValueError(
                f"the licence of the training data {name!r} is not known: write '{name} (LICENCE)', or one of {', '.join(DATA_SOURCES)}"
            )
        if match is not None and match[2] not in LICENSES:
            raise ValueError(f"the training data {match[1]!r} have an unknown licence {match[2]!r}; known are {', '.join(LICENSES)}")
        sources.append(DATA_SOURCES[name] if match is None else DataSource(match[1], match[2], ""))
    return sources


def inherited_data(source: str | Path | None) -> list[str]:
    """Training data of weights that began as those of another model, and that model itself, as its card has them.

    Args:
        source: folder that the model was loaded from; None, or one without a card: nothing is known.
    """
    if source is None:
        return []
    for folder in (Path(source), Path(source).parent):  # of a pipeline, or of its part
        if (folder / CARD).is_file() and any((folder / name).is_file() for name in (INDEX, CONFIG)):
            front = read_front_matter((folder / CARD).read_text(encoding="utf-8"), str(folder / CARD))
            if front.get("license") in LICENSES:
                cached = re.fullmatch(r"models--(.+)--(.+)", folder.parent.parent.name)
                name = folder.name if cached is None else f"{cached[1]}/{cached[2]}"
                return [*(front.get("training_data") or ()), f"{name} ({front['license']})"]
    return []


# ---------------------------------------------------------------------------------------------------------------------
# Making
# ---------------------------------------------------------------------------------------------------------------------


def make_card(
    folder: str | Path,
    repo_id: str,
    license: str | None = None,
    training_data: str | Sequence[str] = (),
    recipe: str | Path | None = None,
    measured: Any = None,
    origin: Sequence[str] = (),
) -> str:
    """A card for a saved pipeline or network, out of its own configuration.

    Args:
        folder: where it is saved.
        repo_id: under which it will be found.
        license: one of `LICENSES`; default that of the training data, if it is one.
        training_data: names in `DATA_SOURCES`, or "NAME (LICENCE)". Default: the recipe's archives, by their names.
        recipe: file of the training recipe; the card quotes it.
        measured: an `EvaluationReport`, a report file of `probpose evaluate --json`, or a file with Markdown.
        origin: what else the weights are bound to: model and data that they began with, as `inherited_data` tells.

    Returns:
        Markdown with front matter.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: no licence, or one that allows what the data do not; data whose licence nobody knows.
    """
    import yaml

    folder = Path(folder)
    names = [training_data] if isinstance(training_data, str) else list(training_data)
    recipe_text = None if recipe is None else Path(recipe).read_text(encoding="utf-8")
    if recipe_text is not None and not names:
        names = _data_of(yaml.safe_load(recipe_text), str(recipe))
    names = list(dict.fromkeys([*names, *origin]))
    sources = find_sources(names)
    license = license or _license_of(sources)
    if license == "other" or license not in LICENSES:
        allowed = ", ".join(name for name in LICENSES if name != "other")
        raise ValueError(f"a card is made for one of the licences {allowed}, got {license!r}; write the card by hand for others")
    check_licenses(license, sources, repo_id)

    is_pipeline = (folder / INDEX).is_file()
    description = _describe_pipeline(folder) if is_pipeline else _describe_network(folder)
    system = description.system
    front = {
        "library_name": "probpose",
        "license": license,
        "pipeline_tag": "keypoint-detection",
        "tags": ["3d-human-pose", "diffusion", "uncertainty", "motion-capture", *([system.tag] if system.tag else [])],
        **({"training_data": names} if names else {}),
    }
    text = Template(Path(__file__).with_name("card_template.md").read_text(encoding="utf-8")).substitute(
        front_matter=yaml.safe_dump(front, sort_keys=False, allow_unicode=True, width=1000).strip(),
        name=repo_id.split("/")[-1],
        summary=system.summary,
        facts="\n".join(f"| {name} | {value} |" for name, value in description.facts.items()),
        usage=description.usage.replace("REPO_ID", repo_id),
        training=_training(sources, recipe_text),
        measured=_measured(measured, repo_id),
        licence="\n".join([f"Weights: {license}.", "", *(f"* {data.name}: {_terms(data)}." for data in sources)]).strip(),
        citation=f"{system.citation} {_PROBPOSE}".strip(),
    )
    check_card(text)
    return text


class _Description(NamedTuple):
    system: _System
    facts: dict[str, str]
    usage: str


def _describe_pipeline(folder: Path) -> _Description:
    index = read_index(folder)
    kind = str(index.get("_class_name"))
    configs = {name: read_json(folder / name / CONFIG) for name in parts_of(index) if (folder / name / CONFIG).is_file()}
    denoiser = configs.get("denoiser", {})
    defaults = ", ".join(f"{key.removeprefix('default_')} {value}" for key, value in index.items() if key.startswith("default_"))
    calibrator = configs.get("calibrator")
    system = _SYSTEMS.get(kind, _System("", f"Samples 3D motions from 2D keypoints: a {kind}.", ""))
    facts = {
        "input": f"2D keypoints in pixels (`{denoiser.get('input_skeleton') or denoiser.get('skeleton')}`; others are converted), "
        "with confidences if there are any",
        "output": "K hypotheses in metres, camera axes (x right, y down, z forward), relative to the root joint; a pose, its uncertainty",
        **_body(denoiser, configs.get("lifter", {}).get("num_frames")),
        "camera": _camera(denoiser),
        "defaults": defaults or "none",
        "uncertainty": "as sampled" if calibrator is None else f"recalibrated, with a radius for {calibrator.get('coverage', 0):.0%}",
        **{name: _describe_weights(folder / name, config) for name, config in configs.items()},
    }  # fmt: skip
    usage = (
        "from probpose import ProbPosePipeline, read_keypoints\n\n"
        'track = read_keypoints("keypoints.json", image_size=(1920, 1080))[0]\n'
        'pipe = ProbPosePipeline.from_pretrained("REPO_ID")\n'
        "out = pipe(track.keypoints_2d, confidence=track.confidence, image_size=track.image_size, skeleton=track.skeleton)\n"
        "out.hypotheses, out.pose, out.uncertainty, out.root  # metres"
    )
    return _Description(system, facts, usage)


def _describe_network(folder: Path) -> _Description:
    config = read_json(folder / CONFIG)
    kind = str(config.get("_class_name"))
    module = "calibration" if kind == "Recalibration" else "models"
    facts = {"units": "metres in and out; keypoints as a pipeline normalises them", **_body(config)}
    facts["weights"] = _describe_weights(folder, config)
    usage = f'from probpose.{module} import {kind}\n\nnetwork = {kind}.from_pretrained("REPO_ID")'
    return _Description(_System("", f"A part of a probpose pipeline: a {kind}.", ""), facts, usage)


def _body(config: Mapping[str, Any], lifter_window: int | None = None) -> dict[str, str]:
    """Joints and frames of a network, as far as its configuration tells."""
    from probpose.skeletons import get_skeleton

    facts = {}
    if config.get("skeleton"):
        skeleton = get_skeleton(config["skeleton"])
        facts["joints"] = f"{skeleton.num_joints}, `{skeleton.name}`: {', '.join(skeleton.joint_names)}"
    window = config.get("num_frames")
    rate = f" at {config['fps']:g} fps" if config.get("fps") else ""
    facts["frames"] = f"windows of {window} frames{rate}; clips of any length" if window else f"every frame for itself{rate}"
    if lifter_window:
        facts["frames"] += f"; the lifter sees windows of {lifter_window}"
    return facts


def _camera(config: Mapping[str, Any]) -> str:
    if "axes" in config:
        return f"guided by the keypoints of any camera; the network thinks in {config['axes']} axes"
    if config.get("canonical_camera"):
        return "keypoints are re-expressed in one canonical camera; give the intrinsics if you know them"
    return "keypoints are divided by the image's width; the lens should be like that of the training data"


def _describe_weights(folder: Path, config: Mapping[str, Any]) -> str:
    from math import prod

    tensors = read_weights(folder).values()
    stored = " and ".join(sorted({tensor.dtype for tensor in tensors}))
    return f"`{config.get('_class_name')}`, {sum(prod(tensor.shape) for tensor in tensors):,} parameters ({stored})"


def _license_of(sources: Sequence[DataSource]) -> str:
    """The one licence that the training data ask for."""
    asked = {data.license for data in sources if data.license}
    bound = {license_ for license_ in asked if _is_noncommercial(license_)} or asked
    if len(bound) != 1 or bound == {"other"}:
        raise ValueError(f"a model needs a licence (license=…, --license): one of {', '.join(LICENSES)}")
    return bound.pop()


def _data_of(recipe: Any, source: str) -> list[str]:
    """Names of the archives that a recipe trains on."""
    data = recipe.get("data") if isinstance(recipe, dict) else None
    if not isinstance(data, dict) or not isinstance(data.get("paths"), list):
        raise ValueError(f"{source} is no training recipe: it has no data.paths")
    return [Path(str(path)).stem for path in data["paths"]]


def _training(sources: Sequence[DataSource], recipe: str | None) -> str:
    data = f"Made from {', '.join(data.name for data in sources)}." if sources else "What it was trained on is not said."
    return data if recipe is None else f"{data} `probpose train` with this recipe:\n\n```yaml\n{recipe.strip()}\n```"


def _terms(data: DataSource) -> str:
    terms = {None: "free for all uses", "other": "by its own agreement"}.get(data.license, data.license)
    return f"{terms} ({data.note})" if data.note else str(terms)


def _measured(measured: Any, repo_id: str) -> str:
    if measured is None:
        return f"Not yet. `probpose evaluate {repo_id} --data DATA` measures it."
    if hasattr(measured, "to_markdown"):
        return measured.to_markdown().strip()
    path = Path(measured)
    text = path.read_text(encoding="utf-8")
    return _table(read_json(path), path) if path.suffix == ".json" else text.strip()


def _table(report: Mapping[str, Any], path: Path) -> str:
    """The rows of a report of `probpose evaluate --json`."""
    rows = report.get("groups")
    if not isinstance(rows, dict) or not rows or not all(isinstance(row, dict) for row in rows.values()):
        raise ValueError(f"{path} is no report of `probpose evaluate --json`: it has no groups")
    metrics = [name for name in next(iter(rows.values())) if "/" not in name]
    settings = json.dumps({key: value for key, value in (report.get("settings") or {}).items() if value not in (None, [], {})})
    return "\n".join(
        [
            f"| motions | {' | '.join(metrics)} |",
            "|".join(["", "---", *["---:"] * len(metrics), ""]),
            *(f"| {name} | {' | '.join(_number(row.get(metric)) for metric in metrics)} |" for name, row in rows.items()),
            "",
            f"Errors in millimetres, `ece` from 0 to 1. Settings: `{settings}`",
        ]
    )


def _number(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value}" if isinstance(value, (int, str)) else f"{value:.1f}" if abs(value) >= 1 else f"{value:.3f}"
