"""How much memory a step takes, before anything is allocated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from layers.batch import Batch
from models.generalist import Generalist

_BYTES = {"64": 8, "32": 4, "bf16": 2, "16": 2}


@dataclass(frozen=True)
class Memory:
    """Bytes on a device that holds the whole model.

    Args:
        parameters: Weights and buffers, as the precision keeps them.
        gradients: Of what is trained.
        optimizer: Its states.
        activations: What the forward of one pack keeps for its backward, casts of autocast included.
    """

    parameters: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.parameters + self.gradients + self.optimizer + self.activations


def estimate_memory(
    generalist: Generalist, groups: Sequence[Mapping[str, Any]], precision: str, pack: Batch, states: float = 2.0
) -> Memory:
    """Count what a step holds.

    The activations are not a formula: the forward runs on tensors without contents, and what autograd keeps is added
    up. So recomputed layers, frozen parts and adapters count as they are, and the token loss, which computes its
    gradient with it, holds that of the output layer. What heads keep is left out.

    Args:
        generalist: On the meta device, frozen as it will be; it is in training mode and without memory afterwards.
        groups: The optimizer's.
        precision: Of the trainer: "bf16-mixed", "32-true", ...
        pack: A pack of the size that is trained on.
        states: Tensors that the optimizer keeps per parameter; Muon's groups keep one.
    """
    size = _BYTES[precision.split("-")[0]] if not precision.endswith("mixed") else 4
    trained = sum(p.numel() for group in groups for p in group["params"])
    kept = sum(p.numel() * (1 if group.get("muon") else states) for group in groups for p in group["params"])
    return Memory(
        parameters=_stored(generalist, precision, size),
        gradients=trained * size,
        optimizer=int(kept * size),
        activations=_activations(generalist, precision, pack),
    )


def _stored(generalist: Generalist, precision: str, size: int) -> int:
    """Bytes of weights and buffers: in mixed precision what is frozen stays as it was stored, four bits included."""
    quantization, four_bits = generalist.language_model.quantization, set[int]()
    if quantization is not None:
        head = generalist.language_model.model.get_output_embeddings()
        layers = [m for m in generalist.language_model.model.modules() if isinstance(m, nn.Linear) and m is not head]
        four_bits = {id(layer.weight) for layer in layers if not layer.weight.requires_grad}
    total = 0.0
    for tensor in (*generalist.parameters(), *generalist.buffers()):
        if quantization is not None and id(tensor) in four_bits:
            total += tensor.numel() * quantization.bits / 8
        elif tensor.is_floating_point() and (tensor.requires_grad or not precision.endswith("mixed")):
            total += tensor.numel() * size
        else:
            total += tensor.numel() * tensor.element_size()
    return int(total)


def text_pack(num_tokens: int, segment: int = 512) -> Batch:
    """A pack of text alone, for a model whose data are not there: every token supervised, segments of one length."""
    segment = min(segment, num_tokens)
    lengths = [segment] * (num_tokens // segment)
    positions = torch.arange(segment).repeat(len(lengths))
    ids = torch.zeros(1, len(positions), dtype=torch.long)
    return Batch(ids, ids.clone(), positions[None], lengths, counts={"token": len(positions)})


class _Kept:
    """Adds up what autograd keeps, every storage once."""

    def __init__(self, known: Sequence[Tensor]) -> None:
        self._known = {tensor.untyped_storage()._cdata for tensor in known}
        self._storages: dict[int, torch.UntypedStorage] = {}

    def pack(self, tensor: Tensor) -> Tensor:
        """A hook for saved tensors."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self._known:
            self._storages[storage._cdata] = storage  # held, or its number might be given to another
        return tensor

    @property
    def total(self) -> int:
        return sum(storage.nbytes() for storage in self._storages.values())


def _activations(generalist: Generalist, precision: str, pack: Batch) -> int:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    half = torch.float16 if precision.startswith("16") else torch.bfloat16
    if not precision.endswith("mixed"):
        generalist = generalist.to({"64": torch.float64, "32": torch.float32}.get(precision.split("-")[0], half))
    with mode:
        model = generalist.to_empty(device="cpu")
    model.train()
    if model.language_model.situations is not None:  # which tokens are of which kind makes no difference here
        model.language_model.situations.use(torch.zeros_like(pack.input_ids))
    kept = _Kept([*model.parameters(), *model.buffers()])
    casts = torch.autocast("cpu", half) if precision.endswith("mixed") else nullcontext()
    with mode, torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda tensor: tensor), casts:
        encoded = model.encode_media(pack.media)
        embeds = model.embed(pack.input_ids[0])
        for kind, item in encoded.items():
            embeds = model.place(embeds, pack.media[kind].positions, item.projected)
        language = model.language_model
        states = language._packed(embeds[None], pack.position_ids, pack.segment_lengths)
        rows = states[: pack.counts.get("token", 0)]
        loss = language.cross_entropy(rows, pack.input_ids[0, : len(rows)])
    del loss
    gradient = language.head_weight.numel() * 4 if language.head_weight.requires_grad else 0
    return kept.total + rows.numel() * rows.element_size() + gradient


def device_memory() -> int:
    """Bytes of this machine's first GPU, or of its main memory."""
    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory)
    import psutil

    return int(psutil.virtual_memory().total)


def num_parameters(module: nn.Module, *, trained: bool = False) -> int:
    """Parameters of a module, or those that are trained."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trained)
