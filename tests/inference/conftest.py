"""A Generalist of a few thousand random weights whose replies a test may script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from encoders.graph import GraphProcessor
from encoders.vision import ImageProcessor
from layers.calls import BoxesResult, HeadContext, ImageResult, Result, ScoreResult
from layers.encoder import Encoder
from layers.head import Head, HeadTarget, LossTerm
from layers.layout import Layout
from models.generalist import Generalist, StepOutput
from models.language import LanguageModel
from models.projectors import MLPProjector
from models.tokenizer import save_tokenizer, train_tokenizer
from routers.tasks import TaskSpec, TaskTable

WIDTH = 32
TEXTS = ["where is the red 7?", "draw a blue 4", "is it right?", "there it is: done", "the 9 is left of the 3"]
TABLE = TaskTable(
    tasks=(
        TaskSpec("ground", "boxes", "hidden", ("image",), ("prompt", "regions")),
        TaskSpec("draw", "pictures", "queries", (), ("prompt",), num_queries=3),
        TaskSpec("judge", "judge", "text", (), ("prompt", "results")),
        TaskSpec("link", "pairs", "hidden", ("graph", "graph"), ()),
    ),
    num_bins=32,
    max_results=3,
)


class PatchEncoder(Encoder):
    """A 2x2 grid of mean colours of a letterboxed 16x16 input."""

    kind: ClassVar[str] = "image"

    def __init__(self) -> None:
        super().__init__()
        self.hidden_size = 3
        self.processor = ImageProcessor(input_size=(16, 16), grid=(2, 2), mode="letterbox")

    def collate(self, items: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        return {"pixel_values": torch.stack([item["pixel_values"] for item in items])}

    def forward(self, inputs: Mapping[str, Tensor], layout: Layout) -> Tensor:
        return (
            nn.functional.adaptive_avg_pool2d(inputs["pixel_values"].float() / 255, 2)
            .flatten(2)
            .transpose(1, 2)
            .flatten(0, 1)
        )


class WordsEncoder(Encoder):
    """The hashed words of each node."""

    kind: ClassVar[str] = "graph"

    def __init__(self) -> None:
        super().__init__()
        self.hidden_size = 16
        self.processor = GraphProcessor(text_width=16)

    def collate(self, items: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        return {"x": torch.cat([item["x"] for item in items])}

    def forward(self, inputs: Mapping[str, Tensor], layout: Layout) -> Tensor:
        return inputs["x"][:, :16]


class RecordingHead(Head):
    """Keeps what it was given; its subclasses answer."""

    def __init__(self, num_queries: int = 0) -> None:
        super().__init__()
        self.num_queries = num_queries
        self.queries = nn.Parameter(torch.randn(num_queries, WIDTH)) if num_queries else None
        self.target_processor = _NoTargets()
        self.rounds: list[tuple[Tensor | None, list[int], list[HeadContext]]] = []

    def forward(self, states: Tensor | None, lengths: Sequence[int], contexts: Sequence[HeadContext]) -> Any:
        self.rounds.append((states, list(lengths), list(contexts)))

    def loss(self, predictions: Any, targets: Sequence[HeadTarget]) -> LossTerm:
        return LossTerm(torch.zeros(()), len(targets))

    def decode(self, predictions: Any, contexts: Sequence[HeadContext]) -> list[Result]:
        return [self.answer(context) for context in contexts]

    def answer(self, context: HeadContext) -> Result:
        raise NotImplementedError


class _NoTargets:
    def __call__(self, value: Any, media: Sequence[Any]) -> HeadTarget:
        return {}


class BoxesHead(RecordingHead):
    """Answers with the first box of the call, in original pixels; refuses the prompt "nothing"."""

    def answer(self, context: HeadContext) -> Result:
        if context.call.prompt == "nothing":
            raise ValueError("expected something, got nothing")
        transform = context.image.layout.transform
        width, height = transform.input_size
        boxes = [(a * width, b * height, c * width, d * height) for a, b, c, d in context.call.boxes_xyxy]
        inverted = tuple(tuple(box) for box in transform.invert_boxes(boxes).tolist())
        return BoxesResult(context.call, inverted, tuple(1.0 for _ in inverted))


class PicturesHead(RecordingHead):
    """A black image of 4x6 pixels."""

    def answer(self, context: HeadContext) -> Result:
        return ImageResult(context.call, torch.zeros(3, 6, 4, dtype=torch.uint8))


class JudgeHead(RecordingHead):
    """How many earlier results are images."""

    def answer(self, context: HeadContext) -> Result:
        return ScoreResult(context.call, float(sum(isinstance(item, ImageResult) for item in context.earlier_results)))


class PairsHead(RecordingHead):
    """The nodes of the last two graphs."""

    def answer(self, context: HeadContext) -> Result:
        return ScoreResult(context.call, float(sum(item.layout.num_features for item in context.of_kind("graph")[-2:])))


@pytest.fixture(scope="session")
def tokenizer_directory(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(train_tokenizer(TEXTS * 4, 300, TABLE), directory)
    return str(directory)


@pytest.fixture
def generalist(tokenizer_directory: str) -> Generalist:
    torch.manual_seed(0)
    language_model = LanguageModel(
        "llama",
        {
            "vocab_size": 448,
            "hidden_size": WIDTH,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "initializer_range": 0.4,
        },
    )
    model = Generalist(
        tokenizer_directory,
        TABLE,
        language_model,
        encoders={"image": PatchEncoder(), "graph": WordsEncoder()},
        projectors={"image": MLPProjector(3, WIDTH), "graph": MLPProjector(16, WIDTH)},
        heads={"boxes": BoxesHead(), "pictures": PicturesHead(3), "judge": JudgeHead(), "pairs": PairsHead()},
    )
    return model.eval()


class Script:
    """Makes a Generalist write given replies: prompt length -> token ids, then the end of the turn."""

    def __init__(self, generalist: Generalist, replies: Mapping[int, Sequence[int]]) -> None:
        self.step_of_model = generalist.step
        self.replies = replies
        self.end = generalist.tokenizer.eos_token_id
        self.steps = 0
        generalist.step = self  # type: ignore[method-assign, assignment]

    def __call__(
        self, inputs_embeds: Tensor, attention_mask: Tensor, position_ids: Tensor, cache: Any, conditions: Any = None
    ) -> StepOutput:
        output = self.step_of_model(inputs_embeds, attention_mask, position_ids, cache, conditions)
        self.steps = 0 if cache is None else self.steps + 1
        logits = torch.zeros_like(output.logits_last)
        for row, length in enumerate((attention_mask.sum(1) - self.steps).tolist()):
            ids = [*self.replies[length], self.end]
            logits[row, ids[min(self.steps, len(ids) - 1)]] = 1
        return StepOutput(logits, output.hidden_states, output.cache)
