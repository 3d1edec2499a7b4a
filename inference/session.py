"""The session: prompts in, replies out. Rendering, encoding, decoding, routing and head calls in one place."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from data.render import render_prompt
from inference.asked import Asked, neighbours
from inference.calling import HeadCaller, to_original
from inference.choosing import DecodingOptions
from inference.conversation import Conversation, Reply
from inference.decoding import Decoded, Start, Steer, decode
from inference.encoding import FeatureTransform, PromptReader, ReadPrompt, media_keys
from inference.events import Listener, ReplyEnded
from inference.past import Past, PastStore
from inference.reading.fused import choose_reader
from inference.reading.prefixes import read_prefixes
from inference.reading.reader import Loop, Reader
from inference.writing import BatchWriting, Writing, as_message
from layers.calls import MediaFeatures
from layers.head import Head
from models.conditions import Conditions
from models.generalist import Generalist
from routers.constraint import CallConstraint, never_sampled_mask
from routers.parser import Parsed

HeadMediaTransform = Callable[[MediaFeatures], MediaFeatures]
InputTransform = Callable[[str, dict[str, Tensor]], dict[str, Tensor]]
_BATCHES_PER_WINDOW = 16
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Job:
    """What one :meth:`Session.generate` asks of every batch."""

    reader: Reader
    feature_transform: FeatureTransform | None
    head_media_transform: HeadMediaTransform | None
    opening: int | None
    listener: Listener | None


class Session:
    """Asks a Generalist.

    Example:
        >>> session = Session.from_pretrained("runs/quickstart/checkpoint")
        >>> asked = Conversation.ask("where is the red 7?", images=[image])
        >>> reply, = session.generate([asked])
        >>> print(reply.text, reply.results)
        >>> reply, = session.generate([asked.then(reply, "and the blue 4?")])

    Args:
        generalist: The model; it answers on the device it is on.
        max_new_tokens: A reply that has not ended by then is cut.
        constrained: Permit only well-formed calls of tasks that the conversation's media allow. Never to be used when
            routing is measured.
        batch_size: Conversations decoded together.
        temperature: 0 is greedy.
        top_p: Nucleus of the sampling.
        seed: Of the sampling, and of heads that sample.
        parameters: Scalar conditions handed to the heads, such as a number of steps.
        eager_calls: Answer a call as soon as it closes. Otherwise all calls of a batch are answered when its replies
            are written, which is faster where nobody watches: heads see larger batches.
        shared_prefix: Conversations of a batch that begin alike for so many positions, such as several questions about
            one image, are read once up to where they differ; 0 reads each by itself.
        memory: Positions of answered conversations whose keys and values, and encoded media, are kept, so that a
            conversation goes on (:meth:`inference.conversation.Conversation.then`) without being read again.
        log_probabilities: Add up how likely the model found the tokens of each reply.
        fused: Decode with fused layers where the language model allows it (:mod:`models.fused`); where it does not, or
            while hooks watch its layers, the generic loop answers, and the log says why.
    """

    def __init__(
        self,
        generalist: Generalist,
        *,
        max_new_tokens: int = 96,
        constrained: bool = False,
        batch_size: int = 16,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        parameters: Mapping[str, float] | None = None,
        eager_calls: bool = True,
        shared_prefix: int = 32,
        memory: int = 0,
        log_probabilities: bool = False,
        fused: bool = True,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
        if min(shared_prefix, memory) < 0:
            raise ValueError(f"shared_prefix, memory: expected 0 or more positions, got {shared_prefix}, {memory}")
        self.generalist = generalist
        self.plan = generalist.plan()
        self.constrained = constrained
        self.batch_size = batch_size
        self.options = DecodingOptions(max_new_tokens, temperature, top_p, seed, log_probabilities)
        self.parameters = {"seed": float(seed), **(parameters or {})}
        self.eager_calls, self.fused = eager_calls, fused
        self._told: str | None = None
        reads_on = not generalist.language_model.has_windows  # a window's layers do not keep what lies before it
        self.shared_prefix = shared_prefix if reads_on else 0
        self._store = PastStore(memory) if memory and reads_on else None
        self._reader = PromptReader(generalist, self.plan.max_frames, memory)

    @classmethod
    def from_pretrained(
        cls,
        directory: str | PathLike[str],
        device: torch.device | str | None = None,
        extra_classes: Iterable[str] = (),
        **options: object,
    ) -> Session:
        """Load a checkpoint directory and open a session on it.

        Args:
            directory: As written by training.
            device: The GPU if there is one, else the CPU, by default.
            extra_classes: Class paths of parts of your own that the checkpoint may name.
            **options: The constructor's keyword arguments.
        """
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        generalist = Generalist.from_pretrained(str(directory), device, extra=extra_classes)
        return cls(generalist, **options)  # type: ignore[arg-type]

    @torch.inference_mode()
    def generate(
        self,
        conversations: Sequence[Conversation],
        feature_transform: FeatureTransform | None = None,
        progress: Callable[[int], None] | None = None,
        head_media_transform: HeadMediaTransform | None = None,
        opening: str | None = None,
        listener: Listener | None = None,
        input_transform: InputTransform | None = None,
    ) -> list[Reply]:
        """Answer conversations, batched by length, in the order given.

        Args:
            conversations: Each ends with the turn to answer.
            feature_transform: Replaces the encoded media of every batch before they enter the language model and the
                heads; the zeroed control. Nothing is shared or remembered then.
            progress: Called with the number of replies that a batch has added.
            head_media_transform: Replaces what heads see of each media item, encoder inputs included (some heads look
                at pixels or node texts); applied after ``feature_transform``.
            opening: Task whose call every reply is made to begin with; never to be used when routing is measured.
            listener: Told of text, calls and results as they come (:data:`inference.events.Event`).
            input_transform: Replaces what the processor made of each media item (pixels, spectra, node texts), before
                its encoder and the heads see it. For the language model's layers see :mod:`inference.hooks`.

        Returns:
            One reply per conversation.

        Raises:
            ValueError: If a conversation cannot be rendered (a media kind the model does not take, a media that its
                processor refuses), or is longer than the language model can read.
        """
        job = _Job(self._choose_reader(), feature_transform, head_media_transform, self._opening_id(opening), listener)
        replies: dict[int, Reply] = {}
        window = _BATCHES_PER_WINDOW * self.batch_size
        with evaluating(self.generalist):
            for start in range(0, len(conversations), window):
                clock = _Clock()
                asked = [
                    self._render(index, item, input_transform)
                    for index, item in enumerate(conversations[start : start + window], start)
                ]
                seconds = clock.lap() / len(asked)
                asked.sort(key=neighbours(asked))
                for first in range(0, len(asked), self.batch_size):
                    batch = asked[first : first + self.batch_size]
                    replies.update(zip((item.index for item in batch), self._answer(batch, job, seconds), strict=True))
                    if progress is not None:
                        progress(len(batch))
        return [replies[index] for index in range(len(conversations))]

    def prompt_text(self, reply: Reply) -> str:
        """What the model read before a reply, as text; a medium's placeholders are written once, with their number."""
        media = set(self.plan.vocabulary.media_ids.values())
        pieces = []
        for token_id, run in groupby(reply.prompt_ids, lambda token: token if token in media else None):
            ids = list(run)
            pieces.append(
                self._text(ids if token_id is None else ids[:1]) + (f"x{len(ids)}" if token_id in media else "")
            )
        return "".join(pieces)

    def prime(self, task: str, support: Any, episode: str = "") -> None:
        """Give the head of a task what it answers from, such as an index; see :meth:`layers.head.Head.prime`.

        Raises:
            ValueError: If there is no such task, or its head does not take this.
        """
        self.head_of(task).prime(support, episode)

    def reset(self, task: str, episode: str | None = None) -> None:
        """Have the head of a task forget an episode, or everything."""
        self.head_of(task).reset(episode)

    def head_of(self, task: str) -> Head:
        """The head that answers a task.

        Raises:
            ValueError: If there is no such task.
        """
        if task not in self.plan.tasks:
            raise ValueError(f"task: expected one of {[item.name for item in self.plan.tasks]}, got '{task}'")
        head = self.generalist.heads[self.plan.tasks[task].head]
        assert isinstance(head, Head)
        return head

    def _choose_reader(self) -> Reader:
        reader, reason = choose_reader(self.generalist, self.fused)
        if reason and reason != self._told:  # once per reason, not once per batch
            _LOG.log(logging.INFO if not self.fused else logging.WARNING, "generic decode loop: %s", reason)
        self._told = reason
        return reader

    def _render(self, index: int, conversation: Conversation, transform: InputTransform | None) -> Asked:
        rendered = render_prompt(conversation.messages, conversation.media, self.plan, conversation.written)
        if transform is not None:
            for item in rendered.media:
                item.inputs = transform(item.kind, item.inputs)
        most = self.generalist.language_model.max_positions
        if most is not None and len(rendered.input_ids) >= most:
            raise ValueError(
                f"conversation {index}: expected fewer than {most} tokens, which the language model can read, "
                f"got {len(rendered.input_ids)}"
            )
        return Asked(index, conversation, rendered, media_keys(rendered))

    def _answer(self, batch: Sequence[Asked], job: _Job, render_seconds: float) -> list[Reply]:
        clock = _Clock()
        originals = [item.conversation.media for item in batch]
        keys = [item.keys for item in batch]
        prompts = self._reader.read([item.rendered for item in batch], keys, originals, job.feature_transform)
        seconds = {"encode": clock.lap()}
        store = self._store if job.feature_transform is None else None
        replies = [self._writing(item, prompt, job) for item, prompt in zip(batch, prompts, strict=True)]
        rows = [torch.tensor(item.rendered.input_ids, device=self.generalist.device) for item in batch]
        instructions = [torch.tensor(item.rendered.instruction, device=self.generalist.device) for item in batch]
        conditions = self.generalist.conditions(rows, instructions)
        heads = self.generalist.heads
        caller = HeadCaller(heads, self.plan.tasks, self.parameters, self.generalist.head_states, self._reader.see)
        watch = BatchWriting(replies, caller, self._text, self.eager_calls, job.listener, store)
        shortest = 0 if job.feature_transform else self.shared_prefix
        pasts = read_prefixes(job.reader, prompts, conditions, store, shortest)
        decoded = self._decode(job.reader, prompts, pasts, conditions, replies, watch)
        parsed = watch.finish()
        seconds["prefill"] = watch.prefill_seconds
        seconds["decode"] = clock.lap() - watch.prefill_seconds - watch.head_seconds
        seconds["heads"] = watch.head_seconds
        timings = {"render": render_seconds, **{name: value / len(batch) for name, value in seconds.items()}}
        answered = [
            self._reply(*row, timings, job.reader.loop) for row in zip(batch, parsed, decoded, replies, strict=True)
        ]
        if job.listener is not None:
            for item, reply in zip(batch, answered, strict=True):
                job.listener(ReplyEnded(item.index, reply))
        return answered

    def _writing(self, asked: Asked, prompt: ReadPrompt, job: _Job) -> Writing:
        change = job.head_media_transform
        media = prompt.media if change is None else [change(item) for item in prompt.media]
        kinds = [item.kind for item in media]
        available, later = (self.plan.tasks.available(kinds, after_calls) for after_calls in (False, True))
        parser = self.generalist.router.parser(available)
        episode = asked.conversation.episode
        return Writing(asked.index, parser, media, available, later, job.opening, prompt.symbols, episode)

    def _decode(
        self,
        reader: Reader,
        prompts: Sequence[ReadPrompt],
        pasts: Sequence[Past | None],
        conditions: Conditions,
        replies: Sequence[Writing],
        watch: BatchWriting,
    ) -> list[Decoded]:
        model, vocabulary = self.generalist, self.plan.vocabulary
        lengths = [0 if past is None else past.length for past in pasts]
        most = model.language_model.max_positions
        starts = [
            Start(
                prompt.embeds[length:],
                past,
                writing,
                writing.index,
                None if most is None else most - len(prompt.symbols),
            )
            for prompt, past, length, writing in zip(prompts, pasts, lengths, replies, strict=True)
        ]
        available = [writing.available for writing in replies]
        return decode(
            reader,
            starts,
            self.options,
            stop_ids=[vocabulary.eos_id],
            never_sampled=never_sampled_mask(vocabulary, model.language_model.vocab_size, model.device),
            constraint=CallConstraint(vocabulary, available) if self.constrained else None,
            steer=self._steer(replies),
            conditions=conditions.within([slice(length, None) for length in lengths]),
            watcher=watch,
        )

    def _steer(self, replies: Sequence[Writing]) -> Steer | None:
        router = self.generalist.router
        if not router.steers:
            return None
        return lambda logits, states, rows: router.steer(logits, states, [replies[row].standing for row in rows])

    def _opening_id(self, opening: str | None) -> int | None:
        opens = self.plan.vocabulary.open_ids
        if opening is not None and opening not in opens:
            raise ValueError(f"opening: expected one of {sorted(opens)}, got '{opening}'")
        return None if opening is None else opens[opening]

    def _reply(
        self,
        asked: Asked,
        routed: Parsed,
        decoded: Decoded,
        writing: Writing,
        timings: Mapping[str, float],
        loop: Loop,
    ) -> Reply:
        calls = tuple(to_original(call, writing.pending.media) for call in routed.calls)
        return Reply(
            text=self._text(routed.text_ids).strip(),
            calls=calls,
            results=tuple(writing.pending.results),
            errors=(*routed.errors, *writing.pending.errors),
            token_ids=tuple(decoded.token_ids),
            raw_text=self._text(decoded.token_ids),
            finish_reason=decoded.finish_reason,
            timings=timings,
            message=as_message(routed, calls, decoded.token_ids, self._text),
            prompt_ids=tuple(asked.rendered.input_ids),
            log_probability=decoded.log_probability,
            loop=loop,
        )

    def _text(self, token_ids: list[int]) -> str:
        text = self.plan.tokenizer.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text


@contextmanager
def evaluating(generalist: Generalist) -> Iterator[None]:
    """Switch to evaluation, and back."""
    was_training = generalist.training
    generalist.eval()
    try:
        yield
    finally:
        generalist.train(was_training)


class _Clock:
    """Seconds since the last lap."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        return seconds
