"""Chat markup and plain text as token ids: text can never become a control token, markup can never come from text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from weakref import WeakKeyDictionary

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from routers.plain_text import plain_ids

_OPEN, _CLOSE = "\ue000", "\ue001"  # private use: they stand for a message's content while the template runs
_MAX_CACHED = 50_000


@dataclass(frozen=True)
class Markup:
    """The template's own tokens around the contents of n messages.

    Args:
        pieces: n + 1 lists of ids; ``pieces[i]`` stands before the content of message i.
        learned: How many ids of each piece close an assistant turn and are learned; 0 elsewhere.
    """

    pieces: tuple[tuple[int, ...], ...]
    learned: tuple[int, ...]


class ChatText:
    """Tokenises conversations with one tokenizer, remembering markup and recent texts.

    Args:
        tokenizer: Needs a chat template and an end-of-turn token (``eos_token``).

    Raises:
        ValueError: If it has none.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if tokenizer.chat_template is None or tokenizer.eos_token_id is None:
            raise ValueError("tokenizer: expected a chat template and an end-of-turn (eos) token, got none")
        self.tokenizer = tokenizer
        self.template = tokenizer.chat_template
        self._texts: dict[str, tuple[int, ...]] = {}
        self._markup: dict[tuple[tuple[str, ...], bool], Markup] = {}
        self._marks: dict[str, tuple[int, ...]] = {}
        self._special = frozenset(
            index for index, token in tokenizer.added_tokens_decoder.items() if token.special
        )  # the ids that text must not reach

    def encode(self, text: str) -> tuple[int, ...]:
        """Ids of plain text; what looks like a control token stays ordinary text.

        Raises:
            ValueError: If the tokenizer makes a control token of it nevertheless.
        """
        ids = self._texts.get(text)
        if ids is None:
            ids = tuple(plain_ids(self.tokenizer, text))
            unknown = {self.tokenizer.unk_token_id} if self.tokenizer.unk_token_id is not None else set()
            forged = (self._special & set(ids)) - unknown
            if forged:
                tokens = self.tokenizer.convert_ids_to_tokens(sorted(forged))
                raise ValueError(f"text {text!r:.80}: expected ordinary tokens only, the tokenizer made {tokens}")
            if len(self._texts) >= _MAX_CACHED:
                self._texts.clear()
            self._texts[text] = ids
        return ids

    def mark(self, text: str) -> tuple[int, ...]:
        """Ids of a mark around media, which comes from a model's configuration: it may be one control token."""
        ids = self._marks.get(text)
        if ids is None:
            special = self.tokenizer.get_added_vocab().get(text)  # takes milliseconds with a thousand location bins
            ids = self._marks[text] = self.encode(text) if special is None else (special,)
        return ids

    def markup(self, roles: Sequence[str], generation_prompt: bool = False) -> Markup:
        """The template's tokens around the messages of these roles.

        Args:
            roles: Role of each message.
            generation_prompt: Whether the markup ends with the opening of an assistant turn.

        Raises:
            ValueError: If the template refuses these roles, drops, repeats or moves a content, closes an assistant
                turn without the end-of-turn token, or writes a conversation so that its beginning changes with
                what follows.
        """
        key = (tuple(roles), generation_prompt)
        if key not in self._markup:
            self._markup[key] = self._tokenize_markup(*key)
        return self._markup[key]

    def _tokenize_markup(self, roles: tuple[str, ...], generation_prompt: bool) -> Markup:
        texts = self._template_texts(roles, generation_prompt)
        for index, role in enumerate(roles):
            if role == "assistant" and index > 0:
                prefix = self._template_texts(roles[:index], True)
                if prefix != texts[: index + 1]:
                    raise ValueError(
                        f"chat template: expected the prompt before turn {index} of {list(roles)} to begin the whole "
                        f"conversation, got {prefix} against {texts[: index + 1]}"
                    )
        pieces = [tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else () for text in texts]
        learned = [0] * len(pieces)
        for index, role in enumerate(roles):
            if role == "assistant":
                if self.tokenizer.eos_token_id not in pieces[index + 1]:
                    raise ValueError(
                        f"chat template: expected an assistant turn to be closed by the end-of-turn token "
                        f"{self.tokenizer.eos_token!r}, got {texts[index + 1]!r}"
                    )
                learned[index + 1] = pieces[index + 1].index(self.tokenizer.eos_token_id) + 1
        return Markup(tuple(pieces), tuple(learned))

    def _template_texts(self, roles: Sequence[str], generation_prompt: bool) -> list[str]:
        marks = [f"{_OPEN}{index}{_CLOSE}" for index in range(len(roles))]
        messages = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation_prompt)
        except (TemplateError, ValueError, IndexError) as error:
            raise ValueError(f"chat template: refuses the roles {list(roles)}: {error}") from None
        assert isinstance(text, str)
        places = [text.find(mark) for mark in marks]
        if any(text.count(mark) != 1 for mark in marks) or any(a > b for a, b in pairwise(places)):
            raise ValueError(f"chat template: expected every content of {list(roles)} once and in order, got {text!r}")
        texts, start = [], 0
        for mark, place in zip(marks, places, strict=True):
            texts.append(text[start:place])
            start = place + len(mark)
        return [*texts, text[start:]]


_CHAT_TEXTS: WeakKeyDictionary[PreTrainedTokenizerBase, ChatText] = WeakKeyDictionary()


def chat_text(tokenizer: PreTrainedTokenizerBase) -> ChatText:
    """The tokenizer's :class:`ChatText`, made once per tokenizer and chat template."""
    known = _CHAT_TEXTS.get(tokenizer)
    if known is None or known.template != tokenizer.chat_template:
        known = _CHAT_TEXTS[tokenizer] = ChatText(tokenizer)
    return known
