"""Frozen weights in four bits beneath low-rank updates (QLoRA), by bitsandbytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch


@dataclass
class Quantization:
    """How the linear layers of a pretrained language model are stored (https://arxiv.org/abs/2305.14314).

    They cannot be trained, but what is beside them can: ``lora`` or ``lora_experts``. Embeddings, norms and the output
    layer keep their type. It needs the package bitsandbytes and a GPU.

    Args:
        kind: "nf4", the four-bit grid of a normal distribution, or "fp4".
        double: Quantise the scales of the blocks too: 4.13 bits a weight instead of 4.5.
        compute: Type of the products.
    """

    kind: Literal["nf4", "fp4"] = "nf4"
    double: bool = True
    compute: Literal["bfloat16", "float16", "float32"] = "bfloat16"

    @property
    def bits(self) -> float:
        """Bits that a weight takes: four, and its share of a scale per 64, of 32 bits or of 8 and 32 per 256."""
        return 4 + ((8 + 32 / 256) / 64 if self.double else 32 / 64)


def quantized(quantization: Quantization | None) -> dict[str, Any]:
    """Arguments of transformers' ``from_pretrained``; empty without.

    Raises:
        ValueError: If bitsandbytes or a GPU is missing where weights would be loaded.
    """
    if quantization is None:
        return {}
    if torch.empty(0).device.type == "meta":
        return {}
    if not torch.cuda.is_available():
        raise ValueError("language_model.quantization: expected a GPU, got a machine without one")
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        raise ValueError("language_model.quantization: expected the package bitsandbytes, got none") from None
    from transformers import BitsAndBytesConfig

    settings: Any = BitsAndBytesConfig
    return {
        "quantization_config": settings(
            load_in_4bit=True,
            bnb_4bit_quant_type=quantization.kind,
            bnb_4bit_use_double_quant=quantization.double,
            bnb_4bit_compute_dtype=getattr(torch, quantization.compute),
        )
    }
