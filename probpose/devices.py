"""Where networks run."""

from __future__ import annotations

from typing import Any


def choose_device(name: str) -> Any:
    """The `torch.device` of a name such as cpu, cuda:1 or mps; "auto" is a GPU if there is one, else the processor.

    Raises:
        ValueError: there is no such device, or it cannot be used here.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}") from None
    return device
