"""The contracts of an encoder and of its processor."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from layers.layout import ItemLayout, Layout


class Processor(Protocol):
    """Turns raw media into encoder inputs in a data worker: picklable, without weights.

    One that treats an item differently when others of its kind stand in the same conversation has, besides, a method
    ``among(count) -> Processor``. One that treats the same item differently from time to time, for augmentation, says
    so with ``random = True``.
    """

    kind: str

    def layout(self, size: Sequence[int]) -> ItemLayout:
        """Predict the encoder's output for an item of ``size`` without decoding it.

        Args:
            size: (width, height) in pixels, (samples,) at the processor's sample rate, or (nodes,).
        """

    def __call__(self, raw: Any) -> tuple[dict[str, Tensor], ItemLayout]:
        """Process one item.

        Args:
            raw: An image (3, H, W) uint8 tensor, audio as :class:`layers.media.Audio`, or
                :class:`layers.media.Graph`.

        Returns:
            This item's inputs and its layout, equal to ``layout(size)`` of the decoded item.

        Raises:
            ValueError: For media it cannot take (empty, not finite, an edge to a missing node), saying why.
        """

    def fingerprint(self) -> Mapping[str, Any]:
        """Every setting that changes the number or the meaning of the features, JSON-serialisable."""


class Encoder(nn.Module, ABC):
    """One modality in, a ragged sequence of features out; never padded outside itself.

    Attributes:
        kind: "image", "audio" or "graph".
        hidden_size: Width d of the features.
        processor: Prepares its inputs in data workers.
        bases: Prefix of parameters -> the directory or file that they were loaded from; a checkpoint names it instead
            of storing what is still equal to it.
    """

    kind: ClassVar[str]
    hidden_size: int
    processor: Processor
    bases: Mapping[str, str] = MappingProxyType({})

    @abstractmethod
    def collate(self, items: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Batch processed items; static so far as weights go, cheap, called on the host."""

    @abstractmethod
    def forward(self, inputs: Mapping[str, Tensor], layout: Layout) -> Tensor:
        """Encode a batch.

        Args:
            inputs: What :meth:`collate` returned, on the encoder's device.
            layout: The items' layouts, in order.

        Returns:
            (ΣN, d) features in the order of ``layout``.
        """
