"""Models are pushed whole, with a card and a licence, or not at all; the real client against a Hub on this machine."""

import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from hub_server import Repo
from safetensors.numpy import load_file, save_file

from probpose.hub import bundled_model, check_repository, list_bundled_models, make_card
from probpose.hub.card import check_card, inherited_data, read_front_matter

WEIGHTS = "denoiser/diffusion_pytorch_model.safetensors"
ATTRIBUTES = ".gitattributes"


def change(folder, by=1.0):
    """The folder as another training would have left it."""
    weights = {name: value + np.float32(by) for name, value in load_file(folder / WEIGHTS).items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def held(hub, repo_id="me/tiny", branch="main"):
    files = hub.files(repo_id, branch)
    files.pop(ATTRIBUTES)
    return files


# ---------------------------------------------------------------------------------------------------------------------
# To the Hub
# ---------------------------------------------------------------------------------------------------------------------


def test_a_model_goes_up_in_one_commit(hub, push, model, contents):
    config = model / "denoiser" / "config.json"
    clean = dict(sorted(json.loads(config.read_text()).items()))
    config.write_text(json.dumps({**clean, "_name_or_path": "/home/somebody/secret"}))
    oid = push(model)
    expected = contents(model)
    expected["denoiser/config.json"] = (json.dumps(clean, indent=2) + "\n").encode()
    assert held(hub) == expected
    assert hub.repos["me/tiny"].branches["main"] == oid and not hub.repos["me/tiny"].private
    assert len(hub.asked("POST .*/commit/")) == 1
    assert len(hub.asked("PUT /upload/")) > 2 and len(hub.asked("POST /verify")) == 1  # in parts


def test_revisions(hub, push, model, contents):
    first = contents(model)
    assert push(model) == hub.repos["me/tiny"].branches["main"]
    second = contents(change(model))
    v2, again = push([(model, "me/tiny", {"revision": "v2", "commit_message": "More steps"}), (model, "me/tiny", {"revision": "v2"})])
    assert held(hub) == first and held(hub, branch="v2") == second
    assert v2 == again == hub.repos["me/tiny"].branches["v2"]  # what has not changed makes no commit
    assert len(hub.asked("POST .*/commit/")) == 2


def test_a_pull_request_leaves_the_branch_alone(hub, push, model, contents):
    oid, first = push(model), contents(model)
    proposed = push(change(model), create_pr=True)
    assert held(hub) == first and hub.repos["me/tiny"].branches["main"] == oid
    assert held(hub, branch="refs/pr/1") == contents(model) != first
    assert hub.repos["me/tiny"].branches["refs/pr/1"] == proposed


def test_what_the_new_model_does_not_have_is_gone(hub, push, model, contents):
    shutil.copy(model / WEIGHTS, model / "denoiser" / "diffusion_pytorch_model.fp16.safetensors")
    (model / "notes.txt").write_text("stays")
    push(model)
    (model / "denoiser" / "diffusion_pytorch_model.fp16.safetensors").unlink()
    (model / "notes.txt").unlink()
    push(model)
    assert held(hub) == {**contents(model), "notes.txt": b"stays"}


def test_a_subfolder_brings_the_card_of_the_front_page(hub, push, model, contents):
    push(model, subfolder="small")
    files = {f"small/{name}": content for name, content in contents(model).items()}
    assert held(hub) == {**files, "README.md": (model / "README.md").read_bytes()}


def test_private_is_private(hub, push, model):
    hub.repos["me/open"] = Repo(private=False)
    hub.repos["me/open"].commit("main", {})
    pushed, refused = push([(model, "me/closed", {"private": True}), (model, "me/open", {"private": True})])
    assert hub.repos["me/closed"].private and hub.repos["me/closed"].branches["main"] == pushed
    assert refused.startswith("ValueError: 'me/open' is there already, and public") and not hub.files("me/open")


def test_an_upload_that_loses_its_connection_goes_on(hub, push, model, contents):
    lost = hub.fail("PUT /upload/.*/1$", after=1000)
    push(model)
    assert lost.reached.is_set() and held(hub) == contents(model)


def test_a_killed_upload_publishes_nothing(hub, start, push, model, contents):
    """What was there stays, and the next try sends the rest."""
    push(model)
    before = held(hub)
    change(model)
    lost = hub.fail("PUT /upload/.*/2$", after=1000, wait=threading.Event())
    process = start(f"from probpose.hub import push_folder; push_folder({str(model)!r}, 'me/tiny')")
    assert lost.reached.wait(60), process.communicate()
    process.kill()
    process.communicate()
    lost.wait.set()
    assert held(hub) == before
    push(model)
    assert held(hub) == contents(model)


def test_a_lost_commit_publishes_nothing(hub, push, model, contents):
    hub.fail("POST .*/commit/", after=10)
    first, second = push([(model, "me/tiny", {})] * 2)
    assert first.startswith("ConnectionError: no connection to the Hub at http://127.0.0.1") and "push again" in first
    assert held(hub) == contents(model) and hub.repos["me/tiny"].branches["main"] == second
    assert len(hub.asked("POST /upload/")) == 1  # the weights went up once


def test_refusals_say_what_to_do(hub, push, model):
    theirs = hub.repos["other/theirs"] = Repo(private=False)
    theirs.commit("main", {})
    for name, status, headers in (("gone", 404, {}), ("busy", 409, {}), ("raced", 412, {}), ("broken", 500, {})):
        hub.fail(f"POST /api/models/me/{name}/commit/", status, headers=headers)
    hub.fail("POST /api/models/me/limited/commit/", 429, headers={"Retry-After": "30"})
    hub.fail("POST /api/models/me/windowed/commit/", 429, headers={"ratelimit": '"api";r=0;t=55'})
    expected = {
        "me/wrong": "PermissionError: the Hub does not accept your token .*: log in by `hf auth login`, or put a token into HF_TOKEN",
        "other/mine": "PermissionError: your token may not write to 'other/mine': push under your own name",
        "other/theirs": "PermissionError: your token may not write to 'other/theirs'",
        "me/my model": "ValueError: 'me/my model' is no repository id: it looks like 'user/model'",
        "a/b/c": "ValueError: 'a/b/c' is no repository id",
        "me/gone": "FileNotFoundError: the Hub has no 'me/gone' that you may see: check the name",
        "me/busy": "OSError: somebody else is changing 'me/busy' at this moment; push again",
        "me/raced": "OSError: somebody else is changing 'me/raced'",
        "me/limited": "OSError: too many requests to the Hub: wait 30 seconds; push again",
        "me/windowed": "OSError: too many requests to the Hub: wait 55 seconds",
        "me/broken": r"OSError: the Hub answered 500 \(told to fail\); push again",
    }
    said = push([(model, name, {"token": "hf_wrong"} if name == "me/wrong" else {}) for name in expected])
    for message, pattern in zip(said, expected.values()):
        assert "\n" not in message
        with pytest.raises(AssertionError, match=pattern):
            raise AssertionError(message)
    assert all(set(hub.files(name)) <= {ATTRIBUTES} for name in hub.repos)


def test_without_a_token_or_a_connection_nothing_is_sent(hub, push, model):
    assert push(model, process={"token": None}).startswith("OSError: there is no token for the Hub: log in by `hf auth login`")
    assert push(model, process={"HF_HUB_OFFLINE": "1"}) == "OSError: offline mode is on: unset HF_HUB_OFFLINE to push"
    assert push(model, process={"HF_ENDPOINT": "http://127.0.0.1:9"}).startswith(
        "ConnectionError: no connection to the Hub at http://127.0.0.1:9"
    )
    assert not hub.asked("POST")


def test_pipelines_networks_and_the_command_push(hub, talk, tiny_model, model, contents):
    code = """
import json, sys
from pathlib import Path
from probpose import ProbPosePipeline
from probpose.cli import main
bare, carded = sys.argv[1:3]
said = {}
def refused(name, action):
    try:
        action()
    except (ValueError, OSError) as error:
        said[name] = f"{type(error).__name__}: {error}"
pipe = ProbPosePipeline.from_pretrained(bare)
refused("no licence", lambda: pipe.push_to_hub("me/pipe"))
refused("by the way", lambda: pipe.save_pretrained("saved", push_to_hub=True, repo_id="me/saved"))
refused("pickles", lambda: pipe.push_to_hub("me/pipe", license="mit", safe_serialization=False))
pipe.push_to_hub("me/pipe", license="mit", training_data="cmu", private=True)
pipe.push_to_hub("me/pipe", commit_message="the card stays", revision="v2")
pipe.denoiser.push_to_hub("me/net", license="apache-2.0", training_data=["mine (cc0-1.0)"])
bound = ProbPosePipeline.from_pretrained(carded)
refused("bound", lambda: bound.push_to_hub("me/bound", license="mit"))
bound.denoiser.push_to_hub("me/bound-net")
bound.push_to_hub("me/by-hand", card=Path(carded, "README.md"))
sys.argv = ["probpose", "push", bare, "me/cli", "--license", "cc-by-4.0", "--revision", "trial"]
try:
    main()
except SystemExit as stop:
    said["code"] = stop.code
print(json.dumps(said))
"""
    bare = shutil.copytree(tiny_model, model.with_name("bare"))
    said = talk(code, bare, model)
    assert said["no licence"].startswith("ValueError: a model needs a licence (license=…, --license): one of apache-2.0")
    assert "README.md names no licence" in said["by the way"] and not held(hub, "me/saved")
    assert said["pickles"].startswith("ValueError: safe_serialization=False would write pickles")
    assert "me/bound cannot be mit: model is for non-commercial use" in said["bound"] and "me/bound" not in hub.repos
    assert not said["code"]

    files = contents(tiny_model)
    pipe, card = held(hub, "me/pipe"), held(hub, "me/pipe")["README.md"].decode()
    assert hub.repos["me/pipe"].private
    assert pipe[WEIGHTS] == files[WEIGHTS] and pipe.keys() - files.keys() == {"README.md"}
    assert check_card(card)["license"] == "mit" and 'from_pretrained("me/pipe")' in card
    assert held(hub, "me/pipe", "v2") == pipe
    assert set(held(hub, "me/net")) == {"README.md", "config.json", "diffusion_pytorch_model.safetensors"}
    assert read_front_matter(held(hub, "me/net")["README.md"].decode())["training_data"] == ["mine (cc0-1.0)"]
    inherited = read_front_matter(held(hub, "me/bound-net")["README.md"].decode())
    assert inherited["license"] == "cc-by-nc-4.0" and inherited["training_data"] == ["model (cc-by-nc-4.0)"]
    assert held(hub, "me/by-hand")["README.md"] == (model / "README.md").read_bytes()
    assert not any(str(model.parent).encode() in content for name in hub.repos for content in hub.files(name).values())
    assert held(hub, "me/cli", "trial") == contents(bare) and "README.md" in contents(bare) and not held(hub, "me/cli")


# ---------------------------------------------------------------------------------------------------------------------
# Folders
# ---------------------------------------------------------------------------------------------------------------------


def test_a_folder_is_described(model):
    repository = check_repository(model)
    assert (repository.kind, repository.license, repository.is_pipeline) == ("D3DPPipeline", "cc-by-nc-4.0", True)
    assert {str(file) for file in repository.files} == {
        "README.md",
        "model_index.json",
        "scheduler/scheduler_config.json",
        WEIGHTS,
        "denoiser/config.json",
    }
    assert repository.size == sum(path.stat().st_size for path in model.rglob("*") if path.is_file())
    (model / "denoiser" / "README.md").write_text((model / "README.md").read_text())
    assert check_repository(model / "denoiser").kind == "FrameTransformerModel"
    (model / ".cache").mkdir()
    (model / ".cache" / "weights.bin").write_bytes(b"stays at home")
    assert check_repository(model).size < 10**6 and not any(".cache" in str(file) for file in check_repository(model).files)


FRONT = {
    "no front matter": ("# A model\n", "names no licence"),
    "no licence": ("---\nlibrary_name: probpose\n---\n", "names no licence: put `license: …` into its front matter"),
    "unknown licence": ("---\nlibrary_name: probpose\nlicense: free\n---\n", "unknown licence 'free'; known are apache-2.0"),
    "other": ("---\nlibrary_name: probpose\nlicense: other\n---\n", "goes with a `license_name"),
    "another library": ("---\nlibrary_name: diffusers\nlicense: mit\n---\n", "must have `library_name: probpose`.*'diffusers'"),
    "damaged": ("---\nlicense: [mit\n---\n", "front matter of .*README.md is damaged"),
    "a list": ("---\n- mit\n---\n", "must be fields with values"),
    "looser than its data": (
        "---\nlibrary_name: probpose\nlicense: mit\ntraining_data: [cmu, bandai]\n---\n",
        "cannot be mit: Bandai-Namco-Research-Motiondataset is for non-commercial use.*may be cc-by-nc-4.0",
    ),
    "data of a stranger": ("---\nlibrary_name: probpose\nlicense: mit\ntraining_data: [mine]\n---\n", r"write 'mine \(LICENCE\)'"),
}  # fmt: skip


@pytest.mark.parametrize("case", FRONT)
def test_cards_that_are_refused(model, case):
    card, message = FRONT[case]
    (model / "README.md").write_text(card)
    with pytest.raises(ValueError, match=message):
        check_repository(model)


def edit(path, **fields):
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


FOLDERS = {
    "no folder": (shutil.rmtree, FileNotFoundError, "no model folder at"),
    "no card": (lambda m: (m / "README.md").unlink(), FileNotFoundError, "has no model card: write its README.md"),
    "a pickle": (lambda m: (m / "denoiser" / "diffusion_pytorch_model.bin").touch(), ValueError, "no safetensors.*: denoiser/diff"),
    "arrays": (lambda m: (m / "data.npz").touch(), ValueError, "no safetensors.*: data.npz; remove"),
    "logs": (lambda m: (m / "events.out.tfevents.1").touch(), ValueError, "do not belong to a model: events.out"),
    "code": (lambda m: (m / "pipeline.py").touch(), ValueError, "do not belong to a model: pipeline.py"),
    "no index": (lambda m: (m / "model_index.json").unlink(), FileNotFoundError, "neither model_index.json nor config.json"),
    "no class": (lambda m: edit(m / "model_index.json", _class_name=None), ValueError, "does not say what it is"),
    "a part of one's own": (lambda m: edit(m / "model_index.json", denoiser=["my_code", "Mine"]), ValueError, "my_code.Mine, which others"),
    "a part less": (lambda m: shutil.rmtree(m / "denoiser"), FileNotFoundError, "lacks its part 'denoiser'"),
    "no weights": (lambda m: (m / WEIGHTS).unlink(), FileNotFoundError, "lacks the weights of its part 'denoiser'"),
    "half the weights": (lambda m: (m / WEIGHTS).write_bytes((m / WEIGHTS).read_bytes()[:-9]), ValueError, f"{WEIGHTS} is damaged"),
    "a lost shard": (
        lambda m: (m / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": {"x": "part-2.safetensors"}})),
        FileNotFoundError,
        "lacks part-2.safetensors",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FOLDERS)
def test_folders_that_are_refused(model, case):
    damage, kind, message = FOLDERS[case]
    damage(model)
    with pytest.raises(kind, match=message):
        check_repository(model)


@pytest.mark.parametrize("name", list_bundled_models())
def test_bundled_models_are_ready_to_push(name):
    assert check_repository(bundled_model(name)).license == "cc-by-nc-4.0"


# ---------------------------------------------------------------------------------------------------------------------
# Cards
# ---------------------------------------------------------------------------------------------------------------------


def test_a_card_tells_what_the_model_is(tiny_model, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("data:\n  paths: [../archives/cmu.npz, bandai.npz]  # $5\n")
    report = tmp_path / "report.json"
    row = {"clips": 2, "frames": 50, "p_agg": 31.25, "ece": 0.0214, "p_agg/hands": 3.0, "seen": None}
    report.write_text(json.dumps({"settings": {"dataset": "mocap17", "seed": 0}, "groups": {"all": row, "walk": row}}))
    card = make_card(tiny_model, "me/tiny", recipe=recipe, measured=report)
    front = check_card(card)
    assert front["license"] == "cc-by-nc-4.0" and front["training_data"] == ["cmu", "bandai"] and "d3dp" in front["tags"]
    assert "17, `h36m_17`: " in card and "windows of 16 frames" in card and "metres, camera axes" in card
    parameters = sum(value.size for value in load_file(tiny_model / WEIGHTS).values())
    assert f"| denoiser | `FrameTransformerModel`, {parameters:,} parameters (F32) |" in card
    assert "num_hypotheses 3, num_inference_steps 2" in card
    assert "paths: [../archives/cmu.npz, bandai.npz]  # $5" in card
    assert "| motions | clips | frames | p_agg | ece | seen |\n|---|---:" in card and "| walk | 2 | 50 | 31.2 | 0.021 | - |" in card
    assert "* Bandai-Namco-Research-Motiondataset: cc-by-nc-4.0 (" in card and "arXiv 2303.11579" in card
    usage = card.split("```python\n")[1].split("```")[0]
    assert 'from_pretrained("me/tiny")' in usage and len(usage.splitlines()) <= 10
    compile(usage, "card", "exec")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "needs a licence"),
        ({"training_data": ["cmu"]}, "needs a licence"),
        ({"training_data": ["h36m"]}, "needs a licence"),
        ({"training_data": ["h36m"], "license": "apache-2.0"}, "cannot be apache-2.0: Human3.6M is for non-commercial use"),
        ({"license": "gpl"}, "made for one of the licences"),
        ({"license": "other"}, "write the card by hand"),
        ({"training_data": "mine (secret)"}, "unknown licence 'secret'"),
        ({"training_data": "mine"}, "the licence of the training data 'mine' is not known"),
    ],
)
def test_cards_that_are_not_made(tiny_model, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_card(tiny_model, "me/tiny", **arguments)


@pytest.mark.parametrize(("content", "argument"), [("{}", "measured"), ("x: 1\n", "recipe")])
def test_foreign_files_make_no_card(tiny_model, tmp_path, content, argument):
    path = tmp_path / "file.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"file\.json is no"):
        make_card(tiny_model, "me/tiny", "mit", **{argument: path})


def test_what_began_with_other_weights_is_bound_to_their_licence(model):
    assert inherited_data(model) == inherited_data(model / "denoiser") == ["model (cc-by-nc-4.0)"]
    assert inherited_data(None) == inherited_data(model.parent) == inherited_data("no/such/folder") == []
    cached = shutil.copytree(model, model.parent / "models--me--tiny" / "snapshots" / "0123")
    assert inherited_data(cached) == ["me/tiny (cc-by-nc-4.0)"]


# ---------------------------------------------------------------------------------------------------------------------
# Commands
# ---------------------------------------------------------------------------------------------------------------------


def test_a_dry_run_sends_nothing(run_command, model):
    code, out, err = run_command("push", model, "me/tiny", "--dry-run", "--revision", "v2")
    assert code == 0, err
    assert "D3DPPipeline" in out and "cc-by-nc-4.0" in out and "me/tiny, branch v2" in out and out.endswith("nothing was sent\n")
    code, _, err = run_command("push", model, "me/tiny", "--dry-run", "--license", "mit")
    assert code == 2 and "README.md is the card" in err
    (model / "README.md").unlink()
    code, out, err = run_command("push", model, "me/tiny", "--dry-run", "--license", "mit")
    assert code == 0 and "license: mit" in out and not (model / "README.md").exists()
    code, _, err = run_command("push", model, "me/tiny", "--dry-run")
    assert code == 2 and "has no model card" in err


def test_a_model_that_does_not_load_is_not_pushed(run_command, model):
    weights = load_file(model / WEIGHTS)
    weights.pop(next(iter(weights)))
    save_file(weights, model / WEIGHTS, metadata={"format": "pt"})
    code, _, err = run_command("push", model, "me/tiny", "--dry-run")
    assert code == 2 and "lacks the weights" in err


def test_bundled_models_are_listed(run_command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = run_command("models", "--paths")
    assert code == 0 and [line.split()[0] for line in out.splitlines()] == list_bundled_models()
    default = next(line for line in out.splitlines() if line.startswith("d3dp-mocap17"))
    assert "D3DPPipeline, 12 MB, cc-by-nc-4.0, the default" in default
    assert (Path(default.split(", ")[-1]) / "model_index.json").is_file()
