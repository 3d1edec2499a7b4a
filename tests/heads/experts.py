"""Configurations of experts of transformers that take no time, and contexts whose image is at hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from layers.calls import Call, HeadContext, MediaFeatures, Region
from layers.geometry import Box, GeometricTransform
from layers.layout import ItemLayout

_BACKBONE: dict[str, Any] = {"model_type": "swin", "image_size": 64, "embed_dim": 8, "depths": [1, 1, 1, 1]}
_BACKBONE |= {"num_heads": [1, 2, 4, 8], "window_size": 2, "out_features": ["stage1", "stage2", "stage3", "stage4"]}
MASK2FORMER: dict[str, Any] = {
    "backbone_config": _BACKBONE,
    "feature_size": 32,
    "mask_feature_size": 32,
    "hidden_dim": 32,
    "encoder_feedforward_dim": 32,
    "dim_feedforward": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "num_attention_heads": 2,
    "num_queries": 5,
}
SAM: dict[str, Any] = {
    "vision_config": {
        "hidden_size": 16,
        "output_channels": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 64,
        "patch_size": 8,
        "window_size": 2,
        "global_attn_indexes": [1],
        "num_pos_feats": 8,
        "mlp_dim": 24,
    },
    "prompt_encoder_config": {"hidden_size": 16, "image_size": 64, "patch_size": 8, "mask_input_channels": 4},
    "mask_decoder_config": {
        "hidden_size": 16,
        "num_attention_heads": 2,
        "mlp_dim": 24,
        "num_hidden_layers": 2,
        "iou_head_hidden_dim": 16,
        "attention_downsample_rate": 2,
    },
}
SAM2: dict[str, Any] = {
    "vision_config": {
        "backbone_config": {
            "model_type": "sam2_hiera_det_model",
            "hidden_size": 8,
            "image_size": [64, 64],
            "blocks_per_stage": [1, 1, 2, 1],
            "embed_dim_per_stage": [8, 16, 32, 64],
            "num_attention_heads_per_stage": [1, 1, 2, 2],
            "window_size_per_stage": [4, 4, 4, 4],
            "global_attention_blocks": [3],
            "window_positional_embedding_background_size": [2, 2],
        },
        "backbone_channel_list": [64, 32, 16, 8],
        "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
        "fpn_hidden_size": 32,
    },
    "prompt_encoder_config": {"hidden_size": 32, "image_size": 64, "patch_size": 16, "mask_input_channels": 4},
    "mask_decoder_config": {
        "hidden_size": 32,
        "num_attention_heads": 2,
        "mlp_dim": 24,
        "num_hidden_layers": 2,
        "iou_head_hidden_dim": 16,
        "attention_downsample_rate": 2,
    },
}


def awake(head: torch.nn.Module, noise: float = 0.2) -> Any:
    """Move every parameter: models begin so near zero that what they answer hardly depends on what they are asked."""
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(noise * torch.randn_like(parameter))
    return head


def seen(
    size: tuple[int, int],
    prompt: str = "red 7",
    regions: Sequence[Box] = (),
    seed: int = 0,
    input_size: tuple[int, int] = (32, 32),
    task: str = "seg",
) -> HeadContext:
    """A call on an image of ``size`` (width, height) that the encoder saw letterboxed.

    Args:
        size: Of the original.
        prompt: Of the call.
        regions: In original pixels.
        seed: Of the picture.
        input_size: The encoder's.
        task: The call's.
    """
    generator = torch.Generator().manual_seed(seed)
    picture = torch.randint(0, 256, (3, size[1], size[0]), dtype=torch.uint8, generator=generator)
    transform = GeometricTransform.letterbox(size, input_size)
    media = MediaFeatures("image", torch.randn(16, 8), ItemLayout((4, 4), size, transform), {}, lambda: picture)
    return HeadContext(Call(task, prompt, tuple(Region(transform.normalise_box(box)) for box in regions)), [media])
