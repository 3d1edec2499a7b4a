"""A learned router: a head over hidden states decides which call begins where."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layers.head import LossTerm
from routers.router import Router
from routers.vocabulary import Vocabulary


class LearnedRouter(Router):
    """Classifies the state before every token that could begin a call: text, or one of the available tasks.

    With h the hidden state, ``p = softmax(mask(W₂ GELU(W₁ LN(h))))`` over text and the tasks; before a reply's next
    token the likeliest class is taken. For text the opening tokens are barred; for a task its opening token is placed,
    and from there the grammar is that of every call. A router over hidden states instead of fixed marker tokens was
    better in UniAfford (https://arxiv.org/abs/2609.37264, table 4, affordance grounding); here both share one
    interface, so that they can be compared on any model. It learns from the tokens' own labels, with the recipe.

    Args:
        state_size: Width of the language model's states.
        tasks: Names of all tasks of the table.
        hidden_size: Width of the hidden layer.
        loss_weight: Weight of its loss beside the token loss.
        detach: Keep its gradient from the language model.
    """

    def __init__(
        self,
        state_size: int,
        tasks: Sequence[str],
        hidden_size: int = 128,
        loss_weight: float = 1.0,
        detach: bool = False,
    ) -> None:
        super().__init__()
        self.tasks, self.loss_weight, self.detach = tuple(tasks), loss_weight, detach
        self.classify = nn.Sequential(
            nn.LayerNorm(state_size),
            nn.Linear(state_size, hidden_size),
            nn.GELU(),
            nn.Linear(hidden_size, 1 + len(self.tasks)),
        )

    def bind(self, vocabulary: Vocabulary) -> None:
        """Take the control tokens of the model that it routes for.

        Raises:
            ValueError: If its tasks are not those of the table.
        """
        known = list(vocabulary.open_ids)
        if sorted(self.tasks) != sorted(known):
            raise ValueError(f"router tasks: expected those of the table, {known}, got {list(self.tasks)}")
        super().bind(vocabulary)

    @property
    def learns(self) -> bool:
        """It has a loss."""
        return True

    @property
    def steers(self) -> bool:
        """It decides where calls begin."""
        return True

    def forward(self, states: Tensor, available: Sequence[Collection[str]]) -> Tensor:
        """Log-probabilities.

        Args:
            states: (n, d) before the tokens in question.
            available: Per state the tasks that may begin there.

        Returns:
            (n, 1 + tasks), text first; -inf for tasks that may not begin.
        """
        barred = [[False, *(task not in names for task in self.tasks)] for names in available]
        mask = torch.tensor(barred, device=states.device).view(len(available), 1 + len(self.tasks))
        logits = self.classify(states.to(next(self.parameters()).dtype)).float()
        return logits.masked_fill(mask, float("-inf")).log_softmax(-1)

    def steer(self, logits: Tensor, states: Tensor, standing: Sequence[Collection[str] | None]) -> Tensor:
        """Bar the opening tokens where text goes on, and all others where a call begins; see :meth:`Router.steer`."""
        rows = [row for row, names in enumerate(standing) if names is not None]
        if not rows:
            return logits
        names = [cast("Collection[str]", standing[row]) for row in rows]
        opens = [self.vocabulary.open_ids[task] for task in self.tasks]
        logits = logits.clone()
        index = torch.tensor(rows, device=logits.device)
        choices = self(states[index], names).argmax(-1).tolist()
        logits[index[:, None], torch.tensor(opens, device=logits.device)] = float("-inf")
        for row, choice in zip(rows, choices, strict=True):
            if choice:
                logits[row] = float("-inf")
                logits[row, opens[choice - 1]] = 0.0
        return logits

    def loss(self, states: Tensor, token_ids: Tensor, available: Sequence[Collection[str]]) -> LossTerm:
        """Summed cross-entropy of what stands where a call could begin.

        Args:
            states: (n, d) before those tokens.
            token_ids: (n,) the tokens.
            available: Per token the tasks that could begin there.
        """
        classes = torch.zeros_like(token_ids)
        for number, task in enumerate(self.tasks, 1):
            classes[token_ids == self.vocabulary.open_ids[task]] = number
        scores = self(states.detach() if self.detach else states, available)
        return LossTerm(F.nll_loss(scores, classes, reduction="sum"), len(states))
