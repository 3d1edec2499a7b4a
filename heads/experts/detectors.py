"""Detectors of transformers as experts of a pool."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from heads.experts.files import ExpertError, local_directory, model_type, weight_bytes, weight_files
from heads.experts.pipelines import bars
from heads.experts.pool import Expert
from layers.pretrained import load_pretrained


@dataclass
class Detector:
    """A loaded detector.

    Args:
        model: Of ``AutoModelForZeroShotObjectDetection`` or ``AutoModelForObjectDetection``.
        processor: Of its inputs and outputs.
        is_open: Whether it finds any words, or classes of its own.
    """

    model: Any
    processor: Any
    is_open: bool


class DetectorExpert(Expert):
    """A directory of a detector and its processor; always in float32, in which the library's answers are known.

    Args:
        name: The directory, or a repository of the Hugging Face hub.
        revision: Revision on the hub.
    """

    def __init__(self, name: str, revision: str | None = None) -> None:
        self.name, self.revision = name, revision

    @property
    def key(self) -> Hashable:
        """The directory: heads that ask one detector share it."""
        return (self.name, self.revision)

    @cached_property
    def directory(self) -> tuple[Path, bool]:
        """The directory, checked, and whether the detector finds any words.

        Raises:
            heads.experts.files.ExpertError: If there is no such directory, or it holds another kind of model.
        """
        from transformers.models.auto import modeling_auto

        directory = local_directory(self.name, self.revision)
        kind = str(model_type(directory))
        is_open = kind in modeling_auto.MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING_NAMES
        if not is_open and kind not in modeling_auto.MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES:
            raise ExpertError(f"{directory}: expected a detector of transformers, got a model of type '{kind}'")
        return directory, is_open

    def num_bytes(self, dtype: torch.dtype) -> int:
        """See :meth:`heads.experts.pool.Expert.num_bytes`."""
        return weight_bytes(weight_files(self.directory[0]), torch.float32)

    def load(self, device: torch.device, dtype: torch.dtype, progress: bool) -> Detector:
        """See :meth:`heads.experts.pool.Expert.load`."""
        import transformers

        directory, is_open = self.directory
        model_class: Any = (
            transformers.AutoModelForZeroShotObjectDetection if is_open else transformers.AutoModelForObjectDetection
        )
        processor_class: Any = transformers.AutoProcessor if is_open else transformers.AutoImageProcessor
        try:
            with bars(progress):
                model = load_pretrained(model_class, str(directory), dtype=torch.float32, local_files_only=True)
                processor = processor_class.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ExpertError(f"{directory}: expected a detector and its processor, got none: {reason}") from error
        return Detector(model.to(device).eval().requires_grad_(False), processor, is_open)
