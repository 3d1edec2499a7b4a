"""Stage 0 of a speech tower: what is said, and who says it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.functional.text import edit_distance

from data.records import Record
from layers.head import LossTerm
from layers.layout import ItemLayout
from training.towers.objectives import Encode, Outcome, TowerBatch, TowerObjective


@dataclass(frozen=True)
class SpeechRule:
    """``meta.transcript`` as indices of the alphabet plus one (0 is the blank), and what voices ``meta.voices`` names.

    Args:
        alphabet: Its characters; the transcript is brought to lower case.
        voices: The kinds of voices to tell apart, each by the names of its voices.
    """

    alphabet: str
    voices: tuple[frozenset[str], ...] = ()

    def __call__(self, record: Record, layout: ItemLayout) -> dict[str, Tensor] | None:
        """``labels`` (characters,) and ``voices`` (V,) of 0 and 1, or None without a transcript.

        ``voices`` is empty, (0,), where the record names none or one of no kind.

        Raises:
            ValueError: For a character outside the alphabet.
        """
        transcript = record.meta.get("transcript")
        if not transcript:
            return None
        unknown = sorted(set(str(transcript).lower()) - set(self.alphabet))
        if unknown:
            raise ValueError(f"record '{record.key}': expected a transcript of '{self.alphabet}', got {unknown}")
        heard = set(record.meta.get("voices") or [])
        known = bool(heard) and heard <= frozenset().union(*self.voices)
        return {
            "labels": torch.tensor([self.alphabet.index(letter) + 1 for letter in str(transcript).lower()]),
            "voices": torch.tensor([float(bool(kind & heard)) for kind in self.voices] if known else []),
        }


class SpeechObjective(TowerObjective):
    """Characters by connectionist temporal classification, with SpecAugment, and the voices of the clip.

    ``-log p(y|x)``, ``p(y|x) = Σ_π Π_t p(π_t|x)`` over all alignments π of the transcript y with blanks
    (Graves et al. 2006, https://www.cs.toronto.edu/~graves/icml_2006.pdf), per character; masked bands and stretches
    of the spectrogram as in https://arxiv.org/abs/1904.08779, without time warping.

    Characters alone teach a tower to forget who speaks (one speaker or two was at chance over such features).
    Every frame therefore scores every kind of voice too, and a clip's score is the frames' log-mean-exp, as in
    multiple-instance learning (https://arxiv.org/abs/1411.6228, eq. 3, r = 1): a voice counts where any stretch has it.

    Args:
        hidden_size: Width of the encoder's features.
        alphabet: The characters of the transcripts.
        time_masks: Masked stretches per item in training.
        time_width: Largest stretch in frames of 10 ms.
        mel_masks: Masked bands per item in training.
        mel_width: Largest band in mel bins.
        voices: Kinds of voices to tell apart, with the names of their voices in ``meta.voices``; none for characters
            alone. A kind may have a single voice.
        voice_weight: Weight of the voices' loss, a mean over kinds.
        character_weight: Weight of the characters' loss.
    """

    def __init__(
        self,
        hidden_size: int,
        alphabet: str = " 'abcdefghijklmnopqrstuvwxyzäöüß0123456789",
        time_masks: int = 2,
        time_width: int = 16,
        mel_masks: int = 2,
        mel_width: int = 12,
        voices: Mapping[str, Sequence[str]] | None = None,
        voice_weight: float = 1.0,
        character_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.hidden_size, self.alphabet = hidden_size, alphabet
        kinds = tuple(frozenset(names) for names in (voices or {}).values())
        self.target_rule = SpeechRule(alphabet, kinds)
        self.loss_weights = {"ctc": character_weight, "voice": voice_weight}
        self.masks = ((0, mel_masks, mel_width), (1, time_masks, time_width))
        self.classify = nn.Linear(hidden_size, len(alphabet) + 1)
        self.recognise = nn.Linear(hidden_size, len(kinds)) if kinds else None

    def forward(self, encode: Encode, batch: TowerBatch) -> Outcome:
        """The losses, and clips whose voices are all told right; in evaluation greedy character and word errors too."""
        items = [self._mask(item) for item in batch.items] if self.training else batch.items
        features = encode(items)
        log_probs = self.classify(features).float().log_softmax(-1)
        rows = batch.layout.split(log_probs)
        labels = [target["labels"] for target in batch.targets]
        total = F.ctc_loss(
            nn.utils.rnn.pad_sequence(list(rows)),  # (T, B, V)
            torch.cat(labels),
            torch.tensor(batch.layout.lengths),
            torch.tensor([len(row) for row in labels]),
            reduction="sum",
            zero_infinity=True,
        )
        outcome = Outcome({"ctc": LossTerm(total, sum(len(row) for row in labels))})
        if self.recognise is not None:
            logits, voices = self._voices(batch.layout.split(self.recognise(features).float()), batch)
            loss = F.binary_cross_entropy_with_logits(logits, voices, reduction="none").mean(1).sum()
            outcome.losses["voice"] = LossTerm(loss, len(voices))
            outcome.metrics["voices_right"] = (((logits > 0) == (voices > 0)).all(1).sum(), len(voices))
        if not self.training:
            outcome.metrics |= self._errors([self.decode(row) for row in rows], [self._text(row) for row in labels])
        return outcome

    def decode(self, log_probs: Tensor) -> str:
        """The greedy transcript of one item (T, V): repetitions merged, blanks removed."""
        best = torch.unique_consecutive(log_probs.argmax(-1))
        return self._text(best[best > 0])

    def _voices(self, scores: Sequence[Tensor], batch: TowerBatch) -> tuple[Tensor, Tensor]:
        """(n, kinds) logits of the clips whose voices are known, from their frames (T, kinds), and what is known."""
        pairs = [(row, target["voices"]) for row, target in zip(scores, batch.targets, strict=True)]
        known = [(row.logsumexp(0) - math.log(len(row)), voices) for row, voices in pairs if len(voices)]
        if not known:
            none = torch.cat(list(scores))[:0]
            return none, none.detach()
        logits, expected = (torch.stack(values) for values in zip(*known, strict=True))
        return logits, expected

    def _text(self, labels: Tensor) -> str:
        return "".join(self.alphabet[index - 1] for index in labels.tolist())

    def _errors(self, found: Sequence[str], expected: Sequence[str]) -> dict[str, tuple[Tensor, int]]:
        characters = edit_distance(list(found), list(expected), reduction="sum")
        alphabet: dict[str, str] = {}

        def as_letters(text: str) -> str:  # every word becomes a letter, so that word errors are an edit distance
            return "".join(alphabet.setdefault(word, chr(0xE000 + len(alphabet))) for word in text.split())

        words = edit_distance([as_letters(t) for t in found], [as_letters(t) for t in expected], reduction="sum")
        return {
            "cer": (characters.double(), sum(map(len, expected))),
            "wer": (words.double(), sum(len(text.split()) for text in expected)),
        }

    def _mask(self, item: dict[str, Tensor]) -> dict[str, Tensor]:
        if "input_features" not in item:
            return item
        features = item["input_features"].clone()  # (mels, frames)
        fill = features.mean()
        for axis, count, width in self.masks:
            for _ in range(count):
                size = min(int(torch.randint(width + 1, ())), features.shape[axis] // 4)
                start = int(torch.randint(features.shape[axis] - size + 1, ()))
                features.narrow(axis, start, size).copy_(fill)
        return {**item, "input_features": features}
