"""Self-attention through diffusers' attention dispatch, so that `model.set_attention_backend(...)` works on every backbone."""

from __future__ import annotations

from torch import Tensor, nn

from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import dispatch_attention_fn

from .embeddings import apply_rotary


class SelfAttentionProcessor:
    """Runs the fused projection and hands queries, keys and values to the chosen attention backend."""

    _attention_backend = None
    _parallel_config = None

    def __call__(self, attn: SelfAttention, x: Tensor, rotary: tuple[Tensor, Tensor] | None = None) -> Tensor:
        query, key, value = attn.qkv(x).unflatten(-1, (3, attn.heads, -1)).unbind(-3)
        if rotary is not None:
            query, key = apply_rotary(query, rotary), apply_rotary(key, rotary)
        out = dispatch_attention_fn(query, key, value, backend=self._attention_backend, parallel_config=self._parallel_config)
        return attn.proj(out.flatten(-2))


class SelfAttention(nn.Module, AttentionModuleMixin):
    """Multi-head self-attention over the middle axis of `(batch, tokens, dim)`; one projection gives q, k, v in that order."""

    _default_processor_cls = SelfAttentionProcessor
    _available_processors = [SelfAttentionProcessor]
    _supports_qkv_fusion = False

    def __init__(self, dim: int, heads: int, bias: bool = True):
        super().__init__()
        if dim % heads:
            raise ValueError(f"the width must be divisible by the number of heads, got width {dim} and {heads} heads")
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.proj = nn.Linear(dim, dim)
        self.processor = SelfAttentionProcessor()

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor] | None = None) -> Tensor:
        return self.processor(self, x, rotary)
