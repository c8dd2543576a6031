"""Models come from the Hub as they were pushed: by name, revision, subfolder, and from the cache; or there is a word why they cannot."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from probpose import ProbPosePipeline
from probpose.hub import list_bundled_models

WEIGHTS = "denoiser/diffusion_pytorch_model.safetensors"
SAMPLE = """
import hashlib, torch
def sample(pipe):
    pipe.set_progress_bar_config(disable=True)
    frames = torch.arange(20.0)[:, None, None]
    joints = torch.arange(17.0)[:, None]
    keypoints = torch.cat([900 + 3 * joints + frames.expand(-1, 17, 1), 500 + 20 * joints + 0 * frames], dim=-1)
    out = pipe(keypoints, image_size=(1920, 1080), generator=torch.Generator().manual_seed(0))
    return hashlib.sha256(out.hypotheses.numpy().tobytes() + out.pose.numpy().tobytes()).hexdigest()
"""


@pytest.fixture
def fetch(talk):
    """`fetch(repo_id, …)` in a process with a cache of its own (unless `home` is the same); returns the folder, or "Error: message"."""
    code = """
import json, sys
from probpose.hub import download
try:
    said = str(download(sys.argv[1], **json.loads(sys.argv[2])))
except (ValueError, OSError) as error:
    said = f"{type(error).__name__}: {error}"
print(json.dumps(said))
"""

    def run(repo_id, process=None, **options):
        return talk(code, repo_id, json.dumps(options), **(process or {}))

    return run


def other(folder, target):
    """The same model after another training."""
    shutil.copytree(folder, target)
    save_file({name: value + np.float32(0.01) for name, value in load_file(folder / WEIGHTS).items()}, target / WEIGHTS, {"format": "pt"})
    return target


def test_another_process_samples_the_same_bits(hub, push, talk, model, tmp_path, one_thread):
    second = other(model, tmp_path / "second")
    broken = shutil.copytree(model, tmp_path / "broken")
    more = [(second, "me/tiny", {"revision": "v2"}), (second, "me/many", {"subfolder": "a/b"}), (broken, "me/broken", {})]
    commit, *_ = push([(model, "me/tiny", {}), *more])
    del hub.repos["me/broken"].commits[hub.repos["me/broken"].branches["main"]][WEIGHTS]
    code = (
        SAMPLE
        + """
import json, sys
from probpose import ProbPosePipeline
from probpose.models import FrameTransformerModel
said = {}
def load(name, repo_id, **options):
    try:
        said[name] = sample(ProbPosePipeline.from_pretrained(repo_id, **options))
    except (ValueError, OSError) as error:
        said[name] = f"{type(error).__name__}: {error}"
load("main", "me/tiny")
load("v2", "me/tiny", revision="v2")
load("commit", "me/tiny", revision=sys.argv[1], cache_dir="elsewhere")
load("subfolder", "me/many", subfolder="a/b")
load("cached", "me/tiny", local_files_only=True)
load("not cached", "me/other", local_files_only=True)
load("unknown", "me/nothing")
load("unknown revision", "me/tiny", revision="v3")
load("wrong subfolder", "me/many", subfolder="c")
load("outside", "me/many", subfolder="../c")
load("broken", "me/broken")
network = FrameTransformerModel.from_pretrained("me/tiny", subfolder="denoiser")
same = ProbPosePipeline.from_pretrained("me/tiny", local_files_only=True).denoiser.state_dict()
said["network"] = all(torch.equal(value, same[name]) for name, value in network.state_dict().items())
print(json.dumps(said))
"""
    )
    said = talk(code, commit, home="empty")
    namespace = {}
    exec(SAMPLE, namespace)
    first, second = (namespace["sample"](ProbPosePipeline.from_pretrained(folder)) for folder in (model, second))
    assert said["main"] == said["cached"] == said["commit"] == first != second
    assert said["v2"] == said["subfolder"] == second
    assert said["network"] and (tmp_path / "elsewhere" / "models--me--tiny").is_dir()
    assert said["not cached"].startswith("FileNotFoundError: 'me/other' is not (completely) in the cache, and local_files_only=True keeps")
    assert said["unknown"] == (
        "FileNotFoundError: the Hub has no 'me/nothing' that you may see: check the name; if it is private, "
        "log in by `hf auth login`, or put a token into HF_TOKEN"
    )
    assert said["unknown revision"] == "FileNotFoundError: the Hub's 'me/tiny' has no revision 'v3'"
    assert said["wrong subfolder"].startswith("FileNotFoundError: ") and "no model_index.json" in said["wrong subfolder"]
    assert said["outside"].startswith("ValueError: subfolder must be inside of me/many")
    assert "models--me--broken" in said["broken"] and "lacks the weights of its part 'denoiser'" in said["broken"]


def test_private_models_need_a_token_which_storage_never_sees(hub, push, fetch, model):
    push(model, "me/closed", private=True)
    for token in (None, "hf_other"):
        assert fetch("me/closed", {"token": token, "home": "theirs"}).startswith(
            "FileNotFoundError: the Hub has no 'me/closed' that you may see"
        )
    wrong = fetch("me/closed", {"token": "hf_wrong", "home": "theirs"})
    assert wrong.startswith("PermissionError: the Hub does not accept your token")
    assert "models--me--closed" in fetch("me/closed", {"token": None, "home": "theirs"}, token="hf_me")
    assert hub.asked("GET /cdn/") and not any("authorization" in headers for headers in hub.asked("(GET|HEAD) /cdn/"))


def test_pickles_and_code_stay_on_the_hub(hub, push, fetch, model, tmp_path):
    push(model)
    repo = hub.repos["me/tiny"]
    files = repo.commits[repo.branches["main"]]
    repo.commit("main", {**files, "denoiser/evil.bin": files["model_index.json"], "pipeline.py": files["model_index.json"]})
    assert hub.files("me/tiny")["pipeline.py"]
    folder = Path(fetch("me/tiny"))
    fetched = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert fetched == {"README.md", "model_index.json", "denoiser/config.json", WEIGHTS, "scheduler/scheduler_config.json"}


def test_a_broken_download_goes_on_where_it_stopped(hub, push, fetch, model):
    """The client writes 10 MiB at a time."""
    hub.part = 2**30
    save_file({"weight": np.arange(5 * 2**20, dtype=np.float32)}, model / WEIGHTS)
    push(model)
    hub.fail("GET /cdn/", after=15 * 2**20)
    assert (Path(fetch("me/tiny")) / WEIGHTS).read_bytes() == (model / WEIGHTS).read_bytes()
    first, second = hub.asked("GET /cdn/")
    assert "range" not in first and second["range"] == f"bytes={10 * 2**20}-"


def test_without_a_hub_the_cache_serves(hub, push, fetch, model):
    push(model)
    folder = fetch("me/tiny")
    count = len(hub.requests)
    assert fetch("me/tiny", {"HF_HUB_OFFLINE": "1"}) == folder
    missing = fetch("me/nothing", {"HF_HUB_OFFLINE": "1"})
    assert missing == "FileNotFoundError: 'me/nothing' is not in the cache, and offline mode (HF_HUB_OFFLINE) keeps it from being fetched"
    assert len(hub.requests) == count
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    assert fetch("me/tiny", nowhere) == folder
    assert fetch("me/nothing", nowhere).startswith("ConnectionError: no connection to the Hub at http://127.0.0.1:9")
    hub.fail("GET /api/models/me/tiny", 403, times=9)
    assert fetch("me/tiny") == folder
    assert fetch("me/tiny", {"home": "new"}).startswith("PermissionError: your token may not read 'me/tiny'")
    hub.fail("GET /api/models/me/busy", 429, headers={"Retry-After": "30"})
    assert fetch("me/busy") == "OSError: too many requests to the Hub: wait 30 seconds; try again"


def test_a_bundled_model_loads_by_its_name_from_anywhere(tmp_path, monkeypatch, model):
    monkeypatch.chdir(tmp_path)
    assert type(ProbPosePipeline.from_pretrained("d3dp-mocap17")).__name__ == "D3DPPipeline"
    shutil.copytree(model, list_bundled_models()[0])
    assert ProbPosePipeline.from_pretrained(list_bundled_models()[0]).config.default_num_hypotheses == 3  # what one has oneself comes first


def test_subfolders_of_local_folders(model, tmp_path):
    pipe = ProbPosePipeline.from_pretrained(tmp_path, subfolder=model.name)
    assert json.loads((model / "model_index.json").read_text())["_class_name"] == type(pipe).__name__
    with pytest.raises(ValueError, match="subfolder must be inside"):
        ProbPosePipeline.from_pretrained(model, subfolder="..")
