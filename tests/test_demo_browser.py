"""The web page in a browser: from upload to download."""

import os
import shutil
import socket
import subprocess
import sys
import zipfile
from io import BytesIO

import numpy as np
import pytest

pytest.importorskip("gradio")
pytest.importorskip("playwright")
from playwright.sync_api import expect, sync_playwright

from probpose.data import KeypointTrack, write_keypoints
from probpose.results import SampledPerson
from probpose.visualization.common import COLOURS

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def address(tiny_model, tmp_path_factory):
    """Of the page that `probpose demo` serves; in the end it goes when it is told to, and takes its files along."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    files = tmp_path_factory.mktemp("files")
    # A proxy that nobody answers at: the page must be served past it.
    environment = {**os.environ, "TMPDIR": str(files), "HTTP_PROXY": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}
    command = [sys.executable, "-m", "probpose", "demo", "--model", str(tiny_model), "--port", str(port), "--no-browser", "--device", "cpu"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    line = process.stdout.readline()
    assert line == f"The page is at http://127.0.0.1:{port}/ until Ctrl+C.\n"
    assert len(list(files.glob("probpose-demo-*"))) == 1
    yield f"http://127.0.0.1:{port}/"
    process.terminate()
    process.communicate(timeout=30)
    assert process.returncode == 143 and not list(files.glob("probpose-*"))


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as running:
        flags = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader"]  # WebGL without a graphics card
        browser = running.chromium.launch(executable_path=CHROMIUM, args=flags, chromium_sandbox=os.geteuid() != 0)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, address):
    """`open_page(width, height)`: the page, which may load nothing from elsewhere nor throw anything."""
    elsewhere, thrown = [], []

    def listed(request):
        if not request.url.startswith((address, "data:", "blob:")):
            elsewhere.append(request.url)

    contexts = []

    def make(width, height):
        contexts.append(context := browser.new_context(viewport={"width": width, "height": height}))
        page = context.new_page()
        page.on("request", listed)
        page.on("pageerror", lambda error: thrown.append(error))
        page.goto(address)
        return page

    yield make
    for context in contexts:
        context.close()
    assert not elsewhere and not thrown


@pytest.fixture
def recording(tmp_path, walk):
    """Two people, seen by an upright camera four metres away."""
    tracks = []
    for person in (1, 2):
        x, y, z = np.moveaxis(walk(12, seed=person), -1, 0)
        points = np.stack([500 * x / (y + 5) + 320, 240 - 500 * (z - 0.9) / (y + 5)], axis=-1)
        tracks.append(KeypointTrack(points, np.ones((12, 17)), np.arange(12), person, "h36m_17", (640, 480), 25.0))
    write_keypoints(tmp_path / "pair.npz", tracks)
    return tmp_path / "pair.npz"


def sample(page, recording, hypotheses):
    page.locator("#upload input[type=file]").set_input_files(recording)
    expect(page.locator("#upload")).to_contain_text(recording.stem)
    page.locator("#hypotheses input[type=number]").fill(str(hypotheses))
    page.locator("#sample").click()
    scene = page.frame_locator("#scene iframe")
    scene.locator(".gl-container canvas").first.wait_for()
    return scene


def share_of(colour, screenshot):
    """Share of a screenshot's pixels that are nearly of this colour."""
    from PIL import Image

    pixels = np.asarray(Image.open(BytesIO(screenshot)).convert("RGB"), dtype=int)
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return (np.abs(pixels - wanted).max(-1) < 24).mean()


def test_from_upload_to_download(open_page, recording, tmp_path):
    page = open_page(1400, 1000)
    scene = sample(page, recording, 4)
    expect(page.locator("#summary")).to_contain_text("pair_person1: 4 hypotheses, 12 frames")
    expect(scene.locator(".slider-label").first).to_be_visible()
    drawn = page.locator("#scene").screenshot()
    assert all(share_of(COLOURS[side], drawn) > 2e-4 for side in ("right", "left"))

    page.get_by_text("person2", exact=True).click()
    expect(page.locator("#summary")).to_contain_text("pair_person2")
    page.get_by_role("tab", name="Uncertainty").click()
    expect(page.get_by_text("Mean uncertainty of the joints")).to_be_visible()
    page.get_by_role("tab", name="Files").click()
    with page.expect_download() as download:
        page.locator('#files a[download="pair_person2.npz"]').click()
    download.value.save_as(tmp_path / "result.npz")
    result = SampledPerson.load(tmp_path / "result.npz")
    assert result.hypotheses.shape == (4, 12, 17, 3) and np.isfinite(result.hypotheses).all()
    assert result.track.track_id == 2 and result.fps == 25

    with page.expect_download() as download:
        page.locator("#archive").click()
    names = zipfile.ZipFile(download.value.path()).namelist()
    assert download.value.suggested_filename == "pair.zip" and {"pair_person1.bvh", "pair_person2.glb"} < set(names)


def test_on_a_phone(open_page, recording):
    page = open_page(390, 844)
    sample(page, recording, 2)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    expect(page.locator("#summary")).to_be_in_viewport(ratio=0.9)
    expect(page.locator("#sample")).not_to_be_in_viewport()


def test_what_is_wrong_is_said(open_page, tmp_path):
    page = open_page(1400, 1000)
    page.locator("#sample").click()
    message = page.get_by_test_id("toast-text")
    expect(message).to_have_text("Choose an example or drop a file first.")
    (tmp_path / "notes.txt").write_text("<b>no keypoints</b>\n")
    page.locator("#upload input[type=file]").set_input_files(tmp_path / "notes.txt")
    expect(page.locator("#upload")).to_contain_text("notes")
    page.locator("#sample").click()
    expect(message.last).to_contain_text("notes.txt: ")
