"""Small detectors of the real classes, saved as the Hub has them."""

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def make_pose_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`make_pose_model(joints=17, num_experts=1)`: folder of a ViTPose of random weights for crops of 64 x 48 pixels."""
    import torch
    from transformers import VitPoseBackboneConfig, VitPoseConfig, VitPoseForPoseEstimation
    from transformers.models.vitpose.image_processing_pil_vitpose import VitPoseImageProcessorPil

    def make(joints: int = 17, num_experts: int = 1) -> Path:
        torch.manual_seed(0)
        folder = tmp_path_factory.mktemp("detectors") / "pose"
        sizes = {"image_size": (64, 48), "patch_size": (8, 8), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
        backbone = VitPoseBackboneConfig(**sizes, out_indices=[2], num_experts=num_experts, part_features=8)
        config = VitPoseConfig(backbone_config=backbone, num_labels=joints)
        model = VitPoseForPoseEstimation(config)
        torch.nn.init.constant_(model.head.conv.bias, 0.5)  # so that most joints are seen
        model.save_pretrained(folder)
        VitPoseImageProcessorPil(size={"height": 64, "width": 48}).save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def make_person_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`make_person_model(labels)`: folder of an RT-DETR that takes three places of any frame for persons, with scores around 0.9.

    The label at 1 is the persons'. `blind`: the places are the same whatever the frame shows.
    """
    import torch
    from transformers import RTDetrConfig, RTDetrForObjectDetection, RTDetrResNetConfig
    from transformers.models.rt_detr.image_processing_pil_rt_detr import RTDetrImageProcessorPil

    def make(labels: tuple[str, ...] = ("cat", "Person", "kite"), blind: bool = False) -> Path:
        torch.manual_seed(0)
        folder = tmp_path_factory.mktemp("detectors") / "person"
        stages = ["stage2", "stage3", "stage4"]
        backbone = RTDetrResNetConfig(
            embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1] * 4, layer_type="basic", out_features=stages
        )
        model = RTDetrForObjectDetection(
            RTDetrConfig(
                backbone_config=backbone, encoder_hidden_dim=16, encoder_in_channels=[8, 16, 16], encoder_ffn_dim=16,
                encoder_attention_heads=2, d_model=16, decoder_in_channels=[16] * 3, decoder_ffn_dim=16, decoder_attention_heads=2,
                decoder_layers=1, num_queries=3, num_denoising=0, id2label=dict(enumerate(labels)),
                label2id={name: label for label, name in enumerate(labels)},
            )
        )  # fmt: skip
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if weight.ndim > 1 and name.startswith(("model.enc_", "model.decoder")):
                    weight.normal_(0, 0.3)  # so that places depend on the frame
                if blind and weight.ndim == 4 and weight.shape[1] == 3:
                    weight.zero_()
            model.model.decoder.class_embed[-1].bias[1] = 3.0  # persons,
            model.model.decoder.bbox_embed[-1].layers[-1].bias.copy_(torch.tensor([-0.5, -2.0, 1.5, 2.5]))  # and upright ones
        model.save_pretrained(folder)
        RTDetrImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_detectors(make_person_model: Callable[..., Path], make_pose_model: Callable[..., Path]) -> tuple[Path, Path]:
    """Folders `(person_model, pose_model)` for `ViTPoseDetector`: three persons in any frame, 17 joints somewhere on them."""
    return make_person_model(), make_pose_model()
