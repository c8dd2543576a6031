"""Models that travel with the package."""

from __future__ import annotations

from pathlib import Path

_MODELS = Path(__file__).parent / "models"


def list_bundled_models() -> list[str]:
    """Names of the bundled pipelines."""
    return sorted(path.parent.name for path in _MODELS.glob("*/model_index.json"))


def bundled_model(name: str) -> Path | None:
    """Folder of a bundled pipeline (for `ProbPosePipeline.from_pretrained`), or None if there is none of that name."""
    return _MODELS / name if name in list_bundled_models() else None
