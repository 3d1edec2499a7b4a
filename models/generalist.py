"""The Generalist: encoders, projectors, a language model, a router and expert heads, composed by injection."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.cache_utils import Cache

from heads.experts.expert_head import share_experts
from heads.experts.pool import ExpertPool
from layers.batch import Batch, HeadCall, MediaBatch
from layers.calls import Call, HeadContext, MediaFeatures
from layers.encoder import Encoder
from layers.head import Head, LossTerm
from layers.layout import Layout
from models.adapters.conditioned_experts import CALL
from models.adapters.lora_experts import balance_loss
from models.conditions import Conditions
from models.language import LanguageModel
from models.media import EncodedMedia, project, seen_by_heads
from models.plan import BatchPlan, feature_costs
from models.projectors import Projector
from models.token_loss import routing_places, supervised_rows
from models.tokenizer import load_tokenizer
from models.touch import touch
from routers.router import ROUTER_LOSS, MarkerRouter, Router
from routers.tasks import TaskTable
from routers.vocabulary import Vocabulary

TOKEN_LOSS = "token"


@dataclass
class StepOutput:
    """One cached forward: (B, V) logits of the last position, (B, S, d) hidden states, and the cache."""

    logits_last: Tensor
    hidden_states: Tensor
    cache: Cache


class Generalist(nn.Module):
    """Media in, text and task calls out, calls answered by expert heads.

    Args:
        tokenizer: Directory of a tokenizer that holds the table's tokens (``python -m models tokenizer`` makes one).
        tasks: The task table.
        language_model: The language model.
        encoders: Modality ("image", "audio", "graph") -> encoder.
        projectors: Modality -> projector, one per encoder.
        heads: Name -> head; every head that a task names must be there.
        router: Turns token ids into calls; marker tokens by default.
        max_frames: Frames that stand for a video, evenly spaced; the image encoder reads them.
        media_marks: Modality -> texts that stand before and after its items, such as "<SPEECH>" and "</SPEECH>".
        experts: The pool of frozen experts that heads share, but for those that were given one of their own.

    Attributes:
        in_step: How every trainable parameter takes part in the graph, used or not, where other processes wait for this
            one's gradients (:func:`models.touch.touch`).

    Raises:
        ValueError: If the parts do not fit together, naming what was expected and what was given.
    """

    def __init__(
        self,
        tokenizer: str,
        tasks: TaskTable,
        language_model: LanguageModel,
        encoders: dict[str, Encoder],
        projectors: dict[str, Projector],
        heads: dict[str, Head],
        router: Router | None = None,
        max_frames: int = 8,
        media_marks: dict[str, tuple[str, str]] | None = None,
        experts: ExpertPool | None = None,
    ) -> None:
        super().__init__()
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(tokenizer)
        self.tasks, self.max_frames = tasks, max_frames
        self.media_marks = {kind: (before, after) for kind, (before, after) in (media_marks or {}).items()}
        self.vocabulary = Vocabulary(self.tokenizer, tasks)
        self.language_model = language_model
        self.encoders = nn.ModuleDict(encoders)
        self.projectors = nn.ModuleDict(projectors)
        self.heads = nn.ModuleDict(heads)
        share_experts(heads.values(), experts)
        self.router = router if router is not None else MarkerRouter()
        self.router.bind(self.vocabulary)
        self._check_parts()
        self._query_slots = self._build_query_slots()
        self.in_step: Literal[False, "visits", "zeros"] = False
        self.register_buffer("situation_of", self._situation_of(), persistent=False)

    @classmethod
    def from_pretrained(
        cls, directory: str | Path, device: str | torch.device = "cpu", verify: bool = True, extra: Iterable[str] = ()
    ) -> Self:
        """Load a checkpoint directory; see :func:`models.checkpoint.load_checkpoint`."""
        from models.checkpoint import load_checkpoint

        generalist = load_checkpoint(directory, device, extra, verify)
        assert isinstance(generalist, cls)
        return generalist

    @property
    def device(self) -> torch.device:
        """Where the language model lies."""
        return self.language_model.head_weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The language model's parameter type."""
        return self.language_model.head_weight.dtype

    def plan(self) -> BatchPlan:
        """What data workers need; no weights."""
        return BatchPlan(
            tokenizer=self.tokenizer,
            vocabulary=self.vocabulary,
            tasks=self.tasks,
            processors={kind: self._encoder(kind).processor for kind in self.encoders},
            token_rules={kind: self._projector(kind).token_rule for kind in self.projectors},
            target_processors={name: self._head(name).target_processor for name in self.heads},
            max_frames=self.max_frames,
            media_marks=self.media_marks,
            with_instructions=self.language_model.gate is not None,
            with_routing=self.router.learns,
            feature_costs=feature_costs(self.encoders, self.language_model),
            with_originals=any(self._head(name).reads_originals for name in self.heads),
        )

    def train(self, mode: bool = True) -> Self:
        """Switch mode; a part with no trainable parameter stays in eval (no dropout, no SpecAugment)."""
        super().train(mode)
        for part in (self.language_model, *self.encoders.values(), *self.projectors.values(), *self.heads.values()):
            if mode and not any(parameter.requires_grad for parameter in part.parameters()):
                part.eval()
        return self

    def encode_media(self, media: Mapping[str, MediaBatch]) -> dict[str, EncodedMedia]:
        """Run each modality's encoder and projector once over all its items.

        Raises:
            ValueError: If a projector gives an item another number of tokens than the batch reserved for it.
        """
        encoded = {}
        for kind, batch in media.items():
            if kind not in self.encoders:
                raise ValueError(f"no encoder for '{kind}': expected one of {sorted(self.encoders)}")
            encoded[kind] = project(kind, self._projector(kind), self._features(kind, batch), batch)
        return encoded

    def _features(self, kind: str, batch: MediaBatch) -> Tensor:
        """(ΣN, d) of a frozen encoder that gave them before, or what the encoder gives."""
        known = [item for item in batch.features if item is not None]
        complete = known and len(known) == len(batch.items)
        return torch.cat(known) if complete else self.encode(kind, batch.items, batch.layout)

    def encode(self, kind: str, items: Sequence[Mapping[str, Tensor]], layout: Layout) -> Tensor:
        """(ΣN, d) features of processed items of one modality."""
        inputs = self._encoder(kind).collate(items)
        features: Tensor = self.encoders[kind]({n: self._to_float_dtype(v) for n, v in inputs.items()}, layout)
        return features

    def embed(self, input_ids: Tensor) -> Tensor:
        """Embeddings (..., d_llm): token rows, and the heads' learned queries at their ids."""
        embeds = self.language_model.embed(input_ids)
        for head_name, ids in self._query_slots.items():
            queries = self._head(head_name).queries
            assert queries is not None
            for index, token_id in ids:
                hit = (input_ids == token_id).unsqueeze(-1)
                query = queries[index] * self.language_model.embedding_scale
                embeds = torch.where(hit, query.to(embeds.dtype), embeds)
        return embeds

    def place(self, inputs_embeds: Tensor, positions: Tensor, projected: Tensor) -> Tensor:
        """Write projected features over their placeholders.

        Args:
            inputs_embeds: (T, d).
            positions: (ΣN',) indices into T.
            projected: (ΣN', d).
        """
        if positions.shape[0] != projected.shape[0]:
            raise ValueError(f"{positions.shape[0]} placeholders but {projected.shape[0]} projected features")
        return inputs_embeds.index_copy(0, positions, projected.to(inputs_embeds.dtype))

    def read(self, batch: Batch) -> tuple[Tensor, dict[str, EncodedMedia]]:
        """Hidden states (T, d) of a pack, and its encoded media."""
        encoded = self.encode_media(batch.media)
        embeds = self.embed(batch.input_ids[0])
        if self.in_step and torch.is_grad_enabled():  # all come by here, before the language model
            embeds = embeds + touch(self.parameters(), embeds, self.in_step == "zeros")
        for kind, item in encoded.items():
            embeds = self.place(embeds, batch.media[kind].positions, item.projected)
        conditions = self.conditions(batch.input_ids[0].split(batch.segment_lengths), batch.instructions)
        packed = (embeds[None], batch.position_ids, batch.segment_lengths)
        return self.language_model(*packed, conditions.gates, conditions.packed_situations()), encoded

    def forward(self, batch: Batch) -> dict[str, LossTerm]:
        """Token loss and one loss per head over a pack, as sums and counts."""
        states, encoded = self.read(batch)
        losses = {TOKEN_LOSS: self._token_loss(states, batch)}
        if self.language_model.training and self.language_model.balance_weight:
            balance = self.language_model.balance_weight * balance_loss(self.language_model)
            losses[TOKEN_LOSS].total = losses[TOKEN_LOSS].total + losses[TOKEN_LOSS].count * balance
        if self.router.learns:
            losses[ROUTER_LOSS] = self.router.loss(*routing_places(states, batch, self.tasks))
        for name in self.heads:
            calls = [call for call in batch.calls.get(name, []) if call.target]
            for reads in (True, False):  # one head may answer tasks of either kind of link
                own = [call for call in calls if bool(call.call.state_positions) == reads]
                if own or self._is_awaited(name):
                    term = self._head_loss(name, own, states, batch, encoded)
                    losses[name] = losses[name] + term if name in losses else term
        return losses

    def step(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        cache: Cache | None,
        conditions: Conditions | None = None,
    ) -> StepOutput:
        """One cached forward of new positions; arguments as in :meth:`LanguageModel.forward_cached`.

        Args:
            inputs_embeds: (B, S, d).
            attention_mask: (B, past + S).
            position_ids: (B, S).
            cache: Of the last step, or None.
            conditions: Of the rows and their new tokens.
        """
        conditions = conditions or Conditions()
        output = self.language_model.forward_cached(
            inputs_embeds, attention_mask, position_ids, cache, conditions.gates, conditions.padded_situations()
        )
        logits = self.language_model.logits(output.hidden_states[:, -1])
        return StepOutput(logits, output.hidden_states, output.cache)

    def conditions(self, rows: Sequence[Tensor], instructions: Sequence[Tensor]) -> Conditions:
        """What the language model is conditioned on, besides embeddings.

        Args:
            rows: (L,) token ids of each sample.
            instructions: (L,) ids of each sample's instruction.
        """
        gates = self.language_model.gates(instructions)
        if self.language_model.situations is None:
            return Conditions(gates)
        table = self.situation_of
        assert isinstance(table, Tensor)
        return Conditions(gates, [table[row] for row in rows], table)

    def head_contexts(
        self, calls: list[HeadCall], media: Mapping[str, MediaBatch], encoded: Mapping[str, EncodedMedia]
    ) -> list[HeadContext]:
        """What each call offers its head besides hidden states (:func:`seen_by_heads`); features carry gradients."""
        features = {kind: item.layout.split(item.features) for kind, item in encoded.items()}

        def view(kind: str, index: int) -> MediaFeatures:
            own, place = media[kind], features[kind][index]
            return seen_by_heads(kind, own.layout.items[index], own.items[index], place, own.original(index))

        return [
            HeadContext(item.call, [view(*reference) for reference in item.media], item.earlier_results)
            for item in calls
        ]

    def head_states(self, calls: Sequence[Call], states: Tensor, token_ids: Tensor) -> Tensor | None:
        """What calls hand to their head from the language model.

        Args:
            calls: Their ``state_positions`` index the rows below.
            states: (T, d) hidden states.
            token_ids: (T,) the tokens at which they are.

        Returns:
            (ΣK, d): hidden states, but the tokens' embeddings at unit mean square where a task reads its prompt's;
            None where no call has a position.
        """
        positions = [position for call in calls for position in call.state_positions]
        if not positions:
            return None
        rows = torch.tensor(positions, device=states.device)
        chosen, ids = states.index_select(0, rows), token_ids.index_select(0, rows)
        replaced = [self._is_embedded(call, place) for call in calls for place in range(len(call.state_positions))]
        if not any(replaced):
            return chosen
        embeddings = F.rms_norm(self.language_model.embed(ids), chosen.shape[-1:])
        return torch.where(torch.tensor(replaced, device=ids.device)[:, None], embeddings.to(chosen.dtype), chosen)

    def _is_embedded(self, call: Call, place: int) -> bool:
        """Whether a call's head gets an embedding here: at the prompt, before the anchor or the queries."""
        task = self.tasks[call.task]
        num_states = task.num_queries or 1
        return task.prompt_tokens == "embeddings" and place < len(call.state_positions) - num_states

    def _is_awaited(self, name: str) -> bool:
        """Whether other processes wait for this head's calls, if only to be told that there are none."""
        return self.training and self._head(name).gathers and dist.is_available() and dist.is_initialized()

    def _token_loss(self, states: Tensor, batch: Batch) -> LossTerm:
        positions, targets = supervised_rows(batch.labels[0], batch.segment_lengths)
        total = self.language_model.cross_entropy(states.index_select(0, positions), targets)
        return LossTerm(total, targets.shape[0])

    def _head_loss(
        self,
        name: str,
        calls: list[HeadCall],
        states: Tensor,
        batch: Batch,
        encoded: Mapping[str, EncodedMedia],
    ) -> LossTerm:
        head = self._head(name)
        head_states = (
            self.head_states([item.call for item in calls], states, batch.input_ids[0]) if calls else states[:0]
        )
        lengths = [len(item.call.state_positions) for item in calls]
        predictions = head(head_states, lengths, self.head_contexts(calls, batch.media, encoded))
        return head.loss(predictions, [item.target for item in calls])

    def _to_float_dtype(self, value: Tensor) -> Tensor:
        # Under autocast parameters stay in fp32; a model cast to bf16 as a whole needs its inputs cast too.
        return value.to(self.dtype) if value.is_floating_point() else value

    def _encoder(self, kind: str) -> Encoder:
        encoder = self.encoders[kind]
        assert isinstance(encoder, Encoder)
        return encoder

    def _projector(self, kind: str) -> Projector:
        projector = self.projectors[kind]
        assert isinstance(projector, Projector)
        return projector

    def _head(self, name: str) -> Head:
        head = self.heads[name]
        assert isinstance(head, Head)
        return head

    def _situation_of(self) -> Tensor | None:
        """(V,) what each token is, where the language model has experts for it."""
        if self.language_model.situations is None:
            return None
        media = self.vocabulary.media_ids
        calls = self.vocabulary.control_ids - set(media.values())
        ids = {CALL: sorted(calls), **{kind: [index] for kind, index in media.items()}}
        return self.language_model.situations.of_tokens(self.language_model.vocab_size, ids)

    def _build_query_slots(self) -> dict[str, list[tuple[int, int]]]:
        slots: dict[str, list[tuple[int, int]]] = {}
        for task in self.tasks:
            if task.link == "queries":
                slots.setdefault(task.head, []).extend(enumerate(self.vocabulary.query_ids[task.name]))
        return slots

    def _check_parts(self) -> None:
        if reserved := sorted({TOKEN_LOSS, ROUTER_LOSS} & set(self.heads)):
            raise ValueError(f"heads: expected other names than those of losses, got {reserved}")
        if set(self.encoders) != set(self.projectors):
            raise ValueError(f"one projector per encoder: got {sorted(self.encoders)} and {sorted(self.projectors)}")
        marked = sorted(set(self.media_marks) - set(self.encoders))
        if marked:
            raise ValueError(f"media_marks: expected some of {sorted(self.encoders)}, got {marked}")
        for kind in self.encoders:
            if self._encoder(kind).kind != kind:
                raise ValueError(f"encoder '{kind}': expected a {kind} encoder, got one for {self._encoder(kind).kind}")
        for task in self.tasks:
            if task.head not in self.heads:
                raise ValueError(f"task '{task.name}' needs head '{task.head}', got heads {sorted(self.heads)}")
            if task.link not in self._head(task.head).links:
                links, name = sorted(self._head(task.head).links), type(self._head(task.head)).__name__
                raise ValueError(f"task '{task.name}' link: expected one of {links} for {name}, got '{task.link}'")
            if task.link == "queries" and task.num_queries != self._head(task.head).num_queries:
                got = self._head(task.head).num_queries
                raise ValueError(f"task '{task.name}' has {task.num_queries} queries, its head {got}")
            unknown = set(task.needs) - set(self.encoders)
            if unknown:
                raise ValueError(f"task '{task.name}' needs {sorted(unknown)}, encoders are {sorted(self.encoders)}")
        rows, ids = self.language_model.vocab_size, len(self.tokenizer)
        if rows < ids:
            raise ValueError(f"the tokenizer has {ids} ids, the language model only {rows} embedding rows")
