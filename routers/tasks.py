"""The task table: one place that drives tokens, rendering, grammar, decoding, routing, loss weights and docs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from layers.head import LINKS, Link

AnchorState = Literal["at", "before"]
Payload = Literal["prompt", "regions", "time_spans", "nodes", "results"]
PromptTokens = Literal["none", "states", "embeddings"]
PROMPT_TOKENS: tuple[str, ...] = ("none", "states", "embeddings")
ANCHOR_STATES: tuple[str, ...] = ("at", "before")
PAYLOADS: tuple[str, ...] = ("prompt", "regions", "time_spans", "nodes", "results")
_NAME = re.compile(r"[a-z][a-z0-9_]*\Z")


@dataclass(frozen=True)
class TaskSpec:
    """One task that the language model can call.

    Args:
        name: Lower-case identifier; the call is written ``<name> ... </name>``.
        head: Name of the head that answers, a key of the Generalist's ``heads``.
        link: What crosses from the language model to the head: only ``text``; prompt and ``boxes``; the ``hidden``
            state at the anchor token; or the states of k learned ``queries``.
        needs: Media kinds that the conversation must hold, once per mention: ``("graph", "graph")`` needs two. What an
            earlier call of the reply made counts where the call refers to it.
        payload: What may stand between the tokens.
        num_queries: k, for the link ``queries``; must equal the head's.
        anchor_state: Which state the link ``hidden`` passes: the one ``at`` the anchor (as Sa2VA does), or the one
            ``before`` it, which predicts the anchor (as LISA does), so that both losses pull at one vector.
        prompt_tokens: What the head reads of the call's prompt, one vector per token, before the state of the anchor
            or those of the queries: ``none``, the tokens' ``states``, or their ``embeddings``, of unit mean square. A
            state mostly says what comes next, and after ``<anchor>`` nothing does: a young language model keeps little
            of the prompt in either, while the embeddings tell its words apart from the first step.
        loss_weight: Weight of the head's loss for this task's head.
        description: One sentence for the docs.
    """

    name: str
    head: str
    link: Link = "hidden"
    needs: tuple[str, ...] = ()
    payload: tuple[Payload, ...] = ("prompt",)
    num_queries: int = 0
    anchor_state: AnchorState = "at"
    prompt_tokens: PromptTokens = "none"
    loss_weight: float = 1.0
    description: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "needs", tuple(self.needs))
        object.__setattr__(self, "payload", tuple(self.payload))
        if not _NAME.match(self.name):
            raise ValueError(f"task name: expected {_NAME.pattern}, got {self.name!r}")
        if self.link not in LINKS:
            raise ValueError(f"task '{self.name}' link: expected one of {LINKS}, got {self.link!r}")
        unknown = set(self.payload) - set(PAYLOADS)
        if unknown:
            raise ValueError(f"task '{self.name}' payload: expected some of {PAYLOADS}, got {sorted(unknown)}")
        if (self.link == "queries") != (self.num_queries > 0):
            raise ValueError(f"task '{self.name}': link '{self.link}' does not go with num_queries={self.num_queries}")
        if self.anchor_state not in ANCHOR_STATES:
            raise ValueError(
                f"task '{self.name}' anchor_state: expected one of {ANCHOR_STATES}, got {self.anchor_state!r}"
            )
        if self.anchor_state == "before" and self.link != "hidden":
            raise ValueError(f"task '{self.name}': anchor_state 'before' needs the link 'hidden', got '{self.link}'")
        if self.prompt_tokens not in PROMPT_TOKENS:
            raise ValueError(
                f"task '{self.name}' prompt_tokens: expected one of {PROMPT_TOKENS}, got {self.prompt_tokens!r}"
            )
        if self.reads_prompt and not (self.has_anchor and "prompt" in self.payload):
            raise ValueError(f"task '{self.name}': prompt_tokens needs a prompt and a link that passes states")

    @property
    def reads_prompt(self) -> bool:
        """Whether the head reads the prompt's tokens."""
        return self.prompt_tokens != "none"

    @property
    def refers(self) -> bool:
        """Whether a call may refer to the results of earlier ones."""
        return "results" in self.payload

    def is_met(self, media_kinds: Sequence[str]) -> bool:
        """Whether these media (one entry per item) are what the task needs."""
        have = list(media_kinds)
        return all(have.count(kind) >= self.needs.count(kind) for kind in self.needs)

    @property
    def open_token(self) -> str:
        """The token that begins a call."""
        return f"<{self.name}>"

    @property
    def close_token(self) -> str:
        """The token that ends a call."""
        return f"</{self.name}>"

    @property
    def state_offset(self) -> int:
        """Where the state that the link ``hidden`` passes stands, from the anchor."""
        return -1 if self.anchor_state == "before" else 0

    @property
    def has_anchor(self) -> bool:
        """Whether the call carries a state-anchor token, which k query tokens follow for the link ``queries``."""
        return self.link in ("hidden", "queries")


@dataclass(frozen=True)
class TaskTable:
    """The tasks of a model, in order, with the grounding vocabulary they share.

    Args:
        tasks: The tasks.
        coordinates: Boxes as location-bin tokens (``bins``) or as ``decimals``.
        num_bins: Location bins per axis.
        num_time_bins: Time bins per clip.
        max_nodes: Node tokens.
        max_results: How many earlier results a call can refer to.
    """

    tasks: tuple[TaskSpec, ...] = field(default=())
    coordinates: Literal["bins", "decimals"] = "bins"
    num_bins: int = 1000
    num_time_bins: int = 100
    max_nodes: int = 128
    max_results: int = 4

    def __post_init__(self) -> None:
        object.__setattr__(self, "tasks", tuple(self.tasks))
        names = [task.name for task in self.tasks]
        if len(set(names)) != len(names):
            raise ValueError(f"task names must be unique, got {names}")

        for head in {task.head for task in self.tasks}:
            weights = {task.name: task.loss_weight for task in self.tasks if task.head == head}
            if len(set(weights.values())) > 1:
                raise ValueError(f"loss_weight: expected one for all tasks of head '{head}', got {weights}")

    def __iter__(self) -> Iterator[TaskSpec]:
        return iter(self.tasks)

    def __len__(self) -> int:
        return len(self.tasks)

    def __contains__(self, name: object) -> bool:
        return any(task.name == name for task in self.tasks)

    def __getitem__(self, name: str) -> TaskSpec:
        for task in self.tasks:
            if task.name == name:
                return task
        raise KeyError(f"unknown task '{name}': expected one of {[task.name for task in self.tasks]}")

    def uses(self, payload: Payload) -> bool:
        """Whether any task carries this payload."""
        return any(payload in task.payload for task in self.tasks)

    def available(self, media_kinds: Sequence[str], after_calls: bool = False) -> tuple[str, ...]:
        """Names of the tasks whose needs a conversation meets.

        Args:
            media_kinds: Its media, one entry per item.
            after_calls: Whether a call of the same reply stands before: what it made may be what a task needs that can
                refer to it.
        """
        later = {task.name for task in self.tasks if after_calls and task.refers}
        return tuple(task.name for task in self.tasks if task.name in later or task.is_met(media_kinds))

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and dictionaries, for ``tasks.yaml``."""
        value = asdict(self)
        value["tasks"] = [
            {**task, "needs": list(task["needs"]), "payload": list(task["payload"])} for task in value["tasks"]
        ]
        return value

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> TaskTable:
        """The inverse of :meth:`to_dict`."""
        return cls(**{**value, "tasks": tuple(TaskSpec(**task) for task in value["tasks"])})
