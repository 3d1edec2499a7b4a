"""How tokens are chosen: greedily, or sampled from a nucleus with a stream of random numbers per reply."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class DecodingOptions:
    """How tokens are chosen.

    Args:
        max_new_tokens: A reply that has not ended by then is cut (``finish_reason`` "length").
        temperature: 0 takes the most likely token; above 0 samples.
        top_p: Samples among the most likely tokens whose probabilities add up to this.
        seed: Each reply draws from its own stream, seeded by this and the reply's number, so that batching does not
            change what is sampled.
        log_probabilities: Add up how likely the model found the tokens of each reply, for calibration.
    """

    max_new_tokens: int = 96
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    log_probabilities: bool = False

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens: expected at least 1, got {self.max_new_tokens}")
        if self.temperature < 0:
            raise ValueError(f"temperature: expected 0 or more, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: expected a number in (0, 1], got {self.top_p}")


class Chooser:
    """Greedy, or the inverse of the sorted cumulative distribution at one uniform number per row.

    Args:
        options: Temperature, nucleus and seed.
        streams: Number of each row's random stream.
    """

    def __init__(self, options: DecodingOptions, streams: Sequence[int]) -> None:
        self._options = options
        self._generators = []
        if options.temperature > 0:
            for stream in streams:
                generator = torch.Generator().manual_seed(options.seed * 1_000_003 + stream)
                self._generators.append(generator)

    def __call__(self, logits: Tensor, rows: Sequence[int]) -> Tensor:
        """(B,) tokens.

        Args:
            logits: (B, V).
            rows: The row of each.
        """
        if self._options.temperature == 0:
            return logits.argmax(-1)
        draws = torch.cat([torch.rand(1, generator=self._generators[row]) for row in rows]).to(logits.device)
        probabilities, order = (logits / self._options.temperature).softmax(-1).sort(dim=-1, descending=True)
        cumulative = probabilities.cumsum(-1)
        kept = cumulative - probabilities < self._options.top_p  # the first token is always kept
        mass = (probabilities * kept).sum(-1)
        picked = (cumulative < (draws * mass)[:, None]).sum(-1).clamp(max=logits.shape[-1] - 1)
        return order.gather(-1, picked[:, None])[:, 0]
