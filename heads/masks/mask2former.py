"""Any number of masks with labels: Mask2Former, whose queries hear what crosses the link."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation
from transformers.models.mask2former.modeling_mask2former import (
    pair_wise_dice_loss,
    pair_wise_sigmoid_cross_entropy_loss,
)

from heads.attend import perceptron
from heads.boxes.matching import assign, class_loss
from heads.links import LinkedHead, PromptEncoder
from heads.masks.losses import bce_and_dice
from heads.masks.targets import ExpertMaskProcessor
from heads.originals import EmbeddingCache, ExpertFrame, original_image
from heads.phrases import asked_phrases, class_index, phrases_of
from layers.calls import HeadContext, MaskResult, MasksResult, Result
from layers.head import HeadTarget, Link, LossTerm
from layers.pretrained import load_pretrained

PRETRAINED = "pretrained"


@dataclass
class MaskSets:
    """Predicted sets of n calls, Q masks each.

    Args:
        logits: Per layer and call (Q, C + 1), the last class being none.
        masks: Per layer (n, Q, h, w) logits over the expert's frame.
        classes: Per call the C classes.
    """

    logits: list[list[Tensor]]
    masks: list[Tensor]
    classes: list[list[str]] = field(default_factory=list)


class Mask2FormerHead(LinkedHead):
    """Instances by Mask2Former (https://arxiv.org/abs/2112.01527): a set of masks, matched one to one in training.

    The backbone and the pixel decoder are frozen and see each image once, the original one; the transformer decoder is
    trained. The mean of what crosses the link is projected and added to every query, from zero on, so that a pretrained
    model begins as it was. A query's state is compared with the phrases of the prompt, or classified. The loss is the
    paper's, ``2·CE + 5·BCE + 5·Dice`` after every layer, on every cell of the masks instead of sampled points.

    Args:
        state_size: Width of the language model's states.
        pretrained: A local directory of a Mask2Former of transformers.
        config: Arguments of ``Mask2FormerConfig``, for random weights instead.
        image_size: (width, height) of the input; the checkpoint's processor's, or 384 x 384, by default.
        classes: A closed vocabulary; "pretrained" for the checkpoint's own, with its classifier; None compares with the
            prompt's phrases. Of a closed one a prompt may name some, or be empty for all.
        instances: Whether the answer is every mask above the threshold; else it is the likeliest one, whatever its
            score, as a referring expression wants it.
        threshold: Least score of an instance.
        class_weight: Of the cross-entropy, and of the class in the matching.
        bce_weight: Of the masks' binary cross-entropy, likewise.
        dice_weight: Of their Dice loss, likewise.
        none_weight: Weight of queries without an object within the cross-entropy.
        max_images: Images whose maps are remembered.
        link: What crosses from the language model.
        num_queries: Learned queries, for the link ``queries``.
        text_encoder: Directory of a pretrained text encoder, for the phrases and for the links ``text`` and ``boxes``.

    Raises:
        ValueError: If neither or both of ``pretrained`` and ``config`` are given, or the checkpoint's classes are asked
            for without a checkpoint.
    """

    reads_originals = True

    def __init__(
        self,
        state_size: int,
        pretrained: str | None = None,
        config: dict[str, Any] | None = None,
        image_size: tuple[int, int] | None = None,
        classes: Sequence[str] | str | None = None,
        instances: bool = True,
        threshold: float = 0.5,
        class_weight: float = 2.0,
        bce_weight: float = 5.0,
        dice_weight: float = 5.0,
        none_weight: float = 0.1,
        max_images: int = 16,
        link: Link = "hidden",
        num_queries: int = 0,
        text_encoder: str | None = None,
    ) -> None:
        crossing_text = link in ("text", "boxes")
        super().__init__(link, state_size, num_queries, text_encoder=text_encoder if crossing_text else None)
        if (pretrained is None) == (config is None):
            raise ValueError(f"expected pretrained or config, got {pretrained!r} and {config!r}")
        if isinstance(classes, str) and (classes != PRETRAINED or pretrained is None):
            raise ValueError(f"classes: expected a list, or '{PRETRAINED}' with a checkpoint, got {classes!r}")
        model: Any = Mask2FormerForUniversalSegmentation
        if pretrained is not None:
            whole = load_pretrained(model, pretrained, may_lack=r"^(class_predictor|criterion)\.")  # of another task
            self.bases = {**self.bases, "mask2former.": pretrained}
        else:
            whole = model(Mask2FormerConfig(**(config or {})))
        self.mask2former = whole.model
        self.mask2former.pixel_level_module.requires_grad_(False)
        width = self.width = int(whole.config.hidden_dim)
        self.instances, self.threshold = instances, threshold
        self.class_weight, self.bce_weight, self.dice_weight = class_weight, bce_weight, dice_weight
        self.none_weight = none_weight
        self.condition = nn.Sequential(nn.LayerNorm(state_size), perceptron(state_size, width, width))
        last: Any = self.condition[1][-1]  # type: ignore[index]
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.classes: list[str] | None
        if classes == PRETRAINED:
            own = whole.config.id2label
            self.classes = [str(own[index]) for index in range(len(own))]
            self.classify = whole.class_predictor
            self.bases = {**self.bases, "classify.": str(pretrained)}
        elif classes is not None:
            self.classes = list(classes)
            self.classify = nn.Linear(width, len(self.classes) + 1)
        else:
            self.classes = None
            self.phrases = PromptEncoder(width, text_encoder)
            self.phrase_projection = nn.Linear(width, width)
            self.none = nn.Linear(width, 1)
            if text_encoder is not None:
                self.bases = {**self.bases, "phrases.model.": text_encoder}
        size = image_size or _told_size(pretrained)
        self.frame = ExpertFrame.of(pretrained, (int(size[0]), int(size[1])), "stretch")
        mask_size = (-(-self.frame.size[0] // 4), -(-self.frame.size[1] // 4))
        known = None if self.classes is None else tuple(self.classes)
        self.target_processor = ExpertMaskProcessor(self.frame, mask_size, known)
        self.cache = EmbeddingCache(max_images)

    def train(self, mode: bool = True) -> Mask2FormerHead:
        """Switch the mode; what is frozen stays in evaluation mode."""
        super().train(mode)
        self.mask2former.pixel_level_module.eval()
        return self

    def forward(self, states: Tensor | None, lengths: Sequence[int], contexts: Sequence[HeadContext]) -> MaskSets:
        """Predict a set per call, see :meth:`layers.head.Head.forward`."""
        crossed, counts = self.crossed(states, lengths, contexts)
        if not contexts:
            return MaskSets([], [])
        maps = self.cache.get([original_image(context) for context in contexts], self.embed)
        told = torch.stack([own.mean(0) for own in self.condition(crossed).split(counts)])
        output = self.queried([torch.stack(list(level)) for level in zip(*maps, strict=True)], told)
        if self.classes is None:
            classes, known = asked_phrases(contexts, self.phrases, self.phrase_projection)
        else:
            classes, known = [self.classes] * len(contexts), [None] * len(contexts)
        logits = [
            [self._logits(own, phrases) for own, phrases in zip(layer.transpose(0, 1), known, strict=True)]
            for layer in output.intermediate_hidden_states
        ]
        return MaskSets(logits, list(output.masks_queries_logits), classes)

    def embed(self, originals: Sequence[Tensor]) -> list[list[Tensor]]:
        """Of each image (3, H, W) uint8 the pixel decoder's maps: three levels, then the one of the masks.

        For a cache, which wants no gradient.
        """
        weight = self.mask2former.transformer_module.level_embed.weight
        pixels = torch.stack([self.frame.pixels(image.to(weight.device)) for image in originals]).to(weight.dtype)
        output = self.mask2former.pixel_level_module(pixels, output_hidden_states=True)
        levels = [*output.decoder_hidden_states, output.decoder_last_hidden_state]
        return [[level[place] for level in levels] for place in range(len(originals))]

    def queried(self, maps: Sequence[Tensor], condition: Tensor) -> Any:
        """The transformer decoder's output for queries that have heard (n, width) conditions."""
        module = self.mask2former.transformer_module
        *levels, mask_features = maps
        positions = [module.position_embedder(m.shape, m.device, m.dtype, None).flatten(2) for m in levels]
        features = [
            module.input_projections[place](level).flatten(2) + module.level_embed.weight[place][None, :, None]
            for place, level in enumerate(levels)
        ]
        queries = module.queries_features.weight[:, None] + condition[None]
        return module.decoder(
            inputs_embeds=queries,
            multi_stage_positional_embeddings=[item.permute(2, 0, 1) for item in positions],
            pixel_embeddings=mask_features,
            encoder_hidden_states=[item.permute(2, 0, 1) for item in features],
            query_position_embeddings=module.queries_embedder.weight[:, None].expand_as(queries),
            feature_size_list=[level.shape[-2:] for level in levels],
            return_dict=True,
        )

    def loss(self, predictions: MaskSets, targets: Sequence[HeadTarget]) -> LossTerm:
        """Sum over calls of Mask2Former's loss, over all layers."""
        if not targets:
            return LossTerm(self.zero_touch(), 0)
        sums: dict[str, Tensor] = {}
        for logits, masks in zip(predictions.logits, predictions.masks, strict=True):
            for row, own, target in zip(logits, masks, targets, strict=True):
                for name, value in self._call_loss(row, own, target).items():
                    sums[name] = sums.get(name, torch.zeros_like(value)) + value
        parts = {name: value.detach() for name, value in sums.items()}
        return LossTerm(torch.stack(list(sums.values())).sum(), len(targets), parts)

    def matching_cost(self, logits: Tensor, masks: Tensor, labels: Tensor, wanted: Tensor) -> Tensor:
        """(Q, K): how badly each query answers for each wanted mask, as in Mask2Former's matcher.

        Args:
            logits: (Q, C + 1).
            masks: (Q, h, w) logits.
            labels: (K,).
            wanted: (K, h, w).
        """
        flat, truth = masks.detach().float().flatten(1), wanted.float().flatten(1)
        bce, dice = pair_wise_sigmoid_cross_entropy_loss(flat, truth), pair_wise_dice_loss(flat, truth)
        probability = logits.detach().float().softmax(-1)[:, labels]
        return self.bce_weight * bce + self.dice_weight * dice - self.class_weight * probability

    def decode(self, predictions: MaskSets, contexts: Sequence[HeadContext]) -> list[Result]:
        """Boolean masks of the original size; a score is the label's probability times the mask's within itself."""
        results: list[Result] = []
        for place, context in enumerate(contexts):
            logits, masks = predictions.logits[-1][place].float(), predictions.masks[-1][place].float()
            classes = predictions.classes[place]
            asked = self._asked(context, classes)
            probability, chosen = logits.softmax(-1)[:, asked].max(-1)
            inside = masks > 0
            sure = (masks.sigmoid() * inside).flatten(1).sum(1) / inside.flatten(1).sum(1).clamp(min=1)
            scores = probability * sure
            order = (scores if self.instances else probability).argsort(descending=True, stable=True)
            transform = self.frame.transform(context.image.layout.original_size)
            if not self.instances:
                best = int(order[0])
                results.append(
                    MaskResult(context.call, transform.invert_mask(masks[best], directly=True), float(scores[best]))
                )
                continue
            kept = [row for row in order.tolist() if scores[row] >= self.threshold]
            cut = [transform.invert_mask(masks[row], directly=True) for row in kept]
            width, height = context.image.layout.original_size
            results.append(
                MasksResult(
                    context.call,
                    torch.stack(cut) if cut else torch.zeros(0, height, width, dtype=torch.bool),
                    tuple(scores[kept].tolist()),
                    tuple(classes[asked[chosen[row]]] for row in kept),
                )
            )
        return results

    def _call_loss(self, logits: Tensor, masks: Tensor, target: HeadTarget) -> dict[str, Tensor]:
        labels, wanted = target["labels"].to(logits.device), target["masks"].to(masks)
        matched = assign(self.matching_cost(logits, masks, labels, wanted))
        rows, columns = matched
        terms = {"class": self.class_weight * class_loss(logits, matched, labels, self.none_weight)}
        bce, dice = bce_and_dice(masks[rows], wanted[columns])
        count = max(1, len(labels))
        return terms | {"bce": self.bce_weight * bce.sum() / count, "dice": self.dice_weight * dice.sum() / count}

    def _asked(self, context: HeadContext, classes: Sequence[str]) -> list[int]:
        """The classes that the call asks for."""
        phrases = phrases_of(context.call.prompt)
        if self.classes is None or phrases == [""]:
            return list(range(len(classes)))
        return [class_index(phrase, classes, f"task '{context.call.task}'") for phrase in phrases]

    def _logits(self, queries: Tensor, phrases: Tensor | None) -> Tensor:
        if phrases is None:
            logits: Tensor = self.classify(queries)
            return logits
        return torch.cat([queries @ phrases.T / self.width**0.5, self.none(queries)], dim=-1)


def _told_size(pretrained: str | None) -> tuple[int, int]:
    """(width, height) of a directory's image processor, 384 x 384 where it says none."""
    file = None if pretrained is None else Path(pretrained, "preprocessor_config.json")
    size = json.loads(file.read_text()).get("size", {}) if file is not None and file.is_file() else {}
    return (size["width"], size["height"]) if {"width", "height"} <= set(size) else (384, 384)
