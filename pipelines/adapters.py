"""Low-rank adapters of a pipeline's denoiser, with diffusers' words. What they do is said in `probpose.models.AdapterMixin`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from probpose.models import AdapterMixin


class AdapterPipelineMixin:
    """Load, save, switch and fuse adapters. Goes before `DiffusionPipeline`; other networks of a pipeline have methods of their own."""

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | Path | Mapping[str, Tensor],
        adapter_name: str | None = None,
        weight_name: str | None = None,
        check_base: bool = True,
        **hub_options: Any,
    ) -> None:
        """Attach an adapter to the denoiser; it alone is active from then on. If it does not fit, the pipeline is as before.

        Args:
            pretrained_model_name_or_path_or_dict: a .safetensors file, a folder or Hub id that has one, or tensors by name, which begins
                with `denoiser.`.
            adapter_name: what to call it; default "default_0", "default_1", …
            weight_name: of the file in the folder; default "pytorch_lora_weights.safetensors".
            check_base: refuse an adapter that was made on top of other weights. Class and sizes have to fit in any case.
            **hub_options: as for `huggingface_hub.hf_hub_download` (revision, token, …).

        Raises:
            FileNotFoundError: no such file.
            ValueError: a damaged file, one for another model, or a name that is in use.
            ImportError: PEFT is missing (`pip install probpose[adapt]`).
        """
        self.denoiser.load_lora_adapter(
            pretrained_model_name_or_path_or_dict, adapter_name, weight_name, prefix="denoiser", check_base=check_base, **hub_options
        )

    def save_lora_weights(
        self,
        save_directory: str | Path,
        adapter_name: str | None = None,
        weight_name: str = "pytorch_lora_weights.safetensors",
        dtype: torch.dtype | None = None,
    ) -> None:
        """Write an adapter of the denoiser into a folder, for `load_lora_weights`.

        Args:
            save_directory: folder; made if necessary. A file of that name in it is replaced.
            adapter_name: default the only one.
            weight_name: of the file.
            dtype: to store the tensors in; default their own, so that samples come back bit by bit. `torch.float16` halves the file.

        Raises:
            ValueError: no such adapter, or several to choose from.
        """
        self.denoiser.save_lora_adapter(save_directory, adapter_name, weight_name, prefix="denoiser", dtype=dtype)

    def set_adapters(self, adapter_names: str | Sequence[str], adapter_weights: float | Sequence[float | None] | None = None) -> None:
        """Let these adapters alone be in effect, each with its weight (default 1)."""
        self.denoiser.set_adapters(adapter_names, adapter_weights)

    def get_active_adapters(self) -> list[str]:
        """Names of the adapters that are in effect unless they are disabled."""
        return self.denoiser.active_adapters()

    def get_list_adapters(self) -> dict[str, list[str]]:
        """Names of the attached adapters by component; empty if there are none."""
        return {"denoiser": self.denoiser.adapters} if self.denoiser.adapters else {}

    def delete_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """Take adapters off for good."""
        self.denoiser.delete_adapters(adapter_names)

    def disable_lora(self) -> None:
        """Sample without adapters until `enable_lora`."""
        self.denoiser.disable_adapters()

    def enable_lora(self) -> None:
        """Let the active adapters be in effect again."""
        self.denoiser.enable_adapters()

    def fuse_lora(self, lora_scale: float = 1.0, safe_fusing: bool = False, adapter_names: str | Sequence[str] | None = None) -> None:
        """Add the active adapters, or those named, to the denoiser's weights: the same samples, as fast as without adapters."""
        self.denoiser.fuse_lora(lora_scale, safe_fusing, adapter_names)

    def unfuse_lora(self) -> None:
        """Take fused adapters out of the weights again."""
        self.denoiser.unfuse_lora()

    def unload_lora_weights(self) -> None:
        """Take all adapters off the denoiser. Fused ones stay in the weights for good."""
        self.denoiser.unload_lora()

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """As `DiffusionPipeline.save_pretrained`. What is written is an ordinary pipeline, with fused adapters in its weights.

        Raises:
            ValueError: adapters that are not fused, which the saved pipeline would lack. Nothing is written.
        """
        for network in self.components.values():
            if isinstance(network, AdapterMixin):
                network.require_fused("save_pretrained")
        super().save_pretrained(save_directory, *args, **kwargs)
