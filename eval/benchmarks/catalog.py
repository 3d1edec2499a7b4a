"""The catalogue: one YAML row per benchmark in ``configs/benchmarks/*.yaml``.

A file holds rows by name::

    vqav2:                                      # the benchmark's name
      title: VQAv2 validation                   # for people
      source: https://visualqa.org              # where the files come from
      protocol: vqav2/official@1                # NAME/VARIANT@VERSION; see eval.benchmarks.benchmark
      media: image                              # image, video, audio, graph or text: what questions show
      folder: vqav2                             # below --data; the benchmark's name by default
      wants: questions, annotations and val2014/ as the site serves them
      reader: {class_path: eval.benchmarks.readers.vqa.VQAReader, init_args: {questions: ...}}
      prompt: ["{question}", Answer the question using a single word or phrase.]
      option: "{letter}. {text}"                # how options are written; this is the default
      system: ""                                # a system turn before the question; none by default
      parser: {class_path: eval.benchmarks.parser.Verbatim}
      metric: {class_path: eval.benchmarks.metric.ExactMatch, init_args: {parts: [answer_type]}}
      generation: {max_new_tokens: 16}          # decoding settings that belong to the protocol
      without: {blind: why}                     # controls that mean nothing here
      constant: {say: A}                        # or {reader: ARGUMENTS} of another split; see eval.benchmarks.constant
      call: null                                # the task whose call answers every question, if one does
      given: false                              # whether that call is given instead of being decided by the model
      hidden: false                             # whether a server has the references, so that nothing is scored here
      submission: {class_path: ..., init_args: {...}}  # what the server takes; see eval.benchmarks.submissions
      split: val

``reader``, ``prompt``, ``parser``, ``metric``, ``protocol`` and ``media`` are required. Class paths are compared with
:data:`ALLOWED_CLASSES` as text before anything is imported, and arguments are plain values.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from data.records import MEDIA_TYPES, Media, Message, Part, Record
from data.shards import Sample
from eval.benchmarks.answer import Answer
from eval.benchmarks.benchmark import Benchmark, BenchmarkError
from eval.benchmarks.constant import ConstantReply
from eval.benchmarks.metric import Answered, Metric
from eval.benchmarks.parser import Parser
from eval.benchmarks.prompt import Prompt
from eval.benchmarks.reader import Item, MediaFile, MediaMembers, Reader
from eval.benchmarks.submissions.submission import Submission
from eval.metrics.statistics import Score
from eval.prediction import Prediction

CATALOG = Path(__file__).resolve().parents[2] / "configs" / "benchmarks"
ALLOWED_CLASSES: frozenset[str] = frozenset(
    {
        "eval.benchmarks.judged.JudgedGrade",
        "eval.benchmarks.metric.ExactMatch",
        "eval.benchmarks.parser.Verbatim",
        "eval.benchmarks.parsers.choices.ChoiceParser",
        "eval.benchmarks.parsers.choices.LabelParser",
        "eval.benchmarks.parsers.choices.MmmuParser",
        "eval.benchmarks.parsers.choices.RankingParser",
        "eval.benchmarks.parsers.choices.ScoreParser",
        "eval.benchmarks.parsers.choices.YesNoParser",
        "eval.benchmarks.parsers.regions.BoxParser",
        "eval.benchmarks.parsers.regions.MaskParser",
        "eval.benchmarks.parsers.regions.ObjectsParser",
        "eval.benchmarks.parsers.vectors.VectorParser",
        "eval.benchmarks.readers.captions.CocoCaptionsReader",
        "eval.benchmarks.readers.captions.KarpathyReader",
        "eval.benchmarks.readers.captions.RetrievalReader",
        "eval.benchmarks.readers.graphs.LinkReader",
        "eval.benchmarks.readers.graphs.NodeReader",
        "eval.benchmarks.readers.graphs.TriplesReader",
        "eval.benchmarks.readers.json_lines.JsonLinesReader",
        "eval.benchmarks.readers.mme.MmeReader",
        "eval.benchmarks.readers.multiple_choice.MmmuReader",
        "eval.benchmarks.readers.multiple_choice.RotatedReader",
        "eval.benchmarks.readers.multiple_choice.ScienceQaReader",
        "eval.benchmarks.readers.multiple_choice.SlottedReader",
        "eval.benchmarks.readers.regions.CocoDetectionReader",
        "eval.benchmarks.readers.regions.ReasonSegReader",
        "eval.benchmarks.readers.regions.RefCocoReader",
        "eval.benchmarks.readers.rows.JsonReader",
        "eval.benchmarks.readers.rows.TableReader",
        "eval.benchmarks.readers.speech.IemocapReader",
        "eval.benchmarks.readers.speech.LibriSpeechReader",
        "eval.benchmarks.readers.speech.MustCReader",
        "eval.benchmarks.readers.speech.SpokenQaReader",
        "eval.benchmarks.readers.speech.TrialsReader",
        "eval.benchmarks.readers.speech.VoiceTsvReader",
        "eval.benchmarks.readers.vectors.CaptionVectorsReader",
        "eval.benchmarks.readers.vectors.ClipVectorsReader",
        "eval.benchmarks.readers.vectors.EntityVectorsReader",
        "eval.benchmarks.scorers.answers.Anls",
        "eval.benchmarks.scorers.answers.ChoiceAccuracy",
        "eval.benchmarks.scorers.answers.CircularAccuracy",
        "eval.benchmarks.scorers.answers.Containment",
        "eval.benchmarks.scorers.answers.MmmuAccuracy",
        "eval.benchmarks.scorers.answers.RelaxedAccuracy",
        "eval.benchmarks.scorers.answers.VqaAccuracy",
        "eval.benchmarks.scorers.captions.CaptionScores",
        "eval.benchmarks.scorers.labels.LabelScores",
        "eval.benchmarks.scorers.labels.MatchScores",
        "eval.benchmarks.scorers.labels.RankScores",
        "eval.benchmarks.scorers.labels.RetrievalRecall",
        "eval.benchmarks.scorers.mathvista.MathVistaAccuracy",
        "eval.benchmarks.scorers.regions.BoxAccuracy",
        "eval.benchmarks.scorers.regions.DetectionScores",
        "eval.benchmarks.scorers.regions.MaskScores",
        "eval.benchmarks.scorers.speech.TranslationBleu",
        "eval.benchmarks.scorers.speech.VerificationErrors",
        "eval.benchmarks.scorers.speech.WordErrorRate",
        "eval.benchmarks.scorers.vectors.VectorRanks",
        "eval.benchmarks.scorers.vectors.VectorRecall",
        "eval.benchmarks.scorers.vectors.VectorVerification",
        "eval.benchmarks.scorers.yes_no.MmeScores",
        "eval.benchmarks.scorers.yes_no.PopeScores",
        "eval.benchmarks.submissions.rows.CallRows",
        "eval.benchmarks.submissions.rows.JsonRows",
        "eval.benchmarks.submissions.tables.Lines",
        "eval.benchmarks.submissions.tables.MmeFiles",
        "eval.benchmarks.submissions.tables.Table",
    }
)
"""The readers, parsers, metrics and submissions that a row may name."""

_REQUIRED = {"reader", "prompt", "parser", "metric", "protocol", "media"}
_OPTIONAL = {"title", "source", "folder", "wants", "option", "system", "generation", "without", "call", "split"}
_OPTIONAL |= {"constant", "given", "hidden", "submission"}
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
HIDDEN = "the references are with a server; python -m eval submit writes the file that it takes"


class CatalogBenchmark(Benchmark):
    """A benchmark that a row of the catalogue describes.

    Args:
        name: Of the row.
        row: The row; see the module.
        data: Folder that holds the benchmark's folder.
        extra: Class paths of the caller's own that the row may name.

    Raises:
        BenchmarkError: If the row is malformed or names a class that is not allowed.
    """

    def __init__(self, name: str, row: Mapping[str, Any], data: str | Path, extra: Iterable[str] = ()) -> None:
        _check_row(name, row)
        self.row, self._extra = dict(row), tuple(extra)
        folder = Path(data) / str(row.get("folder", name))
        self.reader: Reader = build(row["reader"], f"{name}: reader", Reader, self._extra, root=folder)
        self.parser: Parser = build(row["parser"], f"{name}: parser", Parser, self._extra)
        self.metric: Metric = build(row["metric"], f"{name}: metric", Metric, self._extra)
        self.prompt = Prompt(row["prompt"], **({"option": row["option"]} if "option" in row else {}))
        self.call = row.get("call")
        self.given, self.hidden = bool(row.get("given", False)), bool(row.get("hidden", False))
        self.needs_judge = self.metric.needs_judge
        self._constant = ConstantReply(name, row.get("constant"), self.metric, self._other_reader(name, folder))
        self._last: tuple[Prediction, Answer] | None = None
        super().__init__(
            name,
            [f"{name}/{metric}" for metric in self.metric.names],
            str(row["protocol"]),
            data,
            split=str(row.get("split", "test")),
            without=row.get("without"),
            generation=row.get("generation"),
        )

    @property
    def data_sha256(self) -> str:
        """Of the annotation files."""
        return self.reader.sha256

    def records(self) -> Iterator[Sample]:
        """The questions as samples; their media are read when they are asked for."""
        seen: set[str] = set()
        for item in self.reader.items():
            if item.key in seen:
                files = ", ".join(str(path) for path in self.reader.files)
                raise BenchmarkError(f"{self.name}: expected every sample once, got '{item.key}' again in {files}")
            seen.add(item.key)
            yield self._sample(item)

    def answer(self, prediction: Prediction) -> Answer:
        """What the reply says."""
        if self._last is None or self._last[0] is not prediction:
            status = prediction.failure
            answer = Answer(None, status) if status else self.parser.parse(prediction)
            self._last = (prediction, answer)
        return self._last[1]

    def score(self, predictions: Iterable[Prediction]) -> dict[str, Score]:
        """The metric's scores, named after the benchmark; none where the references are with a server."""
        if self.hidden:
            count = sum(1 for _ in predictions)
            return {name: Score(float("nan"), count, None, HIDDEN, na=HIDDEN) for name in self.metrics}
        self.metric.judge = self.judge
        scores = self.metric.score(Answered(row, self.answer(row)) for row in predictions)
        return {f"{self.name}/{name}": score for name, score in scores.items()}

    def right(self, prediction: Prediction) -> bool:
        """As the metric sees it; where the references are with a server, whether the reply could be read."""
        if self.hidden:
            return self.answer(prediction).parsed
        self.metric.judge = self.judge
        return self.metric.right(Answered(prediction, self.answer(prediction)))

    @property
    def constant_na(self) -> str:
        """Why there is no constant reply."""
        return HIDDEN if self.hidden else self._constant.na

    @property
    def constant_about(self) -> str:
        """Where the constant reply comes from."""
        return self._constant.about

    def constant(self, prediction: Prediction) -> Prediction:
        """The row's constant reply, never chosen on the answers that it is scored on."""
        return self._constant(prediction)

    @property
    def submission(self) -> Submission | None:
        """The file that the benchmark's server takes, where a row says what it is."""
        spec = self.row.get("submission")
        if spec is None:
            return None
        made: Submission = build(spec, f"{self.name}: submission", Submission, self._extra)
        made.root = self.reader.root
        return made

    def _other_reader(self, name: str, folder: Path) -> Reader | None:
        """The row's reader of the answers that its constant reply is chosen on."""
        constant = self.row.get("constant")
        if not isinstance(constant, Mapping) or "reader" not in constant:
            return None
        changes = constant["reader"]
        if not isinstance(changes, Mapping) or not changes:
            raise BenchmarkError(f"{name}: constant: reader: expected arguments that change, got {changes!r}")
        spec = {**self.row["reader"], "init_args": {**(self.row["reader"].get("init_args") or {}), **changes}}
        reader: Reader = build(spec, f"{name}: constant", Reader, self._extra, root=folder)
        return reader

    def _sample(self, item: Item) -> Sample:
        system = self.row.get("system")
        turns = [Message("system", (Part("text", text=str(system)),))] if system else []
        turns.append(Message("user", self.prompt.parts(item)))
        gold = (*([Part("text", text=item.answer)] if item.answer else []), *item.calls)
        if gold:
            turns.append(Message("assistant", gold))
        files = {name: f"{name}{_suffix(medium)}" for name, medium in item.media.items()}
        cluster = item.cluster or " ".join(medium.identity for medium in item.media.values()) or item.key
        record = Record(
            key=item.key,
            task=self.name,
            source=str(self.row.get("source", self.name)),
            license="",
            split=self.split,
            messages=tuple(turns),
            media={name: Media(medium.type, files[name], ()) for name, medium in item.media.items()},
            targets=item.targets,
            meta={**item.meta, "cluster": cluster},
        )
        return Sample(item.key, record, MediaMembers({files[name]: medium for name, medium in item.media.items()}))


def read_catalog(*folders: str | Path) -> dict[str, dict[str, Any]]:
    """The rows of all ``*.yaml`` files of folders (or of single files), by name.

    Args:
        *folders: The catalogue's own by default.

    Raises:
        BenchmarkError: If a file is malformed, or a name is there twice.
    """
    rows: dict[str, dict[str, Any]] = {}
    for folder in folders or (CATALOG,):
        path = Path(folder)
        for file in sorted(path.glob("*.yaml")) if path.is_dir() else [path]:
            try:
                values = yaml.load(file.read_text(encoding="utf-8"), Loader=_LOADER)
            except (OSError, yaml.YAMLError) as error:
                raise BenchmarkError(f"'{file}': expected a YAML file of benchmarks, got {error}") from None
            # A name with a dot in front is what other rows share, as a YAML anchor.
            own = values if isinstance(values, dict) else {"": values}
            own = {name: row for name, row in own.items() if not str(name).startswith(".")}
            if not all(isinstance(name, str) and name and isinstance(row, dict) for name, row in own.items()):
                raise BenchmarkError(f"'{file}': expected rows by name, got {type(values).__name__}")
            for name, row in own.items():
                if name in rows:
                    raise BenchmarkError(f"'{file}': benchmark '{name}' is in the catalogue already")
                _check_row(name, row)
                rows[name] = row
    return rows


def catalog_benchmarks(
    data: str | Path, names: Sequence[str], folders: Sequence[str | Path] = (), extra: Iterable[str] = ()
) -> dict[str, Benchmark]:
    """Benchmarks of the catalogue by name.

    Args:
        data: Folder that holds their folders.
        names: Which.
        folders: Other catalogues, beside the shipped one.
        extra: Class paths of the caller's own that rows may name.

    Raises:
        BenchmarkError: For an unknown name, or a row that cannot be built.
    """
    rows = read_catalog(CATALOG, *folders)
    unknown = sorted(set(names) - set(rows))
    if unknown:
        raise BenchmarkError(f"benchmark: expected one of {sorted(rows)}, got {unknown}")
    return {name: CatalogBenchmark(name, rows[name], data, extra) for name in names}


def build(spec: Mapping[str, Any], where: str, kind: type, extra: Iterable[str] = (), **given: Any) -> Any:
    """An object of a row's ``{class_path, init_args}``, whose class path is compared with the allow-list before import.

    Args:
        spec: From the row.
        where: For messages.
        kind: What it must be.
        extra: Allowed on top.
        **given: Further arguments.

    Raises:
        BenchmarkError: If the class is not allowed, is no ``kind``, or does not take the arguments.
    """
    path = spec.get("class_path") if isinstance(spec, Mapping) else None
    allowed = ALLOWED_CLASSES | frozenset(extra)
    if not isinstance(path, str) or path not in allowed:
        raise BenchmarkError(f"{where}: class {path!r} is not allowed; expected one of {sorted(allowed)}")
    unknown = sorted(set(spec) - {"class_path", "init_args"})
    if unknown:
        raise BenchmarkError(f"{where}: expected class_path and init_args, got {unknown}")
    module, _, name = path.rpartition(".")
    made = getattr(importlib.import_module(module), name)
    if not (inspect.isclass(made) and issubclass(made, kind)):
        raise BenchmarkError(f"{where}: expected a {kind.__name__}, got '{path}'")
    arguments = {**given, **(spec.get("init_args") or {})}
    try:
        inspect.signature(made).bind(**arguments)
        return made(**arguments)  # columns that a reader passes on are checked by its base
    except TypeError as error:
        raise BenchmarkError(f"{where}: {path}: {error}") from None


def _check_row(name: str, row: Mapping[str, Any]) -> None:
    missing, unknown = sorted(_REQUIRED - set(row)), sorted(set(row) - _REQUIRED - _OPTIONAL)
    if missing or unknown:
        raise BenchmarkError(
            f"benchmark '{name}': expected the entries {sorted(_REQUIRED)} and perhaps {sorted(_OPTIONAL)}, "
            f"got none of {missing} and unknown {unknown}"
        )
    if row["media"] not in (*MEDIA_TYPES, "text"):
        raise BenchmarkError(
            f"benchmark '{name}': media: expected one of {(*MEDIA_TYPES, 'text')}, got {row['media']!r}"
        )
    if "/" not in str(row["protocol"]) or "@" not in str(row["protocol"]):
        raise BenchmarkError(f"benchmark '{name}': protocol: expected NAME/VARIANT@VERSION, got {row['protocol']!r}")


def _suffix(medium: MediaFile) -> str:
    return medium.path.suffix.lower() if medium.path is not None else ""
