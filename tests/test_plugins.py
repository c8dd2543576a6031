"""Code of the user's own by name, and a network of the user's own in a recipe."""

import sys

import pytest

import probpose.models
from probpose.plugins import load_own
from probpose.training.config import ComponentConfig
from probpose.training.loop import build_component

MODULE = """
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

class Plain(nn.Module):
    pass

class Mine(ModelMixin, ConfigMixin):
    @register_to_config
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width)

    def forward(self, keypoints_2d, noisy_pose=None, timestep=None):
        return noisy_pose
"""


@pytest.fixture
def my_networks(tmp_path, monkeypatch):
    (tmp_path / "my_networks.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    yield
    sys.modules.pop("my_networks", None)


def build(name, **config):
    return build_component(probpose.models, ComponentConfig(name=name, config=config), "denoiser", takes="noisy_pose")


def test_a_network_of_the_current_folder(my_networks):
    network = build("my_networks:Mine", width=5)
    assert type(network).__name__ == "Mine" and network.config.width == 5
    with pytest.raises(ValueError, match=r"denoiser\.config: my_networks:Mine has no widht; allowed are width"):
        build("my_networks:Mine", widht=5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_networks:Absent", "the module 'my_networks' in .* has no 'Absent'"),
        ("no_networks:Mine", "there is no module 'no_networks', neither in .* nor installed"),
        ("my_networks:Plain", "must be a class with diffusers' ConfigMixin, called with noisy_pose"),
        ("my_networks", "no 'my_networks'; one of your own is my_module:MyClass; known: .*FrameTransformerModel"),
    ],
)
def test_what_cannot_be_built(my_networks, name, message):
    with pytest.raises(ValueError, match=message):
        build(name)


def test_an_import_that_fails_inside_the_module_is_the_modules_own(my_networks, tmp_path):
    (tmp_path / "broken_networks.py").write_text("import surely_not_installed")
    with pytest.raises(ModuleNotFoundError, match="surely_not_installed"):
        load_own("broken_networks:Mine", "denoiser")
