"""The site builds, its tutorials run, its links lead somewhere, and it takes nothing from elsewhere."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

for package in ("mkdocs", "material", "mkdocstrings", "markdown_exec", "av", "yaml"):
    pytest.importorskip(package)

ROOT = Path(__file__).resolve().parents[1]
BUILD = """
import logging, sys
from mkdocs.commands.build import build
from mkdocs.config import load_config
logging.basicConfig(level="WARNING")
build(load_config("mkdocs.yml", strict=True, site_dir=sys.argv[1], **({"docs_dir": sys.argv[2], "nav": None} if sys.argv[2:] else {})))
"""
OUTPUTS = {
    "sampling": ["hypotheses   (20, 144, 17, 3)", "same seed, same pose: True", "two_people.npz/person1 (5, 92, 17, 3)"],
    "video": ["person 0: 60 frames", "(10, 60, 17, 3)", "film/dots_overlay.mp4", "huggingface"],
    "training": ["finished: runs/mine/checkpoint-100/pipeline", "calibrated=True"],
    "denoiser": ["the same weights: True", "has not been imported"],
    "aggregator": ["RigidMean", "bones vary by 0.0 mm"],
    "pushing": ["nothing was sent", "models/fifty has no model card", "for non-commercial use"],
}
FETCHED = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src", "video": "src", "audio": "src"}


class Page(HTMLParser):
    """What a page links to, what it loads, where it can be linked to, and what it says."""

    def __init__(self, path):
        super().__init__()
        self.links, self.loaded, self.anchors, self.text = set(), set(), set(), ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.anchors.update(attributes[name] for name in ("id", "name") if attributes.get(name))
        if tag == "a" and attributes.get("href"):
            self.links.add(attributes["href"])
        if attributes.get(FETCHED.get(tag)) and attributes.get("rel") not in ("canonical", "prev", "next"):
            self.loaded.add(attributes[FETCHED[tag]])

    def handle_data(self, data):
        self.text += data


def build(*arguments):
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run([sys.executable, "-c", BUILD, *map(str, arguments)], cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    result = build(folder)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site):
    return {path: Page(path) for path in site.rglob("*.html")}


pytestmark = pytest.mark.timeout(600)


def test_every_page_is_there(site, pages):
    import yaml

    def listed(entries):
        for entry in entries:
            for value in entry.values():
                yield from listed(value) if isinstance(value, list) else [value]

    sources = list(listed(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert len(sources) > 20
    for source in sources:
        path = site / source.removesuffix(".md") / "index.html" if source != "index.md" else site / "index.html"
        assert path in pages and len(pages[path].text) > 500, source


@pytest.mark.parametrize("name", OUTPUTS)
def test_tutorials_show_what_their_code_printed(site, pages, name):
    text = pages[site / "tutorials" / name / "index.html"].text
    for output in OUTPUTS[name]:
        assert output in text


def test_nothing_is_fetched_from_elsewhere(site, pages):
    for path, page in pages.items():
        assert not [address for address in page.loaded if urlsplit(address).netloc], path
    for path in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*['\"]?(https?:)?//", path.read_text(encoding="utf-8")), path


def test_links_lead_somewhere(site, pages):
    for path, page in pages.items():
        if path.name == "404.html":  # whose links begin at the server's root
            continue
        for address in page.links | page.loaded:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), f"{path}: {address}"
            if parts.fragment and target.suffix == ".html":
                assert unquote(parts.fragment) in pages[target].anchors, f"{path}: {address}"


def test_public_names_are_explained(site, pages):
    """Also those that are imported on first use, and those of packages whose folder is not inside of `probpose`."""
    reference = site / "reference"
    for name in ("pipelines.D3DPPipeline", "data.load_dataset", "data.TrainingWindows", "hub.make_card", "export.export", "training.train"):
        assert f"probpose.{name}" in pages[reference / name.split(".")[0] / "index.html"].anchors
    assert not [anchor for anchor in pages[reference / "models" / "index.html"].anchors if "ModelMixin" in anchor]


def test_every_command_is_explained(site, pages):
    from probpose.cli import app

    anchors = pages[site / "command-line" / "index.html"].anchors
    for command in app.registered_commands:
        assert f"probpose-{command.name or command.callback.__name__}" in anchors


def test_nothing_tells_where_it_was_built(site, pages):
    for path, page in pages.items():
        for place in (str(ROOT), str(Path.home()), "probpose-docs-"):
            assert place not in page.text, path


def test_what_fails_is_fatal(tmp_path):
    blocks = {
        "ValueError: wrong": '```python exec="true"\nraise ValueError("wrong")\n```',
        "No such command": '```console exec="true"\n$ probpose nonsense\n```',
        "nowhere.md": "[lost](nowhere.md)",
        "probpose.nothing": "[`nothing`][probpose.nothing]",
    }
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("# Page\n\n" + "\n\n".join(blocks.values()))
    result = build(tmp_path / "site", tmp_path / "docs")
    assert result.returncode != 0
    for message in blocks:
        assert message in result.stderr
