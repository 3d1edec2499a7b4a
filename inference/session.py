"""The session: prompts in, replies out. Rendering, encoding, decoding, routing and head calls in one place."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from os import PathLike

import torch
from torch import Tensor

from data.media import RawMedia, Video
from data.packing import pack
from data.render import Rendered, render_prompt
from inference.calling import PendingReply, answer_calls, to_original
from inference.conversation import Conversation, Reply
from inference.decoding import Decoded, DecodingOptions, Follower, Opened, decode
from layers.batch import MediaBatch
from layers.calls import MediaFeatures
from layers.head import Head
from models.conditions import Conditions
from models.generalist import Generalist
from models.media import EncodedMedia, seen_by_heads
from routers.constraint import CallConstraint, never_sampled_mask
from routers.parser import CallParser, Parsed

FeatureTransform = Callable[[dict[str, EncodedMedia]], dict[str, EncodedMedia]]
HeadMediaTransform = Callable[[MediaFeatures], MediaFeatures]
_BATCHES_PER_WINDOW = 16


class Session:
    """Asks a Generalist.

    Example:
        >>> session = Session.from_pretrained("runs/quickstart/checkpoint")
        >>> reply, = session.generate([Conversation.ask("where is the red 7?", images=[image])])
        >>> print(reply.text, reply.results)

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
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
        self.generalist = generalist
        self.plan = generalist.plan()
        self.constrained = constrained
        self.batch_size = batch_size
        self.options = DecodingOptions(max_new_tokens, temperature, top_p, seed)
        self.parameters = {"seed": float(seed), **(parameters or {})}

    @classmethod
    def from_pretrained(
        cls, directory: str | PathLike[str], device: torch.device | str | None = None, **options: object
    ) -> Session:
        """Load a checkpoint directory and open a session on it.

        Args:
            directory: As written by training.
            device: The GPU if there is one, else the CPU, by default.
            **options: The constructor's keyword arguments.
        """
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        return cls(Generalist.from_pretrained(str(directory), device), **options)  # type: ignore[arg-type]

    @torch.inference_mode()
    def generate(
        self,
        conversations: Sequence[Conversation],
        feature_transform: FeatureTransform | None = None,
        progress: Callable[[int], None] | None = None,
        head_media_transform: HeadMediaTransform | None = None,
        opening: str | None = None,
    ) -> list[Reply]:
        """Answer conversations, batched by length, in the order given.

        Args:
            conversations: Each ends with the turn to answer.
            feature_transform: Replaces the encoded media of every batch before they enter the language model and the
                heads; the zeroed control.
            progress: Called with the number of replies that a batch has added.
            head_media_transform: Replaces what heads see of each media item, encoder inputs included (some heads look
                at pixels or node texts); applied after ``feature_transform``.
            opening: Task whose call every reply is made to begin with; never to be used when routing is measured.

        Returns:
            One reply per conversation.

        Raises:
            ValueError: If a conversation cannot be rendered (a media kind the model does not take, a media that its
                processor refuses).
        """
        replies: dict[int, Reply] = {}
        window = _BATCHES_PER_WINDOW * self.batch_size
        with _evaluating(self.generalist):
            for start in range(0, len(conversations), window):
                clock = _Clock()
                rendered = [
                    (index, render_prompt(item.messages, item.media, self.plan))
                    for index, item in enumerate(conversations[start : start + window], start)
                ]
                seconds = clock.lap() / len(rendered)
                rendered.sort(key=lambda pair: (len(pair[1].input_ids), pair[0]))
                for first in range(0, len(rendered), self.batch_size):
                    batch = rendered[first : first + self.batch_size]
                    sources = [conversations[index] for index, _ in batch]
                    transforms = (feature_transform, head_media_transform)
                    answered = self._answer(batch, sources, transforms, opening, seconds)
                    replies.update(zip((index for index, _ in batch), answered, strict=True))
                    if progress is not None:
                        progress(len(batch))
        return [replies[index] for index in range(len(conversations))]

    def _answer(
        self,
        batch: Sequence[tuple[int, Rendered]],
        conversations: Sequence[Conversation],
        transforms: tuple[FeatureTransform | None, HeadMediaTransform | None],
        opening: str | None,
        render_seconds: float,
    ) -> list[Reply]:
        clock = _Clock()
        rendered = [item for _, item in batch]
        prompts, media = self._encode(rendered, conversations, transforms[0])
        if transforms[1] is not None:
            media = [[transforms[1](item) for item in items] for items in media]
        encode_seconds = clock.lap()
        available = [self.plan.tasks.available([item.kind for item in items]) for items in media]
        instructions = [torch.tensor(item.instruction, device=self.generalist.device) for item in rendered]
        rows = [torch.tensor(item.input_ids, device=self.generalist.device) for item in rendered]
        conditions = self.generalist.conditions(rows, instructions)
        decoded = self._decode(prompts, available, opening, [index for index, _ in batch], conditions)
        decode_seconds = clock.lap()
        parsed = [
            self.generalist.router.route(item.token_ids, item.hidden_states, names)
            for item, names in zip(decoded, available, strict=True)
        ]
        pending = [
            PendingReply(routed.calls, self._ids(item.token_ids), item.hidden_states, items)
            for routed, item, items in zip(parsed, decoded, media, strict=True)
        ]
        heads: Mapping[str, Head] = self.generalist.heads  # type: ignore[assignment]
        answer_calls(pending, heads, self.plan.tasks, self.parameters, self.generalist.head_states)
        shares = {"encode": encode_seconds, "decode": decode_seconds, "heads": clock.lap()}
        timings = {"render": render_seconds, **{name: value / len(batch) for name, value in shares.items()}}
        return [
            self._reply(routed, item, answered, timings)
            for routed, item, answered in zip(parsed, decoded, pending, strict=True)
        ]

    def _encode(
        self,
        rendered: Sequence[Rendered],
        conversations: Sequence[Conversation],
        feature_transform: FeatureTransform | None,
    ) -> tuple[list[Tensor], list[list[MediaFeatures]]]:
        generalist = self.generalist
        packed = pack(list(rendered), self.plan).to(generalist.device)
        encoded = generalist.encode_media(packed.media)
        if feature_transform is not None:
            encoded = feature_transform(encoded)
        embeds = generalist.embed(packed.input_ids[0])
        for kind, item in encoded.items():
            embeds = generalist.place(embeds, packed.media[kind].positions, item.projected)
        prompts = list(torch.split(embeds, packed.segment_lengths))[: len(rendered)]
        items = {kind: _features_of(kind, packed.media[kind], value) for kind, value in encoded.items()}
        following = {kind: iter(values) for kind, values in items.items()}
        media: list[list[MediaFeatures]] = []
        for prompt, conversation in zip(rendered, conversations, strict=True):
            own, originals = [], _Originals(conversation.media, self.plan.max_frames)
            for used in prompt.media:
                features = next(following[used.kind])
                features.load_original = partial(originals, used.name, used.frame)
                own.append(features)
            media.append(own)
        return prompts, media

    def _decode(
        self,
        prompts: Sequence[Tensor],
        available: Sequence[Sequence[str]],
        opening: str | None,
        streams: Sequence[int],
        conditions: Conditions,
    ) -> list[Decoded]:
        model, vocabulary, tokenizer = self.generalist, self.plan.vocabulary, self.plan.tokenizer
        return decode(
            model,
            prompts,
            self.options,
            stop_ids=[tokenizer.eos_token_id],
            never_sampled=never_sampled_mask(vocabulary, model.language_model.vocab_size, model.device),
            followers=self._followers(len(prompts), opening),
            constraint=CallConstraint(vocabulary, available) if self.constrained else None,
            streams=streams,
            conditions=conditions,
        )

    def _followers(self, count: int, opening: str | None) -> Sequence[Follower] | None:
        vocabulary = self.plan.vocabulary
        if opening is None:
            return [CallParser(vocabulary) for _ in range(count)] if any(vocabulary.query_ids.values()) else None
        if opening not in vocabulary.open_ids:
            raise ValueError(f"opening: expected one of {sorted(vocabulary.open_ids)}, got '{opening}'")
        return [Opened(vocabulary.open_ids[opening], CallParser(vocabulary)) for _ in range(count)]

    def _reply(self, routed: Parsed, decoded: Decoded, answered: PendingReply, timings: Mapping[str, float]) -> Reply:
        return Reply(
            text=self._text(routed.text_ids).strip(),
            calls=tuple(to_original(call, answered.media) for call in routed.calls),
            results=tuple(answered.results),
            errors=(*routed.errors, *answered.errors),
            token_ids=tuple(decoded.token_ids),
            raw_text=self._text(decoded.token_ids),
            finish_reason=decoded.finish_reason,
            timings=timings,
        )

    def _ids(self, token_ids: Sequence[int]) -> Tensor:
        return torch.tensor(token_ids, dtype=torch.int64, device=self.generalist.device)

    def _text(self, token_ids: list[int]) -> str:
        text = self.plan.tokenizer.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text


def _features_of(kind: str, batch: MediaBatch, encoded: EncodedMedia) -> Iterator[MediaFeatures]:
    features = encoded.layout.split(encoded.features)
    for index, (layout, own) in enumerate(zip(encoded.layout.items, features, strict=True)):
        yield seen_by_heads(kind, layout, batch.items[index], own)


class _Originals:
    """A conversation's media as they were before the processor; a video is decoded once for all its frames."""

    def __init__(self, media: Mapping[str, RawMedia], max_frames: int) -> None:
        self._media, self._max_frames = media, max_frames
        self._frames: dict[str, list[Tensor]] = {}

    def __call__(self, name: str, frame: int) -> RawMedia:
        raw = self._media[name]
        if not isinstance(raw, Video):
            return raw
        if name not in self._frames:
            self._frames[name] = raw.sample(self._max_frames)[0]
        return self._frames[name][frame]


@contextmanager
def _evaluating(generalist: Generalist) -> Iterator[None]:
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
