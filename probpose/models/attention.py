"""Self-attention through diffusers' dispatch, so that `model.set_attention_backend(...)` works on every backbone."""

from __future__ import annotations

import torch
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend, dispatch_attention_fn
from torch import Tensor, nn

from .embeddings import apply_rotary

# Fused CUDA kernels count the batch along a grid axis of at most 65 535 blocks. Attention over the joints of a frame
# has a batch of windows × hypotheses × frames, which passes that with 20 hypotheses of 14 windows of 243 frames.
MAX_ATTENTION_BATCH = 32_768


class SelfAttentionProcessor:
    """Runs the fused projection and hands queries, keys and values to the chosen attention backend."""

    _attention_backend = None
    _parallel_config = None

    def __call__(self, attn: SelfAttention, x: Tensor, rotary: tuple[Tensor, Tensor] | None = None, mask: Tensor | None = None) -> Tensor:
        query, key, value = attn.qkv(x).unflatten(-1, (3, attn.heads, -1)).unbind(-3)
        if rotary is not None:
            query, key = apply_rotary(query, rotary), apply_rotary(key, rotary)
        dropout = attn.dropout if attn.training else 0.0
        if len(x) <= MAX_ATTENTION_BATCH:
            out = self._attend(query, key, value, mask, dropout)
        else:
            masks = [None] * len(x) if mask is None else mask.expand(len(x), -1, -1, -1).split(MAX_ATTENTION_BATCH)
            parts = zip(*(tensor.split(MAX_ATTENTION_BATCH) for tensor in (query, key, value)), masks)
            out = torch.cat([self._attend(*part, dropout) for part in parts])
        return attn.proj(out.flatten(-2))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
        if mask is not None:  # finite, so that a row without any key attends to all alike instead of being NaN
            mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, torch.finfo(query.dtype).min / 2)
        return dispatch_attention_fn(
            query, key, value, mask, dropout, backend=self._attention_backend, parallel_config=self._parallel_config
        )


class SelfAttention(nn.Module, AttentionModuleMixin):
    """Multi-head self-attention over the middle axis of `(batch, tokens, dim)`; one projection gives q, k and v.

    A boolean mask broadcasts to `(batch, heads, queries, keys)`, False = not attended to. `dropout` drops attention weights in training.
    """

    _default_processor_cls = SelfAttentionProcessor
    _available_processors = [SelfAttentionProcessor]  # noqa: RUF012  (diffusers reads both from the class)
    _supports_qkv_fusion = False

    def __init__(self, dim: int, heads: int, bias: bool = True, dropout: float = 0.0):
        super().__init__()
        if heads < 1 or dim % heads:
            raise ValueError(f"the width must be divisible by the number of heads, got width {dim} and {heads} heads")
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.proj = nn.Linear(dim, dim)
        self.processor = SelfAttentionProcessor()

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor] | None = None, mask: Tensor | None = None) -> Tensor:
        return self.processor(self, x, rotary, mask)


class AttentionBackendMixin:
    """`set_attention_backend` that fails at once, and only for the model it was called on. Goes before `ModelMixin`.

    diffusers checks that a backend's package is installed, but not that it runs on the model's device: xformers on a
    CPU would break in the middle of the first forward pass. diffusers also makes the backend the default of every other
    model, and keeps that default after a reset.
    """

    def set_attention_backend(self, backend: str) -> None:
        """Choose how attention is computed: `"native"`, `"xformers"`, `"flash"`, … until `reset_attention_backend()`.

        The backend is tried once on two tokens with the model's heads, device and dtype: move and cast the model first.

        Raises:
            ValueError: an unknown name.
            RuntimeError: a backend that cannot run here; the model keeps the one it had.
        """
        names = [name.value for name in AttentionBackendName]
        if backend not in names:
            raise ValueError(f"the attention backend must be one of {', '.join(names)}, got {backend!r}")
        layers = [module for module in self.modules() if isinstance(module, SelfAttention)]
        weight = layers[0].qkv.weight
        tokens = weight.new_zeros(1, 2, layers[0].heads, weight.shape[1] // layers[0].heads)
        try:
            with attention_backend(backend), torch.no_grad():
                dispatch_attention_fn(tokens, tokens, tokens)
        except Exception as error:  # every kernel package has its own way to say no
            reason = (str(error) or type(error).__name__).strip().splitlines()[0]
            raise RuntimeError(
                f"the attention backend {backend!r} cannot run here ({weight.dtype} on {weight.device}): {reason} "
                "xformers, flash and sage need their package and a model on a CUDA device, flash and sage also half "
                "precision; 'native' runs everywhere."
            ) from error
        for layer in layers:
            layer.processor._attention_backend = AttentionBackendName(backend)
