"""SAM and SAM 2 of transformers behind one interface: image maps once per image, then masks from prompt tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, Sam2Config, Sam2Model, SamConfig, SamModel

from heads.originals import ExpertFrame
from layers.pretrained import load_pretrained


class SegmentAnything(nn.Module):
    """A frozen image encoder and prompt encoder, and a mask decoder that may be trained.

    Args:
        pretrained: A local directory of a SAM or SAM 2 (a SAM 2 for video counts) of transformers.
        config: Arguments of ``SamConfig`` or ``Sam2Config``, for random weights instead.
        family: Which of the two ``config`` is for: "sam" or "sam2".
        train_decoder: Whether the mask decoder may be trained. What SAM 2 computes with its decoder's convolutions once
            per image stays frozen with the encoder.

    Raises:
        ValueError: If neither or both of ``pretrained`` and ``config`` are given, or the directory holds another model.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        config: dict[str, Any] | None = None,
        family: str = "sam",
        train_decoder: bool = True,
    ) -> None:
        super().__init__()
        if (pretrained is None) == (config is None):
            raise ValueError(f"expected pretrained or config, got {pretrained!r} and {config!r}")
        if pretrained is not None:
            family = AutoConfig.from_pretrained(pretrained, trust_remote_code=False).model_type
        family = family.removesuffix("_video")
        if family not in ("sam", "sam2"):
            raise ValueError(
                f"expected a SAM or a SAM 2, got '{family}'" + (f" in '{pretrained}'" if pretrained else "")
            )
        model: Any = SamModel if family == "sam" else Sam2Model
        if pretrained is not None:
            self.model = load_pretrained(model, pretrained)
        else:
            self.model = model((SamConfig if family == "sam" else Sam2Config)(**(config or {})))
        self.is_sam2 = family == "sam2"
        self.model.requires_grad_(False)
        if train_decoder:
            decoder = self.model.mask_decoder
            decoder.requires_grad_(True)
            for name in ("conv_s0", "conv_s1") if self.is_sam2 else ():
                getattr(decoder, name).requires_grad_(False)
            # No loss reaches what rates whether there is an object at all.
            for name in ("pred_obj_score_head",) if self.is_sam2 else ():
                getattr(decoder, name).requires_grad_(False)
        own = self.model.config.prompt_encoder_config
        self.width: int = own.hidden_size
        side = own.image_size
        fit: Any = "stretch" if self.is_sam2 else "longest_side"
        self.frame = ExpertFrame.of(pretrained, (side, side), fit)
        self.mask_size = (4 * (side // own.patch_size),) * 2

    def train(self, mode: bool = True) -> SegmentAnything:
        """Switch the mode of the decoder; the frozen encoders stay in evaluation mode."""
        super().train(mode)
        self.model.vision_encoder.eval()
        self.model.prompt_encoder.eval()
        return self

    def embed(self, originals: Sequence[Tensor]) -> list[list[Tensor]]:
        """The maps of each image, (C, h, w) each, the coarsest last; for a cache, which wants no gradient.

        Args:
            originals: (3, H, W) uint8 each.
        """
        weight = self.model.mask_decoder.iou_token.weight
        pixels = torch.stack([self.frame.pixels(image.to(weight.device)) for image in originals]).to(weight.dtype)
        maps = self.model.get_image_embeddings(pixels)
        levels = list(maps) if self.is_sam2 else [maps]
        return [[level[place] for level in levels] for place in range(len(originals))]

    def box_prompts(self, boxes_xyxy: Tensor) -> Tensor:
        """Prompt tokens (M, T, width) of boxes (M, 4) in pixels of the frame."""
        weight = self.model.mask_decoder.iou_token.weight
        tokens, _ = self.model.prompt_encoder(
            input_points=None,
            input_labels=None,
            input_boxes=boxes_xyxy.to(weight)[:, None],
            input_masks=None,
        )
        prompts: Tensor = tokens[:, 0]
        return prompts

    def masks(self, maps: Sequence[Sequence[Tensor]], prompts: Tensor) -> tuple[Tensor, Tensor]:
        """One mask per prompt.

        Args:
            maps: Of each prompt's image, as :meth:`embed` gives them.
            prompts: (M, T, width) prompt tokens.

        Returns:
            Logits (M, h, w) over the frame, and (M,) how much they will overlap with the truth, by the decoder.
        """
        levels = [torch.stack(list(level)) for level in zip(*maps, strict=True)]
        count = len(prompts)
        dense = self.model.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1).expand_as(levels[-1])
        extra: dict[str, Any] = {"high_resolution_features": levels[:-1]} if self.is_sam2 else {}
        output = self.model.mask_decoder(
            image_embeddings=levels[-1],
            image_positional_embeddings=self.model.get_image_wide_positional_embeddings().repeat(count, 1, 1, 1),
            sparse_prompt_embeddings=prompts[:, None],
            dense_prompt_embeddings=dense,
            multimask_output=False,
            **extra,
        )
        return output[0][:, 0, 0], output[1][:, 0, 0]
