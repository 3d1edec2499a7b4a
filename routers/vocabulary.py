"""The control tokens that a task table adds to a tokenizer, and their ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from transformers import AddedToken, PreTrainedTokenizerBase

from routers.plain_text import plain_ids
from routers.tasks import TaskTable

MEDIA_KINDS: tuple[str, ...] = ("image", "audio", "graph")


class Vocabulary:
    """Ids of every control token of a task table; picklable together with its tokenizer.

    A kind of token that no task uses is not part of the vocabulary: its id is None, its list is empty.

    Args:
        tokenizer: A tokenizer that holds the tokens already, see :func:`add_task_tokens`.
        table: The task table.

    Attributes:
        open_ids: Task -> id of its opening token.
        close_ids: Task -> id of its closing token.
        query_ids: Task -> ids of its k query tokens; only tasks of link ``queries``.
        media_ids: Media kind -> id of its placeholder.
        anchor_id: The state anchor.
        region_id: Begins a box.
        end_region_id: Ends a box that is written in decimals.
        loc_ids: Location bins, shared by both axes.
        span_id: Begins a time span.
        time_ids: Time bins.
        node_marker_id: Begins a node reference.
        node_ids: Nodes by index.
        result_id: Begins a reference to an earlier result.
        ref_ids: Earlier calls by index.
        eos_id: Ends a turn.
        control_ids: All of the above but ``eos_id``.
        never_sampled_ids: Placeholders and query tokens: they only stand for embeddings that something else owns.

    Raises:
        ValueError: Naming the token that is missing, is ambiguous or does not encode to exactly one id.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, table: TaskTable) -> None:
        self.tokenizer = tokenizer
        self.table = table
        ids = _checked_ids(tokenizer, task_tokens(table))
        self.open_ids: dict[str, int] = {task.name: ids[task.open_token] for task in table}
        self.close_ids: dict[str, int] = {task.name: ids[task.close_token] for task in table}
        self.query_ids: dict[str, list[int]] = {
            task.name: [ids[token] for token in query_tokens(task.name, task.num_queries)]
            for task in table
            if task.link == "queries"
        }
        self.media_ids: dict[str, int] = {kind: ids[f"<{kind}>"] for kind in MEDIA_KINDS}
        self.anchor_id: int | None = ids.get("<anchor>")
        self.region_id: int | None = ids.get("<region>")
        self.end_region_id: int | None = ids.get("</region>")
        self.span_id: int | None = ids.get("<span>")
        self.node_marker_id: int | None = ids.get("<node>")
        self.result_id: int | None = ids.get("<result>")
        self.loc_ids: list[int] = [ids[token] for token in _numbered("loc", table.num_bins) if token in ids]
        self.time_ids: list[int] = [ids[token] for token in _numbered("time", table.num_time_bins) if token in ids]
        self.node_ids: list[int] = [ids[token] for token in _numbered("node", table.max_nodes) if token in ids]
        self.ref_ids: list[int] = [ids[token] for token in _numbered("ref", table.max_results) if token in ids]
        self.eos_id: int = cast(int, tokenizer.eos_token_id)
        self.control_ids: frozenset[int] = frozenset(ids.values())
        self.never_sampled_ids: frozenset[int] = frozenset(self.media_ids.values()).union(*self.query_ids.values())

    def encode_text(self, text: str) -> list[int]:
        """Ids of plain text; text that looks like a control token stays ordinary text."""
        return plain_ids(self.tokenizer, text)

    def decode_text(self, token_ids: Sequence[int]) -> str:
        """The text of token ids as it stands; the inverse of :meth:`encode_text` for tokenizers that lose nothing."""
        return cast(str, self.tokenizer.decode(list(token_ids), clean_up_tokenization_spaces=False))


def task_tokens(table: TaskTable) -> list[str]:
    """Every control token of a table, in the order in which they are added.

    Raises:
        ValueError: If two of them are spelt alike, or a payload that a task uses has no tokens.
    """
    tokens = [f"<{kind}>" for kind in MEDIA_KINDS]
    for task in table:
        tokens += [task.open_token, task.close_token, *query_tokens(task.name, task.num_queries)]
    if any(task.has_anchor for task in table):
        tokens.append("<anchor>")
    if table.uses("regions"):
        bins = table.coordinates == "bins"
        tokens += ["<region>", *(_used("loc", "num_bins", table.num_bins) if bins else ["</region>"])]
    if table.uses("time_spans"):
        tokens += ["<span>", *_used("time", "num_time_bins", table.num_time_bins)]
    if table.uses("nodes"):
        tokens += ["<node>", *_used("node", "max_nodes", table.max_nodes)]
    if table.uses("results"):
        tokens += ["<result>", *_used("ref", "max_results", table.max_results)]
    doubled = sorted({token for token in tokens if tokens.count(token) > 1}) if len(set(tokens)) < len(tokens) else []
    if doubled:
        raise ValueError(f"task names: expected control tokens that differ, got {doubled} twice; rename the task")
    return tokens


def query_tokens(task: str, num_queries: int) -> list[str]:
    """The query tokens of a task; their embeddings belong to the task's head."""
    return [f"<query_{task}_{index}>" for index in range(num_queries)]


def add_task_tokens(tokenizer: PreTrainedTokenizerBase, table: TaskTable) -> int:
    """Add every control token of a table to a tokenizer, as special tokens.

    Returns:
        How many were new; the language model's embedding must grow by as many rows.

    Raises:
        ValueError: If a token is one of the tokenizer's own special tokens.
    """
    tokens = task_tokens(table)
    _refuse_own_tokens(tokenizer, tokens)
    added = [AddedToken(token, special=True, normalized=False) for token in tokens]
    return int(tokenizer.add_tokens(added, special_tokens=True))


def _numbered(name: str, count: int) -> list[str]:
    return [f"<{name}_{index}>" for index in range(count)]


def _used(name: str, argument: str, count: int) -> list[str]:
    if count < 1:
        raise ValueError(f"{argument}: expected at least 1 because a task uses it, got {count}")
    return _numbered(name, count)


def _refuse_own_tokens(tokenizer: PreTrainedTokenizerBase, tokens: list[str]) -> None:
    own = [tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token]
    clash = sorted(set(tokens) & {token for token in own if token is not None})
    if clash:
        raise ValueError(f"task names: expected tokens apart from the tokenizer's own, got {clash}; rename the task")


def _checked_ids(tokenizer: PreTrainedTokenizerBase, tokens: list[str]) -> dict[str, int]:
    if tokenizer.eos_token_id is None:
        raise ValueError("tokenizer: expected an eos_token, which ends a turn, got none")
    _refuse_own_tokens(tokenizer, tokens)
    encoded = tokenizer(tokens, add_special_tokens=False, split_special_tokens=False)["input_ids"]
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    ids: dict[str, int] = {}
    for token, pieces in zip(tokens, cast(list[list[int]], encoded), strict=True):
        if len(pieces) != 1 or tokenizer.convert_ids_to_tokens(pieces[0]) != token:
            raise ValueError(f"token '{token}': expected exactly one id, got {pieces}; call add_task_tokens first")
        if pieces[0] not in special:
            raise ValueError(f"token '{token}': expected a special token, got an ordinary one that text can produce")
        ids[token] = pieces[0]
    return ids
