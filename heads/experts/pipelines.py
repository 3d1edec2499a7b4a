"""Pipelines of diffusers as experts of a pool."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import nn

from heads.experts.files import (
    PipelineFiles,
    check_call,
    check_pipeline,
    local_directory,
    required_package,
    weight_bytes,
    weight_files,
)
from heads.experts.pool import Expert


class PipelineExpert(Expert):
    """A pipeline in a directory as diffusers saves it; checked before it is loaded.

    Args:
        name: The directory, or a repository of the Hugging Face hub.
        takes: Arguments that its call must have.
        without: Arguments that mark a pipeline of another kind.
        variant: Of the weights' files, such as ``fp16``.
        revision: Revision on the hub.
    """

    def __init__(
        self,
        name: str,
        takes: Collection[str] = ("prompt",),
        without: Collection[str] = (),
        variant: str | None = None,
        revision: str | None = None,
    ) -> None:
        self.name, self.takes, self.without = name, tuple(takes), tuple(without)
        self.variant, self.revision = variant, revision

    @property
    def key(self) -> Hashable:
        """The directory and its variant: heads of one pipeline share it."""
        return (self.name, self.variant, self.revision)

    @cached_property
    def files(self) -> PipelineFiles:
        """The directory, checked.

        Raises:
            heads.experts.files.ExpertError: If it is not such a pipeline.
        """
        required_package("diffusers", "diffusion")
        files = check_pipeline(local_directory(self.name, self.revision), self.variant)
        check_call(files, self.takes, self.without)
        return files

    def num_bytes(self, dtype: torch.dtype) -> int:
        """See :meth:`heads.experts.pool.Expert.num_bytes`."""
        directory = self.files.directory
        return sum(weight_bytes(weight_files(directory / name, self.variant), dtype) for name in self.files.models)

    def load(self, device: torch.device, dtype: torch.dtype, progress: bool) -> Any:
        """See :meth:`heads.experts.pool.Expert.load`."""
        with bars(progress):
            pipeline = self.files.pipeline.from_pretrained(  # type: ignore[attr-defined]
                self.files.directory,
                dtype=dtype,
                variant=self.variant,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
            ).to(device)
        for model in pipeline.components.values():
            if isinstance(model, nn.Module):
                model.eval().requires_grad_(False)
        pipeline.set_progress_bar_config(disable=not progress)
        return pipeline


@contextmanager
def bars(shown: bool) -> Iterator[None]:
    """Show or hide the bars of diffusers and transformers while something loads."""
    if shown:
        yield
        return
    from transformers.utils import logging as transformers_logging

    libraries: list[Any] = [transformers_logging]
    try:
        from diffusers.utils import logging as diffusers_logging

        libraries.append(diffusers_logging)
    except ModuleNotFoundError:  # speech needs transformers alone
        pass
    restore: list[Callable[[], None]] = []
    for library in libraries:
        if library.is_progress_bar_enabled():
            library.disable_progress_bar()
            restore.append(library.enable_progress_bar)
    try:
        yield
    finally:
        for enable in restore:
            enable()
