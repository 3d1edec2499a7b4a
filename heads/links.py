"""The four links: whatever crosses from the language model, a head gets vectors of one width.

``hidden`` and ``queries`` pass states of the language model, with their gradient. ``text`` passes nothing but the
call's words, and ``boxes`` the words and the regions: a text encoder of the head's own, and the places of the corners,
make vectors of them, and no gradient reaches the language model.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModel, AutoTokenizer

from heads.attend import CrossAttention, pad_ragged, required_states, sincos_positions
from layers.calls import HeadContext
from layers.geometry import Box
from layers.head import LINKS, Head, Link
from layers.pretrained import load_pretrained

WITHOUT_STATES: frozenset[Link] = frozenset({"text", "boxes"})
_WORDS_PER_UNIT = 256
"""How many words stand between place 0 and place 1 of the position's sines."""
_WORD = re.compile(r"\w+|[^\w\s]")


def checked_boxes(context: HeadContext) -> list[Box]:
    """The regions of a call, fractions of the input frame.

    Raises:
        ValueError: If one has its edges in the wrong order, or lies outside the image.
    """
    boxes = list(context.call.boxes_xyxy)
    for place, (x1, y1, x2, y2) in enumerate(boxes):
        if not (0 <= x1 <= x2 <= 1 and 0 <= y1 <= y2 <= 1):
            given = ", ".join(f"{edge:.3f}" for edge in boxes[place])
            raise ValueError(
                f"region {place} of task '{context.call.task}': expected 0 <= x1 <= x2 <= 1 and 0 <= y1 <= y2 <= 1, as "
                f"fractions of the image, got {given}"
            )
    return boxes


class PromptEncoder(nn.Module):
    """Prompts as vectors, one per word, the attention among them included.

    Without a pretrained encoder words are hashed to rows of a table (words that share a row are one to it) and pass one
    transformer layer; what is learned is then learned by the head's loss alone.

    Args:
        width: Of the vectors, a multiple of 4.
        pretrained: A local directory of a text encoder of transformers (CLIP's, T5's, BERT, ...) with its tokenizer,
            which stays frozen.
        num_words: Rows of the table.
    """

    def __init__(self, width: int, pretrained: str | None = None, num_words: int = 4096) -> None:
        super().__init__()
        self.width = width
        self.model: nn.Module | None = None
        if pretrained is None:
            self.words = nn.Embedding(num_words, width)
            self.layer = nn.TransformerEncoderLayer(
                width, 4, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
        else:
            self.model = _text_part(pretrained).requires_grad_(False)
            self.tokenizer: Any = AutoTokenizer.from_pretrained(pretrained, trust_remote_code=False)
            own: Any = self.model.config
            self.max_tokens: int | None = getattr(own, "max_position_embeddings", None)
            self.projection = nn.Linear(own.hidden_size, width)

    def train(self, mode: bool = True) -> PromptEncoder:
        """Switch the mode; a pretrained encoder stays in evaluation mode."""
        super().train(mode)
        if self.model is not None:
            self.model.eval()
        return self

    def forward(self, prompts: Sequence[str]) -> list[Tensor]:
        """Per prompt (L, width), L at least 1.

        Raises:
            ValueError: If one is longer than a pretrained encoder reads.
        """
        if not prompts:
            return []
        if self.model is not None:
            return self._pretrained(prompts)
        rows = [self._word_ids(prompt) for prompt in prompts]
        ids = pad_sequence(rows, batch_first=True, padding_value=-1)
        places = torch.arange(ids.shape[1], device=ids.device, dtype=torch.float32)[:, None] / _WORDS_PER_UNIT
        order = sincos_positions(places.expand(-1, 2), self.width).to(self.words.weight)
        vectors = self.layer(self.words(ids.clamp(min=0)) + order, src_key_padding_mask=ids < 0)
        return [own[: len(row)] for own, row in zip(vectors, rows, strict=True)]

    def _word_ids(self, prompt: str) -> Tensor:
        table = self.words
        words = _WORD.findall(prompt.lower())
        ids = [1 + zlib.crc32(word.encode()) % (table.num_embeddings - 1) for word in words]
        return torch.tensor(ids or [0], device=table.weight.device)

    def _pretrained(self, prompts: Sequence[str]) -> list[Tensor]:
        assert self.model is not None
        weight = self.projection.weight
        given = self.tokenizer(list(prompts), padding=True, return_tensors="pt").to(weight.device)
        longest = given["input_ids"].shape[1]
        if self.max_tokens is not None and longest > self.max_tokens:
            raise ValueError(f"a prompt has {longest} tokens, its text encoder reads at most {self.max_tokens}")
        with torch.no_grad():
            states = self.model(input_ids=given["input_ids"], attention_mask=given["attention_mask"]).last_hidden_state
        vectors = self.projection(states.to(weight))
        return [own[mask.bool()] for own, mask in zip(vectors, given["attention_mask"], strict=True)]


def _text_part(pretrained: str) -> Any:
    """A text encoder; of a model with more parts, the one that reads text."""
    model: Any = load_pretrained(AutoModel, pretrained, may_lack=r"(^|\.)(pooler|decoder)\.", local_files_only=True)
    if getattr(model.config, "is_encoder_decoder", False):
        return model.get_encoder()
    return getattr(model, "text_model", model)


class LinkReader(nn.Module):
    """What a head reads of its calls, by its link: (ΣK, state_size) vectors.

    Args:
        link: ``hidden`` and ``queries`` pass the states on. With ``text`` and ``boxes`` they are a vector per word, one
            per region, then ``num_states`` that sum these up, where the anchor or the queries would be.
        state_size: Width of the vectors.
        num_states: Vectors that sum a call up.
        text_encoder: Directory of a pretrained text encoder; one of the head's own by default.
        width: Width of the text encoder of the head's own.
    """

    def __init__(
        self, link: Link, state_size: int, num_states: int = 1, text_encoder: str | None = None, width: int = 128
    ) -> None:
        super().__init__()
        if link not in LINKS:
            raise ValueError(f"link: expected one of {LINKS}, got {link!r}")
        self.link, self.state_size = link, state_size
        if link not in WITHOUT_STATES:
            if text_encoder is not None:
                raise ValueError(f"text_encoder goes with link 'text' or 'boxes', got link '{link}'")
            return
        self.prompts = PromptEncoder(width, text_encoder)
        self.corners = nn.Linear(2 * width, width) if link == "boxes" else None
        self.width = width
        self.summaries = nn.Parameter(torch.randn(num_states, width))
        self.summarise = CrossAttention(width, 4)
        self.output = nn.Linear(width, state_size)

    def forward(
        self, states: Tensor | None, lengths: Sequence[int], contexts: Sequence[HeadContext], head: str
    ) -> tuple[Tensor, list[int]]:
        """Vectors and how many per call.

        Args:
            states: (ΣK, state_size) of the language model, or None.
            lengths: K per call.
            contexts: One per call.
            head: Who asks, for messages.

        Raises:
            ValueError: If states are missing, or a region is not one.
        """
        if self.link not in WITHOUT_STATES:
            return required_states(states, head), list(lengths)
        if not contexts:
            return self.summaries.new_zeros(0, self.state_size), []
        words = self.prompts([context.call.prompt for context in contexts])
        read = [torch.cat([own, self._places(own, context)]) for own, context in zip(words, contexts, strict=True)]
        padded, mask = pad_ragged(read)
        summed_up = self.summarise(self.summaries.expand(len(read), -1, -1), padded, padded, mask)
        rows = [torch.cat(pair) for pair in zip(read, summed_up, strict=True)]
        return self.output(torch.cat(rows)), [len(row) for row in rows]

    def _places(self, like: Tensor, context: HeadContext) -> Tensor:
        """(R, width) of a call's regions; none for the link ``text``."""
        if self.corners is None:
            return like.new_zeros(0, self.width)
        corners = like.new_tensor(checked_boxes(context), dtype=torch.float32).reshape(-1, 2)
        places: Tensor = self.corners(sincos_positions(corners, self.width).to(like).reshape(-1, 2 * self.width))
        return places


class LinkedHead(Head):
    """A head that takes any of the four links, said when it is built.

    Args:
        link: What crosses from the language model; a task of another link is refused, but a head that reads states
            takes those of the anchor and those of queries alike.
        state_size: Width of the language model's states.
        num_queries: Learned queries, for the link ``queries``.
        num_states: Vectors of a call that the head counts on: at least ``num_queries``.
        text_encoder: Directory of a pretrained text encoder for the links ``text`` and ``boxes``.
        crossing: Whether the head wants vectors at all; an expert may take words and regions as they are.

    Raises:
        ValueError: If queries are given for a link that passes no states, or none for the link ``queries``.
    """

    def __init__(
        self,
        link: Link,
        state_size: int,
        num_queries: int = 0,
        num_states: int = 1,
        text_encoder: str | None = None,
        crossing: bool = True,
    ) -> None:
        super().__init__(num_queries, state_size)
        if num_queries > 0 if link in WITHOUT_STATES else link == "queries" and not num_queries:
            raise ValueError(f"link '{link}' does not go with num_queries={num_queries}")
        self.link = link
        self.links = frozenset({link}) if link in WITHOUT_STATES else frozenset(LINKS) - WITHOUT_STATES
        if crossing:
            self.crossing = LinkReader(link, state_size, max(num_states, num_queries), text_encoder)
        if text_encoder is not None:
            self.bases = {"crossing.prompts.model.": text_encoder}

    def crossed(
        self, states: Tensor | None, lengths: Sequence[int], contexts: Sequence[HeadContext]
    ) -> tuple[Tensor, list[int]]:
        """What crossed: (ΣK, state_size) vectors, and K per call."""
        vectors, counts = self.crossing(states, lengths, contexts, type(self).__name__)
        return vectors, counts
