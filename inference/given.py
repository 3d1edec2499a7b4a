"""Calls that are given and not decided: the model reads them after the conversation, and their head answers.

Nothing is decoded. Conversations are read in packs, as in training, so that many of them, such as all the passages of
an index, cost one forward pass each and no more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch

from data.packing import pack
from data.render import Rendered, RenderedSampleCall, render_prompt
from heads.embedding import ExactIndex
from inference.calling import to_original
from inference.conversation import Conversation
from inference.session import Session, evaluating
from layers.calls import Call, EmbeddingResult, Result
from routers.rendering import render_call


@torch.inference_mode()
def answer_given(
    session: Session,
    conversations: Sequence[Conversation],
    call: Call,
    max_tokens: int = 4096,
    progress: Callable[[int], None] | None = None,
) -> list[Result]:
    """What the head of a task answers when the model is made to write a call after each conversation.

    Args:
        session: Whose model and parameters.
        conversations: Each ends with the turn that the call answers.
        call: The call: its task, prompt and groundings, regions as fractions of the model's input.
        max_tokens: Tokens that are read together; a longer conversation is read alone.
        progress: Called with the number of answers that a pack has added.

    Returns:
        One result per conversation, in order.

    Raises:
        ValueError: If there is no such task, a conversation lacks what the task needs or cannot be rendered, or the
            head refuses, naming the conversation's place.
    """
    session.head_of(call.task)
    results: dict[int, Result] = {}
    rendered = ((index, _with_call(session, index, item, call)) for index, item in enumerate(conversations))
    with evaluating(session.generalist):
        for part in _packed(rendered, max_tokens):
            found = _answer_pack(session, [item for _, item in part], [conversations[index] for index, _ in part])
            results.update(zip((index for index, _ in part), found, strict=True))
            if progress is not None:
                progress(len(part))
    return [results[index] for index in range(len(conversations))]


def build_index(
    session: Session,
    items: Mapping[str, Conversation],
    task: str,
    known: ExactIndex | None = None,
    progress: Callable[[int], None] | None = None,
) -> ExactIndex:
    """The vectors of items, by a task whose head gives vectors.

    Args:
        session: Whose model.
        items: Name -> the conversation that says what it is.
        task: The task.
        known: An index to go on from; items that it has are not read again.
        progress: Called with the number of items that a pack has added.

    Returns:
        The index, on the model's device: first what was known, then the new items in their order.

    Raises:
        ValueError: As :func:`answer_given`, or if the head gives something else than vectors.
    """
    new = {name: item for name, item in items.items() if known is None or name not in known}
    results = answer_given(session, list(new.values()), Call(task, ""), progress=progress)
    wrong = next((result for result in results if not isinstance(result, EmbeddingResult)), None)
    if wrong is not None:
        hint = "; reset the head, it has been primed" if session.head_of(task).memory else ""
        raise ValueError(f"task '{task}': expected embeddings, got a {type(wrong).__name__}{hint}")
    vectors = [result.vector for result in results if isinstance(result, EmbeddingResult)]
    if not vectors:
        return known if known is not None else ExactIndex(torch.zeros(0, 0), [])
    stacked = torch.stack(vectors).to(session.generalist.device)
    return ExactIndex(stacked, list(new)) if known is None else known.with_items(stacked, list(new))


def _with_call(session: Session, index: int, conversation: Conversation, call: Call) -> Rendered:
    plan = session.plan
    rendered = render_prompt(conversation.messages, conversation.media, plan)
    kinds = [item.kind for item in rendered.media]
    if call.task not in plan.tasks.available(kinds):
        needs = list(plan.tasks[call.task].needs)
        raise ValueError(f"conversation {index}, task '{call.task}': expected the media {needs}, got {kinds}")
    written, start = render_call(call, plan.vocabulary, plan.tokenizer), len(rendered.input_ids)
    rendered.input_ids += written.ids
    rendered.labels += [-100] * len(written.ids)
    places = tuple(start + position for position in written.state_positions)
    given = replace(call, token_span=(start, len(rendered.input_ids)), state_positions=places)
    media = list(range(len(rendered.media)))
    rendered.calls = [RenderedSampleCall(plan.tasks[call.task].head, given, media, {})]
    return rendered


def _packed(rendered: Iterator[tuple[int, Rendered]], max_tokens: int) -> Iterator[list[tuple[int, Rendered]]]:
    held: list[tuple[int, Rendered]] = []
    tokens = 0
    for index, item in rendered:
        if held and tokens + item.num_tokens > max_tokens:
            yield held
            held, tokens = [], 0
        held.append((index, item))
        tokens += item.num_tokens
    if held:
        yield held


def _answer_pack(session: Session, rendered: Sequence[Rendered], conversations: Sequence[Conversation]) -> list[Result]:
    model = session.generalist
    batch = pack(rendered, session.plan).to(model.device)
    states, encoded = model.read(batch)
    (calls,) = batch.calls.values()
    contexts = model.head_contexts(calls, batch.media, encoded)
    for context, conversation in zip(contexts, conversations, strict=True):
        context.parameters, context.episode = dict(session.parameters), conversation.episode
    head = session.head_of(calls[0].call.task)
    read = model.head_states([item.call for item in calls], states, batch.input_ids[0])
    results = head.decode(head(read, [len(item.call.state_positions) for item in calls], contexts), contexts)
    return [
        replace(result, call=to_original(item.call.shifted(-item.call.token_span[0]), context.media))
        for result, item, context in zip(results, calls, contexts, strict=True)
    ]
