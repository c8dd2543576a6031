"""Low-rank adapters (LoRA, Hu et al., ICLR 2022, arXiv 2106.09685) on the networks, through 🤗 PEFT and with diffusers' words.

An adapted linear layer is y = W x + b + s · B A x with A `(rank, in)` and B `(out, rank)`; W and b stay as they are. A file with an adapter
is some hundred kilobytes, and remembers which model it was made for.

The methods are those of `diffusers.loaders.PeftAdapterMixin`, whose module imports PEFT. That takes seconds and is optional (`pip install
probpose[adapt]`), so here it happens when the first adapter is asked for. What differs: whatever does not fit is an error before anything
has changed, and without its last adapter a network is an ordinary one again.
"""

from __future__ import annotations

import copy
import functools
import json
import math
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import recurse_remove_peft_layers
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from probpose.files import replacing

WEIGHT_NAME = "pytorch_lora_weights.safetensors"
"""A file with an adapter in a folder, as diffusers calls it."""

# Fields of a network's config that tell which one an adapter is for.
_SIZES = ("num_frames", "num_joints", "in_channels", "width", "depth", "num_attention_heads", "mlp_ratio", "chebyshev_order", "skeleton")
_FINGERPRINT = 32  # parameter tensors
_TOLERANCE = 0.01  # half precision changes the mean of a tensor by less than a thousandth
# Fields of a LoraConfig that are stored. The others matter for training alone, or change from version to version.
_STORED = ("r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern", "use_rslora")


class AdapterMixin:
    """Adapters on a network: several at a time, switched, weighed, fused into the weights and taken out again. Goes before `ModelMixin`."""

    adapter_modules: tuple[str, ...] = ()
    """The layers that `lora_config` adapts by default: the ends of their names."""

    _fused: tuple[Sequence[str], float] = ((), 1.0)  # names, and the factor by which their scales differ from those before fusing

    def lora_config(self, rank: int = 4, alpha: float | None = None, target_modules: Sequence[str] | str | None = None) -> Any:
        """A `peft.LoraConfig` for `add_adapter`: A is drawn with standard deviation 1 / rank and B is zero (PoSynDA, arXiv 2308.09678).

        Args:
            rank: of the update of a layer's weight.
            alpha: the update's scale is alpha / rank; default rank, a scale of one.
            target_modules: ends of the adapted layers' names, or a regular expression; default `adapter_modules`.

        Raises:
            ValueError: a rank below 1.
            ImportError: PEFT is missing.
        """
        if not isinstance(rank, Integral) or isinstance(rank, bool) or rank < 1:
            raise ValueError(f"rank must be an integer of at least 1, got {rank!r}")
        targets = self.adapter_modules if target_modules is None else target_modules
        return _peft().LoraConfig(
            r=int(rank),
            lora_alpha=int(rank) if alpha is None else _finite("alpha", alpha),
            target_modules=targets if isinstance(targets, str) else list(targets),
            init_lora_weights="gaussian",
        )

    @property
    def adapters(self) -> list[str]:
        """Names of the attached adapters, active or not."""
        return list(getattr(self, "peft_config", {}))

    @property
    def fused_adapters(self) -> list[str]:
        """Names of the adapters whose updates are in the weights now."""
        return sorted({name for layer in self._adapted_layers() for name in layer.merged_adapters})

    def active_adapters(self) -> list[str]:
        """Names of the adapters that are in effect unless they are disabled."""
        return next((list(layer.active_adapters) for layer in self._adapted_layers()), [])

    # Attaching and switching

    def add_adapter(self, adapter_config: Any, adapter_name: str = "default") -> None:
        """Attach a new adapter, which alone is active and trainable from then on; the network's own weights are frozen.

        Args:
            adapter_config: a plain `peft.LoraConfig`, e.g. that of `lora_config`.
            adapter_name: not yet in use, without a dot.

        Raises:
            ValueError: a name that is in use, a config of another kind, or one that fits no layer. The network is as before.
            ImportError: PEFT is missing.
        """
        self._attach(adapter_config, adapter_name)

    def set_adapters(self, adapter_names: str | Sequence[str], weights: float | Sequence[float | None] | None = None) -> None:
        """Let these adapters alone be in effect, each with its weight (default 1); their updates add up.

        Raises:
            ValueError: an adapter that is not attached, another number of weights, no number, or adapters that are fused.
        """
        names = self._attached(adapter_names)
        weights = list(weights) if isinstance(weights, Sequence) else [weights] * len(names)
        if len(weights) != len(names):
            raise ValueError(f"there must be one weight for each of the adapters {names}, got {len(weights)}")
        weights = [1.0 if weight is None else _finite("the weight of an adapter", weight) for weight in weights]
        self._require_unfused()
        for layer in self._adapted_layers():
            layer.set_adapter(names)
            for name, weight in zip(names, weights):
                layer.set_scale(name, weight)

    def disable_adapters(self) -> None:
        """Answer as the network without adapters does, until `enable_adapters`. Fused ones are taken out of the weights first.

        Raises:
            ValueError: there are no adapters.
        """
        self._attached()
        self.unfuse_lora()
        for layer in self._adapted_layers():
            layer.enable_adapters(False)

    def enable_adapters(self) -> None:
        """Let the active adapters be in effect again.

        Raises:
            ValueError: there are no adapters.
        """
        self._attached()
        for layer in self._adapted_layers():
            layer.enable_adapters(True)

    disable_lora, enable_lora = disable_adapters, enable_adapters

    def delete_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """Take adapters off for good; without the last one the network is an ordinary one again, and trainable.

        Raises:
            ValueError: an adapter that is not attached, or fused ones.
        """
        names = self._attached(adapter_names)
        self._require_unfused()
        self._detach(names, [name for name in self.active_adapters() if name not in names])

    def unload_lora(self) -> None:
        """Take all adapters off: the network is an ordinary one again, and trainable. Fused adapters stay in the weights for good."""
        if hasattr(self, "peft_config"):
            recurse_remove_peft_layers(self)
            del self.peft_config
            self._fused = ((), 1.0)
            self.requires_grad_(True)

    # Adapters in the weights

    @torch.no_grad()
    def fuse_lora(self, lora_scale: float = 1.0, safe_fusing: bool = False, adapter_names: str | Sequence[str] | None = None) -> None:
        """Add adapters to the weights, W + lora_scale · s · B A: the same answers, as fast as without adapters.

        Args:
            lora_scale: a further factor, until `unfuse_lora`; not zero.
            safe_fusing: refuse updates that are not finite; nothing is fused then.
            adapter_names: default the active ones.

        Raises:
            ValueError: no such adapter, adapters that are fused already, or a scale of zero.
        """
        names = self._attached(adapter_names or self.active_adapters())
        if _finite("lora_scale", lora_scale) == 0:
            raise ValueError("lora_scale must not be zero: disable_adapters() gives the network without adapters")
        self._require_unfused()
        self.enable_adapters()
        self._fused = (names, lora_scale)
        self._rescale(names, lora_scale)
        try:
            for layer in self._adapted_layers():
                layer.merge(safe_merge=safe_fusing, adapter_names=[name for name in names if name in layer.scaling])
        except ValueError:
            self.unfuse_lora()
            raise

    @torch.no_grad()
    def unfuse_lora(self) -> None:
        """Take fused adapters out of the weights again, up to rounding in the precision of the weights."""
        for layer in self._adapted_layers():
            if layer.merged:
                layer.unmerge()
        names, scale = self._fused
        self._rescale(names, 1 / scale)
        self._fused = ((), 1.0)

    def _rescale(self, names: Sequence[str], factor: float) -> None:
        for layer in self._adapted_layers():
            for name in names:
                if name in layer.scaling:
                    layer.scaling[name] *= factor

    # Files

    def save_lora_adapter(
        self,
        save_directory: str | Path,
        adapter_name: str | None = None,
        weight_name: str = WEIGHT_NAME,
        prefix: str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Write an adapter as safetensors, in diffusers' layout. The file says which network the adapter was made for.

        Args:
            save_directory: folder; made if necessary. A file of that name in it is replaced.
            adapter_name: default the only one.
            weight_name: of the file.
            prefix: what the tensors' names are to begin with; pipelines have "denoiser".
            dtype: to store the tensors in; default their own, so that the adapter comes back bit by bit.

        Raises:
            ValueError: no such adapter, or several to choose from; a name that does not end with .safetensors.
        """
        if not weight_name.endswith(".safetensors"):
            raise ValueError(f"weight_name must end with .safetensors, got {weight_name!r}")
        names = self._attached(adapter_name)
        if len(names) > 1:
            raise ValueError(f"there are several adapters: adapter_name must be one of {names}")
        start = f"{prefix}." if prefix else ""
        tensors = _peft().get_peft_model_state_dict(self, adapter_name=names[0])
        tensors = {start + name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in tensors.items()}
        config = {field: getattr(self.peft_config[names[0]], field) for field in _STORED}
        config = {start + field: sorted(value) if isinstance(value, set) else value for field, value in config.items()}
        metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(config), "base_model": json.dumps(self._description())}
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / weight_name, overwrite=True) as unfinished:
            save_file(tensors, unfinished, metadata=metadata)

    def load_lora_adapter(
        self,
        pretrained_model_name_or_path_or_dict: str | Path | Mapping[str, Tensor],
        adapter_name: str | None = None,
        weight_name: str | None = None,
        prefix: str | None = None,
        scale: float | None = None,
        check_base: bool = True,
        **hub_options: Any,
    ) -> None:
        """Attach an adapter from a file; it alone is active from then on. If it does not fit, the network is as before.

        Args:
            pretrained_model_name_or_path_or_dict: a .safetensors file, a folder or Hub id that has one, or tensors by name. Files that
                other programs wrote in diffusers' layout will do, as long as they hold a plain low-rank adapter.
            adapter_name: what to call it; default "default_0", "default_1", …
            weight_name: of the file in the folder; default "pytorch_lora_weights.safetensors".
            prefix: what the tensors' names begin with; others are passed over.
            scale: of the updates; default what the file says, or one.
            check_base: refuse an adapter that was made on top of other weights. Class and sizes have to fit in any case.
            **hub_options: as for `huggingface_hub.hf_hub_download` (revision, token, …).

        Raises:
            FileNotFoundError: no such file.
            ValueError: a damaged file, one for another network, or a name that is in use.
            ImportError: PEFT is missing.
        """
        _peft()
        if isinstance(pretrained_model_name_or_path_or_dict, Mapping):
            source, tensors, metadata = "the adapter", dict(pretrained_model_name_or_path_or_dict), {}
        else:
            path = _find(pretrained_model_name_or_path_or_dict, weight_name or WEIGHT_NAME, hub_options)
            source, (tensors, metadata) = str(path), _read(path)
        start = f"{prefix}." if prefix else ""
        tensors = {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
        if not tensors:
            raise ValueError(f"{source} holds no adapter: no tensor's name begins with {start!r}" if start else f"{source} is empty")
        self._check_fit(tensors, metadata.get("base_model", {}), check_base, source)
        stored = {name.removeprefix(start): value for name, value in metadata.get("lora_adapter_metadata", {}).items()}
        free = (name for name in map("default_{}".format, range(len(self.adapters) + 1)) if name not in self.adapters)
        name = next(free) if adapter_name is None else adapter_name
        self._attach(_config_of(tensors, stored, scale, source), name, tensors)

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """As `ModelMixin.save_pretrained`. What is written is an ordinary network, with fused adapters in its weights.

        Raises:
            ValueError: adapters that are not fused, which the saved network would lack.
        """
        self.require_fused("save_pretrained")
        network = self
        if self.adapters:
            network = copy.deepcopy(self)
            network.unload_lora()
        super(AdapterMixin, network).save_pretrained(save_directory, *args, **kwargs)

    # diffusers reads from the signature which arguments it may pass.
    functools.update_wrapper(save_pretrained, ModelMixin.save_pretrained, assigned=(), updated=())

    def require_fused(self, action: str) -> None:
        """Raise ValueError if there are adapters that are not fused."""
        loose = [name for name in self.adapters if name not in self.fused_adapters]
        if loose:
            raise ValueError(
                f"{action} would lose the adapters {loose} of this {type(self).__name__}: have them in the weights by fuse_lora(), or "
                "store them by save_lora_weights(folder), which leaves the weights alone, and take them off by unload_lora_weights() "
                "(of a network: save_lora_adapter(folder), unload_lora())"
            )

    # What the methods have in common

    def _adapted_layers(self) -> Iterator[Any]:
        if not hasattr(self, "peft_config"):
            return iter(())
        from peft.tuners.tuners_utils import BaseTunerLayer

        return (module for module in self.modules() if isinstance(module, BaseTunerLayer))

    def _attached(self, names: str | Sequence[str] | None = None) -> list[str]:
        """The names as a list, by default all; ValueError if one is not attached, or if there are none."""
        attached = self.adapters
        if not attached:
            raise ValueError(f"this {type(self).__name__} has no adapters: add_adapter or load_lora_adapter attaches one")
        names = attached if names is None else [names] if isinstance(names, str) else list(names)
        if not names or not set(names) <= set(attached):
            raise ValueError(f"adapters must be among {attached}, got {names}")
        return names

    def _require_unfused(self) -> None:
        if self.fused_adapters:
            raise ValueError(f"the adapters {self.fused_adapters} are fused, beside which others have no effect: call unfuse_lora() first")

    def _attach(self, config: Any, name: str, tensors: dict[str, Tensor] | None = None) -> None:
        peft = _peft()
        if not _is_plain(config):
            raise ValueError(f"adapter_config must be a peft.LoraConfig of plain low-rank updates, got a {type(config).__name__}: {config}")
        if not isinstance(name, str) or not name or "." in name or name in self.adapters:
            raise ValueError(f"adapter_name must be a word without a dot and not among {self.adapters}, got {name!r}")
        self._require_unfused()
        active = self.active_adapters()
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several adapters are what this is for
                peft.inject_adapter_in_model(config, self, name, state_dict=tensors)
            if tensors is not None:
                peft.set_peft_model_state_dict(self, tensors, adapter_name=name)
        except Exception:
            self._detach([name], active)
            raise
        self.enable_adapters()
        self.train(self.training)  # the new layers, too

    def _detach(self, names: list[str], active: list[str]) -> None:
        for layer in self._adapted_layers():
            layer.set_adapter(active)
            for name in names:
                layer.delete_adapter(name)
        for name in names:
            getattr(self, "peft_config", {}).pop(name, None)
        if not self.adapters:
            self.unload_lora()

    def _base_parameters(self) -> Iterator[Tensor]:
        """Parameters of the network without adapters, even if these are fused."""
        for name, parameter in self.named_parameters():
            owner, _, kind = name.partition(".base_layer.")
            fused = self.get_submodule(owner).merged_adapters if kind == "weight" else ()
            if fused:
                yield parameter - sum(map(self.get_submodule(owner).get_delta_weight, fused))
            elif ".lora_" not in name:
                yield parameter

    @torch.no_grad()
    def _description(self) -> dict[str, Any]:
        """Class, sizes and fingerprint of the network without adapters: mean absolute values of evenly chosen parameters."""
        parameters = list(self._base_parameters())
        chosen = torch.linspace(0, len(parameters) - 1, min(_FINGERPRINT, len(parameters))).long().tolist()
        return {
            "class": type(self).__name__,
            "sizes": {field: self.config[field] for field in _SIZES if field in self.config},
            "fingerprint": [parameters[index].float().abs().mean().item() for index in chosen],
        }

    def _check_fit(self, tensors: Mapping[str, Tensor], made_for: Mapping[str, Any], check_base: bool, source: str) -> None:
        """ValueError unless the tensors fit this network, and are of one like it if they say of which."""
        here = self._description()
        sizes, fingerprint = made_for.get("sizes", {}), made_for.get("fingerprint", [])
        same_class = made_for.get("class", here["class"]) in (parent.__name__ for parent in type(self).__mro__)
        if not same_class or any(here["sizes"].get(field) != value for field, value in sizes.items() if field in _SIZES):
            raise ValueError(f"{source} is an adapter for {_words(made_for)}, but this is {_words(here)}")
        layers = {
            name.removesuffix(".base_layer"): module
            for name, module in self.named_modules()
            if isinstance(module, nn.Linear) and ".lora_" not in name
        }
        problems = _misfits(tensors, layers)
        if problems:
            more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
            raise ValueError(f"{source} does not fit {_words(here)}: {'; '.join(problems[:3])}{more}")
        pairs = list(zip(fingerprint, here["fingerprint"]))
        differing = sum(not abs(a - b) <= _TOLERANCE * max(abs(a), abs(b)) + 1e-6 for a, b in pairs)
        if check_base and made_for and (differing or len(fingerprint) != len(here["fingerprint"])):
            raise ValueError(
                f"{source} is an adapter for another {_words(made_for)}: {differing} of {len(pairs)} weights that were compared differ "
                "from this one's by more than 1 %. Load the model that it was made for, or pass check_base=False"
            )


def effective_weight(layer: nn.Module) -> Tensor:
    """Weight of a linear layer that is taken apart rather than called, with what active adapters add to it."""
    if not hasattr(layer, "base_layer") or layer.merged or layer.disable_adapters:
        return layer.weight
    return layer.weight + sum(layer.get_delta_weight(name) for name in layer.active_adapters if name in layer.lora_A)


def _peft() -> ModuleType:
    try:
        import peft
    except ImportError as error:
        raise ImportError("adapters need 🤗 PEFT: pip install probpose[adapt]") from error
    return peft


def _is_plain(config: Any) -> bool:
    """Whether it is a `peft.LoraConfig` that adds B A to linear layers, and neither changes nor trains anything else."""
    others = ("use_dora", "lora_bias", "modules_to_save", "target_parameters", "trainable_token_indices")
    return (
        type(config).__name__ == "LoraConfig"
        and config.bias == "none"
        and config.init_lora_weights in (True, False, "gaussian")
        and not any(getattr(config, field, None) for field in others)
    )


def _finite(name: str, value: Any) -> float:
    if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}")
    return value


def _words(description: Mapping[str, Any]) -> str:
    """A network's class and sizes in words."""
    sizes = ", ".join(f"{field}={value!r}" for field, value in description["sizes"].items())
    return f"{description['class']}({sizes})"


def _misfits(tensors: Mapping[str, Tensor], layers: Mapping[str, nn.Linear]) -> list[str]:
    """What does not fit a network's layers, in words."""
    shapes = {name: tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__ for name, tensor in tensors.items()}
    expected = {}
    for owner in dict.fromkeys(name.rpartition(".lora_")[0] for name in tensors):
        if owner in layers:
            rank = (*shapes.get(f"{owner}.lora_A.weight", ()), "rank")[0]
            expected[f"{owner}.lora_A.weight"] = (rank, layers[owner].in_features)
            expected[f"{owner}.lora_B.weight"] = (layers[owner].out_features, rank)
    wrong = [f"{name} is {shapes.get(name, 'missing')}, not {shape}" for name, shape in expected.items() if shapes.get(name) != shape]
    return wrong + [f"unexpected {name}" for name in tensors if name not in expected]


def _config_of(tensors: Mapping[str, Tensor], stored: Mapping[str, Any], scale: float | None, source: str) -> Any:
    """The `peft.LoraConfig` of tensors by name, whatever was stored of its targets and ranks; a scale wins over what was stored of it."""
    ranks = {name.removesuffix(".lora_A.weight"): len(tensor) for name, tensor in tensors.items() if name.endswith(".lora_A.weight")}
    rank = Counter(ranks.values()).most_common(1)[0][0]
    others = {re.escape(layer): value for layer, value in ranks.items() if value != rank}
    if scale is None and "lora_alpha" in stored:
        alpha, alphas, by_root = stored["lora_alpha"], stored.get("alpha_pattern") or {}, stored.get("use_rslora", False)
        if not isinstance(alphas, dict) or not all(map(_is_expression, alphas)) or not isinstance(by_root, bool):
            raise ValueError(f"{source} is damaged: alpha_pattern is {alphas!r}, use_rslora is {by_root!r}")
    else:
        scale = _finite("scale", 1 if scale is None else scale)
        alpha, alphas, by_root = rank * scale, {layer: value * scale for layer, value in others.items()}, False
    for name, value in {"lora_alpha": alpha, **alphas}.items():
        _finite(f"{name} of {source}", value)
    return _peft().LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=sorted(ranks), rank_pattern=others, alpha_pattern=alphas, use_rslora=by_root
    )


def _is_expression(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True


def _find(place: str | Path, weight_name: str, hub_options: dict[str, Any]) -> Path:
    """The file itself, a folder's, or that of a repository on the Hub."""
    path = Path(place)
    if path.is_dir():
        path = path / weight_name
    if not path.exists() and re.fullmatch(r"\w[\w.-]*/[\w.-]+", str(place)) and not str(place).endswith(".safetensors"):
        path = Path(hf_hub_download(str(place), weight_name, **hub_options))
    if not path.is_file():
        raise FileNotFoundError(f"no file with an adapter at {path}")
    return path


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    """Tensors, and what the header says of the adapter and its network."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
            header = file.metadata() or {}
        metadata = {key: json.loads(header[key]) for key in ("base_model", "lora_adapter_metadata") if key in header}
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged or no .safetensors file: {error}") from error
    if not all(isinstance(value, dict) for value in metadata.values()) or not _is_description(metadata.get("base_model")):
        raise ValueError(f"{path} is damaged: its header does not say which model the adapter is for")
    return tensors, metadata


def _is_description(value: Mapping[str, Any] | None) -> bool:
    """Whether it is what `AdapterMixin._description` gives, or nothing."""
    if value is None:
        return True
    kinds = {"class": str, "sizes": dict, "fingerprint": list}
    return all(isinstance(value.get(key), kind) for key, kind in kinds.items()) and all(isinstance(v, float) for v in value["fingerprint"])
