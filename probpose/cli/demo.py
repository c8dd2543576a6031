"""`probpose demo`: the web page."""

from __future__ import annotations

import os
import socket
from typing import Annotated

import typer

from .options import DEFAULT_MODEL, Device, Model, app, epilog


@app.command(
    epilog=epilog(
        "probpose demo",
        "probpose demo --model diffpose-mocap17 --port 8000 --no-browser",
        "probpose demo --host 0.0.0.0 --no-browser     (for the whole network)",
    )
)
def demo(
    model: Model = DEFAULT_MODEL,
    device: Device = "auto",
    detector: Annotated[str, typer.Option(help="What finds people in videos: vitpose, or module:attribute of your own.")] = "vitpose",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 7860,
    share: Annotated[bool, typer.Option("--share", help="A public address for a week, through Gradio's servers.")] = False,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")] = True,
) -> None:
    """A page in the browser: keypoints or a video in, motions to turn, to question and to download out.

    Runs until Ctrl+C. Nothing leaves this machine, unless --share asks for it.
    """
    from probpose.demo import appearance, build_demo

    _check_free(host, port)
    page = build_demo(model, device, detector)
    # Gradio asks the page whether it is there, which a proxy must not answer.
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = ",".join(filter(None, [os.environ.get("NO_PROXY"), "localhost", "127.0.0.1", host]))
    page.launch(
        server_name=host, server_port=port, share=share, inbrowser=browser, prevent_thread_lock=True, quiet=True, **appearance()
    )  # fmt: skip
    typer.echo(f"The page is at {page.share_url or page.local_url} until Ctrl+C.")
    page.block_thread()


def _check_free(host: str, port: int) -> None:
    with socket.socket() as attempt:
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            attempt.bind((host, port))
        except OSError as error:
            raise OSError(f"--host {host} --port {port} cannot be used: {error.strerror}") from None
