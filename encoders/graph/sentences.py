"""Node texts through a pretrained sentence encoder of transformers, frozen by default."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import AutoModel

from layers.pretrained import load_pretrained

NODES_PER_PASS = 256


class SentenceEncoder(nn.Module):
    """The mean of a text encoder's last states over a text's own tokens, at unit length.

    As sentence-transformers' models are read (https://arxiv.org/abs/1908.10084).

    Args:
        pretrained: A local directory with the model's safetensors and its tokenizer.
    """

    def __init__(self, pretrained: str) -> None:
        super().__init__()
        self.model = load_pretrained(AutoModel, pretrained, may_lack=r"(^|\.)pooler\.", local_files_only=True)
        self.model.requires_grad_(False)
        self.width: int = self.model.config.hidden_size

    def train(self, mode: bool = True) -> SentenceEncoder:
        """Switch the mode; without trainable parameters it stays deterministic."""
        super().train(mode and any(parameter.requires_grad for parameter in self.parameters()))
        return self

    def forward(self, token_ids: Tensor, lengths: Tensor) -> Tensor:
        """(N, L) ids, of which ``lengths`` (N,) count, to (N, width)."""
        pooled = [
            self._pooled(ids, own)
            for ids, own in zip(token_ids.split(NODES_PER_PASS), lengths.split(NODES_PER_PASS), strict=True)
        ]
        return torch.cat(pooled)

    def _pooled(self, ids: Tensor, lengths: Tensor) -> Tensor:
        mask = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
        states = self.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        mean = (states * mask[..., None]).sum(1) / lengths[:, None]
        return nn.functional.normalize(mean, dim=-1)
