"""The arithmetic of a step, and what a machine can do at best: their ratio is MFU."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from layers.batch import PADDING, Batch

if TYPE_CHECKING:
    from models.generalist import Generalist


class Arithmetic:
    """Floating point operations that a pack's samples need, whatever the program spends on them.

    The language model's are counted as usual (https://arxiv.org/abs/2204.02311, appendix B): two per weight of a matrix
    and token in the forward pass, the output layer on every token; as many again for the gradients of what goes in, and
    of the weights where they are trained; attention over the sample's own tokens, causal. An encoder's and its
    projector's are counted by torch as they run on the first pack that needs them. Padding, recomputation and heads
    count for nothing.

    Args:
        generalist: The model, frozen as it is trained.
    """

    def __init__(self, generalist: Generalist) -> None:
        self.generalist = generalist
        model = generalist.language_model
        table = model.model.get_input_embeddings().weight
        tied = table is model.head_weight
        matrices = [p for p in model.parameters() if p.ndim >= 2 and (tied or p is not table)]
        weights, trained = (sum(p.numel() for p in some) for some in (matrices, _trained(matrices)))
        needed = any(p.requires_grad for p in generalist.parameters())
        config = model.config
        width = config.num_attention_heads * (getattr(config, "head_dim", None) or 0) or model.hidden_size
        self.per_token = 2.0 * weights * (2 if needed else 1) + 2.0 * trained
        self.per_pair = 4.0 * width * config.num_hidden_layers * (3 if needed else 1) / 2
        self.per_item: dict[str, float] = {}

    def of(self, pack: Batch) -> float:
        """Those of a pack."""
        keys = pack.keys or ["?"] * len(pack.segment_lengths)
        lengths = [length for length, key in zip(pack.segment_lengths, keys, strict=True) if key != PADDING]
        total = self.per_token * sum(lengths) + self.per_pair * sum(length**2 for length in lengths)
        for kind, media in pack.media.items():
            if kind not in self.per_item:
                self.per_item[kind] = self._measured(pack, kind)
            total += self.per_item[kind] * len(media.items)
        return total

    def _measured(self, pack: Batch, kind: str) -> float:
        """Operations per item of a modality, forward and backward."""
        media = {kind: pack.media[kind]}
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            self.generalist.encode_media(media)
        parts = (self.generalist.encoders[kind], self.generalist.projectors[kind])
        trained = any(p.requires_grad for part in parts for p in part.parameters())
        return counter.get_total_flops() / len(media[kind].items) * (3 if trained else 1)


def _trained(parameters: list[nn.Parameter]) -> list[nn.Parameter]:
    return [parameter for parameter in parameters if parameter.requires_grad]


def measure_peak(
    device: torch.device,
    dtype: torch.dtype,
    shape: tuple[int, int, int] | None = None,
    seconds: float = 0.3,
) -> float:
    """Operations per second of a matrix product, in the fastest of the runs, so that foreign load counts little.

    Args:
        device: Where.
        dtype: Of the operands.
        shape: Rows, inputs and outputs; large enough for the device to be at its best by default.
        seconds: How long it is measured.
    """
    rows, inputs, outputs = shape or ((8192, 8192, 8192) if device.type == "cuda" else (2048, 1024, 2048))
    generator = torch.Generator(device).manual_seed(0)
    left = torch.randn(rows, inputs, device=device, generator=generator).to(dtype)
    right = torch.randn(inputs, outputs, device=device, generator=generator).to(dtype)
    fastest, deadline = float("inf"), time.perf_counter() + seconds
    _product(left, right)  # kernels are chosen or compiled at the first
    while time.perf_counter() < deadline or fastest == float("inf"):
        start = time.perf_counter()
        _product(left, right)
        fastest = min(fastest, time.perf_counter() - start)
    return 2.0 * rows * inputs * outputs / fastest


def _product(left: Tensor, right: Tensor) -> None:
    left @ right
    if left.is_cuda:
        torch.cuda.synchronize(left.device)


def products_type(precision: str) -> torch.dtype:
    """The type in which a trainer's precision multiplies matrices."""
    kinds = {"bf16": torch.bfloat16, "16": torch.float16, "64": torch.float64}
    return kinds.get(precision.split("-")[0], torch.float32)
