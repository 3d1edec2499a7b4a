"""The batch plan: everything a data worker needs to know about a model, without its weights."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field

from torch import nn
from transformers import PreTrainedTokenizerBase

from layers.encoder import Processor
from layers.head import TargetProcessor
from models.projectors import TokenRule
from routers.tasks import TaskTable
from routers.vocabulary import Vocabulary


@dataclass(frozen=True)
class BatchPlan:
    """Picklable, weightless, identified by its hash.

    Args:
        tokenizer: With the task and grounding tokens added.
        vocabulary: Their ids.
        tasks: The task table.
        processors: Modality -> processor.
        token_rules: Modality -> the projector's token rule.
        target_processors: Head -> target processor.
        feature_costs: Modality -> what a feature of its encoder costs, in positions of the language model: the ratio
            of their parameters, since both do about two operations per parameter and position.
        max_frames: Frames that stand for a video.
        media_marks: Modality -> texts before and after its items in a prompt, no part of what the user says.
        with_instructions: Whether the model also reads every sample's instruction by itself.
        with_routing: Whether its router learns where calls begin.
        with_originals: Whether a head looks at images as they were before the encoder's processor.
    """

    tokenizer: PreTrainedTokenizerBase
    vocabulary: Vocabulary
    tasks: TaskTable
    processors: dict[str, Processor]
    token_rules: dict[str, TokenRule]
    target_processors: dict[str, TargetProcessor]
    feature_costs: dict[str, float] = field(default_factory=dict)
    max_frames: int = 8
    media_marks: dict[str, tuple[str, str]] = field(default_factory=dict)
    with_instructions: bool = False
    with_routing: bool = False
    with_originals: bool = False
    hash: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "hash", self._fingerprint())

    def _fingerprint(self) -> str:
        """A hash of whatever changes the length, the cost or the content of a rendered sample."""
        facts = {
            "tokenizer": sorted(self.tokenizer.get_vocab().items()),
            "chat_template": self.tokenizer.chat_template,
            "tasks": self.tasks.to_dict(),
            "processors": {kind: dict(item.fingerprint()) for kind, item in self.processors.items()},
            "token_rules": {kind: [type(rule).__name__, asdict(rule)] for kind, rule in self.token_rules.items()},
            "feature_costs": self.feature_costs,
            "max_frames": self.max_frames,
            "media_marks": self.media_marks,
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def feature_costs(encoders: nn.ModuleDict, language_model: nn.Module) -> dict[str, float]:
    """What a feature of each encoder costs, in positions of the language model: the ratio of their parameters."""
    own = _num_parameters(language_model)
    return {kind: round(_num_parameters(encoder) / own, 4) for kind, encoder in encoders.items()}


def _num_parameters(part: nn.Module) -> int:
    return sum(parameter.numel() for parameter in part.parameters())
