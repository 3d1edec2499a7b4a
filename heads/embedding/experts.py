"""Feed-forward experts by domain, the domain being given and not guessed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from heads.attend import perceptron


class DomainExperts(nn.Module):
    """One residual feed-forward layer per domain, ``x + F_d(LayerNorm(x))``, over every state of a call.

    Enforced routing as in https://arxiv.org/abs/2401.15713, where copies of a pretrained layer's perceptron specialise
    on scientific domains and a token of the domain chooses among them: here the experts begin alike, and the task's
    token chooses, being the token of the domain. The layer stands behind the language model and not within it.

    Args:
        size: Width of the states.
        domains: Names of the domains.
        hidden_size: Inner width of an expert; ``2 * size`` by default.
    """

    def __init__(self, size: int, domains: Sequence[str], hidden_size: int | None = None) -> None:
        super().__init__()
        if not domains or len(set(domains)) != len(domains):
            raise ValueError(f"domains: expected different names, got {list(domains)}")
        self.domains = tuple(domains)
        self.norm = nn.LayerNorm(size)
        self.experts = nn.ModuleList(perceptron(size, hidden_size or 2 * size, size) for _ in domains)
        for expert in self.experts:
            expert.load_state_dict(self.experts[0].state_dict())

    def forward(self, states: Tensor, lengths: Sequence[int], domains: Sequence[str]) -> Tensor:
        """Send the states of each call to the expert of its domain.

        Args:
            states: (ΣK, size).
            lengths: K per call.
            domains: Domain per call.

        Returns:
            (ΣK, size).

        Raises:
            ValueError: For an unknown domain.
        """
        unknown = sorted(set(domains) - set(self.domains))
        if unknown:
            raise ValueError(f"domains: expected some of {', '.join(self.domains)}, got '{unknown[0]}'")
        chosen = [self.domains.index(domain) for domain in domains]
        rows = torch.tensor(chosen, dtype=torch.int64, device=states.device)
        rows = rows.repeat_interleave(torch.tensor(lengths, device=states.device))
        normed, updates = self.norm(states), torch.zeros_like(states)
        for index in sorted(set(chosen)):
            own = (rows == index).nonzero()[:, 0]
            updates = updates.index_copy(0, own, self.experts[index](normed[own]).to(updates.dtype))
        return states + updates
