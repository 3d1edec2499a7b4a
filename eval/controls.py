"""Controls: the same evaluation with something taken away, named alike everywhere.

``blind`` removes the media, ``shuffled`` gives each sample another sample's media, ``zeroed`` zeroes encoded features
(for the language model and for the heads, with the inputs that heads read beside them), ``random_weights`` asks a
model of the same configuration that was never trained, and ``constant`` (no model at all, see
:meth:`eval.benchmarks.benchmark.Benchmark.constant`) gives one answer to everything, never chosen on those that are
scored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import nn

from data.records import MEDIA_TYPES, Message
from data.shards import Sample
from inference.conversation import Conversation
from layers.calls import MediaFeatures
from models.build import build_generalist
from models.checkpoint import CONFIG, TASKS, TOKENIZER, declared_bases
from models.generalist import Generalist
from models.media import EncodedMedia

PREDICTED_CONTROLS = ("blind", "shuffled", "zeroed", "random_weights")
CONTROLS = (*PREDICTED_CONTROLS, "constant")


def blind(conversation: Conversation) -> Conversation:
    """The conversation without its media: their parts are removed, the text stays."""
    messages = []
    for message in conversation.messages:
        kept = tuple(part for part in message.content if part.type not in MEDIA_TYPES)
        messages.append(Message(message.role, kept))
    return Conversation(tuple(messages), {})


def zeroed(encoded: dict[str, EncodedMedia]) -> dict[str, EncodedMedia]:
    """All encoded media as zeros: what the projector hands to the language model and what heads read."""
    return {
        kind: replace(item, features=torch.zeros_like(item.features), projected=torch.zeros_like(item.projected))
        for kind, item in encoded.items()
    }


@contextmanager
def encoders_zeroed(generalist: Generalist) -> Iterator[None]:
    """Within it a model's encoders and projectors give zeros: :func:`zeroed` where nothing takes a transform."""
    modules = [module for group in (generalist.encoders, generalist.projectors) for module in group.values()]
    handles = [module.register_forward_hook(_zeros) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _zeros(module: nn.Module, inputs: object, output: Any) -> Any:
    if isinstance(output, tuple):
        return torch.zeros_like(output[0]), *output[1:]
    return torch.zeros_like(output)


def zeroed_for_heads(media: MediaFeatures) -> MediaFeatures:
    """What heads see of a media item with its encoder inputs gone too: black pixels, no node texts, no edges.

    Features are zeros already, see :func:`zeroed`; some heads also read the encoder's inputs or the original.
    """
    inputs = {
        name: value[:, :0] if name == "edge_index" else torch.zeros_like(value) for name, value in media.inputs.items()
    }
    return replace(media, inputs=inputs, load_original=None)


def media_donors(samples: Sequence[Sample], seed: int = 0) -> list[int]:
    """For each sample, the index of another one whose media it is given instead of its own.

    Samples with the same kinds of media are put in a random cycle and each takes from the next; where two neighbours
    hold the same bytes the next but one is taken, and so on. Samples without media have nothing to exchange and keep
    their place.

    Args:
        samples: All samples of a benchmark, so that the assignment does not depend on what a run has left to do.
        seed: Of the cycle.

    Raises:
        ValueError: If a sample has no other to take from.
    """
    groups: dict[tuple[str, ...], list[int]] = {}
    for index, sample in enumerate(samples):
        groups.setdefault(_kinds(sample), []).append(index)
    donors = list(range(len(samples)))
    groups.pop((), None)
    for kinds, group in groups.items():
        order = np.random.default_rng(seed).permutation(group).tolist()
        contents = [_contents(samples[index]) for index in order]
        for place, index in enumerate(order):
            for step in range(1, len(order)):
                other = (place + step) % len(order)
                if contents[other] != contents[place]:
                    donors[index] = order[other]
                    break
            else:
                raise ValueError(
                    f"shuffled: expected another sample with media {list(kinds)} for '{samples[index].key}', got none"
                )
    return donors


def swap_media(sample: Sample, donor: Sample) -> Sample:
    """The sample with the donor's media under its own names, kind by kind in order."""
    media = dict(sample.record.media)
    taken: dict[str, tuple[Mapping[str, bytes], str]] = {}
    for kind in MEDIA_TYPES:
        mine = [name for name, item in sample.record.media.items() if item.type == kind]
        theirs = [item for item in donor.record.media.values() if item.type == kind]
        for name, item in zip(mine, theirs, strict=True):
            file = sample.record.media[name].file
            taken[file] = (donor.members, item.file)
            media[name] = replace(item, file=file)
    return Sample(sample.key, replace(sample.record, media=media), _Swapped(sample.members, taken))


class _Swapped(Mapping[str, bytes]):
    """Members some of which are another sample's; nothing is read before it is asked for."""

    def __init__(self, own: Mapping[str, bytes], taken: Mapping[str, tuple[Mapping[str, bytes], str]]) -> None:
        self._own, self._taken = own, taken

    def __getitem__(self, name: str) -> bytes:
        if name not in self._taken:
            return self._own[name]
        members, file = self._taken[name]
        return members[file]

    def __iter__(self) -> Iterator[str]:
        return iter(self._own)

    def __len__(self) -> int:
        return len(self._own)


def random_generalist(checkpoint: str | Path, seed: int = 0) -> Generalist:
    """A model of a checkpoint's configuration, tokenizer and tasks that has learned nothing.

    It is freshly initialised; of parts that a configuration starts from pretrained weights, every tensor keeps its own
    values in random order, so that their scale stays what it was.
    """
    directory = Path(checkpoint)
    config: dict[str, object] = yaml.safe_load((directory / CONFIG).read_text())
    config["tasks"] = yaml.safe_load((directory / TASKS).read_text())
    config["tokenizer"] = str(directory / TOKENIZER)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        generalist = build_generalist(config).eval()
    shuffle_weights(generalist, tuple(declared_bases(generalist)), seed)
    return generalist


@torch.no_grad()
def shuffle_weights(module: nn.Module, prefixes: tuple[str, ...], seed: int = 0) -> None:
    """Put the values within each parameter in random order, in place.

    Args:
        module: The model.
        prefixes: Of the names of the parameters that are shuffled.
        seed: Of the order.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        if name.startswith(prefixes):
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))


def _kinds(sample: Sample) -> tuple[str, ...]:
    return tuple(sorted(item.type for item in sample.record.media.values()))


def _contents(sample: Sample) -> list[str]:
    """What tells its media from others: their identity where that needs no reading, else a hash of the bytes."""
    identity = getattr(sample.members, "identity", None)
    files = [item.file for item in sample.record.media.values()]
    if identity is not None:
        return sorted(map(identity, files))
    return sorted(hashlib.sha256(sample.members[file]).hexdigest() for file in files)
