"""Pretraining of an image tower without annotation: two views of an image against the other images of its batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import v2

from layers.head import LossTerm
from training.towers.objectives import Encode, NoTargets, Outcome, TowerBatch, TowerObjective


class TwoViewObjective(TowerObjective):
    """SimCLR (https://arxiv.org/abs/2002.05709, equation 1) over the mean of an image's features.

    Each image is cropped, tinted and blurred twice; a perceptron maps either mean to a unit vector, and a view has to
    find its sibling among all other views of the batch: the cross-entropy of cosine similarities over τ.

    Args:
        hidden_size: Width of the encoder's features.
        smallest_crop: Share of the image that a crop covers at least.
        jitter: Strength of the change of brightness, contrast and saturation; the hue changes by a tenth of it.
        blur_share: Share of the views that are blurred.
        temperature: τ.
    """

    def __init__(
        self,
        hidden_size: int,
        smallest_crop: float = 0.3,
        jitter: float = 0.4,
        blur_share: float = 0.3,
        temperature: float = 0.2,
    ) -> None:
        super().__init__()
        self.hidden_size, self.temperature = hidden_size, temperature
        self.smallest_crop = smallest_crop
        self.target_rule = NoTargets()
        self.loss_weights = {}
        self.change = v2.Compose(
            [
                v2.ColorJitter(jitter, jitter, jitter, jitter / 10),
                v2.RandomApply([v2.GaussianBlur(3, sigma=(0.1, 1.5))], p=blur_share),
            ]
        )
        self.project = nn.Sequential(
            nn.Linear(hidden_size, hidden_size), nn.GELU(), nn.Linear(hidden_size, hidden_size)
        )

    def forward(self, encode: Encode, batch: TowerBatch) -> Outcome:
        """The loss per view; in evaluation also how often a view finds its sibling."""
        views = [self._views(batch.items, encode, batch) for _ in range(2)]
        vectors = F.normalize(self.project(torch.cat(views)).float(), dim=-1)
        count = len(vectors)
        own = torch.eye(count, dtype=torch.bool, device=vectors.device)
        logits = (vectors @ vectors.T / self.temperature).masked_fill(own, -torch.inf)
        sibling = torch.arange(count, device=vectors.device).roll(count // 2)
        outcome = Outcome({"views": LossTerm(F.cross_entropy(logits, sibling, reduction="sum"), count)})
        if not self.training:
            outcome.metrics = {"sibling_top1": ((logits.argmax(1) == sibling).double().sum(), count)}
        return outcome

    def _views(self, items: list[dict[str, Tensor]], encode: Encode, batch: TowerBatch) -> Tensor:
        """One view of every image: (B, d)."""
        changed = [{**item, "pixel_values": self._view(item["pixel_values"])} for item in items]
        return torch.stack([rows.mean(0) for rows in batch.layout.split(encode(changed))])

    def _view(self, pixels: Tensor) -> Tensor:
        """A view of (3, H, W) uint8, of the same size."""
        crop = v2.RandomResizedCrop(list(pixels.shape[-2:]), scale=(self.smallest_crop, 1.0), antialias=True)
        view: Tensor = self.change(crop(pixels))
        return view
