"""What other evaluation code gets wrong, or what is easy to get wrong in these formats: once each, on the real rows."""

from __future__ import annotations

import io
import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch

from data.media import decode_mask, decode_media, encode_mask
from eval.benchmarks.benchmark import BenchmarkError, says
from eval.benchmarks.catalog import CatalogBenchmark
from eval.benchmarks.parsers.regions import to_pixels
from eval.judges.judge import Judge, Template, Verdict
from eval.prediction import Prediction
from tests.eval.benchmarks.fixture import picture, write, write_tsv
from tests.eval.benchmarks.test_catalogue import ROWS, made, rows_of


def prompt_of(benchmark: CatalogBenchmark, key: str) -> str:
    sample = next(sample for sample in benchmark.records() if sample.key == key)
    parts = sample.record.messages[0].content
    return " ".join(part.text if part.type == "text" else f"[{part.media}]" for part in parts)


def score_of(benchmark: CatalogBenchmark, rows: list[Prediction], metric: str) -> float:
    return benchmark.score(rows)[f"{benchmark.name}/{metric}"].value


def test_open_questions_of_mmmu_stay_open(tmp_path: Path) -> None:
    benchmark = made("mmmu", tmp_path)
    key = "validation_Math_3"
    asked = prompt_of(benchmark, key)
    assert asked == "How many in [image1] ?\nAnswer the question using a single word or phrase."
    assert "42" not in asked and "Other" not in asked, "the gold is no option"
    row = next(row for row in rows_of(benchmark) if row.key == key)
    for reply in ("42", "The answer is 42.", "x = 42", "So there are forty-two."):
        assert benchmark.right(says(row, reply)), reply
    assert not benchmark.right(says(row, "There are 4 of them"))
    options = prompt_of(benchmark, "validation_Math_2")
    assert options.startswith("Which one?\n(A) [image1] (B) none"), "an option may be an image"


def test_what_cannot_be_read_is_wrong_and_counted_and_nothing_is_drawn(tmp_path: Path) -> None:
    benchmark = made("mmmu", tmp_path)
    rows = [says(row, "I would rather not say") for row in rows_of(benchmark)]
    assert [benchmark.answer(row).status for row in rows].count("no option named") == 3
    assert {score_of(benchmark, rows, "accuracy") for _ in range(5)} == {0.0}


def test_the_first_character_of_a_word_is_no_letter(tmp_path: Path) -> None:
    benchmark = made("seedbench", tmp_path)
    row = next(row for row in rows_of(benchmark) if row.answer == "A")
    assert benchmark.answer(says(row, "The dog")).value == "A"
    assert not benchmark.answer(says(row, "Cannot tell")).parsed


def test_coordinates_are_read_in_the_declared_convention_only(tmp_path: Path) -> None:
    benchmark = made("refcoco_unit_square", tmp_path)
    row = next(row for row in rows_of(benchmark) if row.meta["box_xyxy"] == [2, 2, 8, 6])  # of an image of 12 x 8
    # Padded to 12 x 12 around its centre, two rows lie above: y moves by 2.
    assert benchmark.right(says(row, "[0.167, 0.333, 0.667, 0.667]"))
    assert not benchmark.right(says(row, "[2, 2, 8, 6]")), "in pixels it would fit the gold"
    assert to_pixels([0.25, 0.5, 0.75, 1.0], [200, 100], "unit-square") == [50, 50, 150, 150]
    assert to_pixels([0.25, 0.5, 0.75, 1.0], [100, 200], "unit-square") == [0, 100, 100, 200]
    assert to_pixels([250, 500, 750, 1000], [200, 100], "thousandths") == [50, 50, 150, 100]
    two = says(row, "[0.9, 0.9, 1.0, 1.0] or [0.167, 0.333, 0.667, 0.667]")
    assert not benchmark.right(two), "the first box counts, not the best one"


def test_refcoco_reads_data_and_runs_nothing(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "owned",))

    benchmark = made("refcoco", tmp_path)
    write(tmp_path / "refcoco" / "refs(unc).p", pickle.dumps([Attack()]))
    with pytest.raises(BenchmarkError, match="plain data"):
        list(benchmark.records())
    assert not (tmp_path / "owned").exists()


def test_reasonseg_scores_the_first_sentence_and_drops_ignored_pixels(tmp_path: Path) -> None:
    benchmark = made("reasonseg", tmp_path)
    assert [row.key for row in rows_of(benchmark)] == ["0/0", "1/0", "2/0", "3/0"]
    assert prompt_of(benchmark, "0/0") == "[image] Segment the thing."
    assert prompt_of(benchmark, "1/0") == "[image] What is held?"
    row = benchmark.gold(rows_of(benchmark)[1])
    mask = decode_mask(row.results[0]["mask"])  # type: ignore[index]
    mask[:, 6:12] = True  # only pixels that count neither way
    more = replace(row, results=[{"type": "mask", "mask": encode_mask(mask)}])
    assert score_of(benchmark, [more], "giou") == 1.0
    other = replace(row, results=[{"type": "mask", "mask": encode_mask(torch.ones(3, 3, dtype=torch.bool))}])
    assert score_of(benchmark, [other], "giou") == 0.0, "a mask of another size"


def test_direct_answers_leave_difficult_questions_out_and_count_missing_ones(tmp_path: Path) -> None:
    benchmark = made("aokvqa_direct", tmp_path)
    rows = rows_of(benchmark)
    assert [row.key for row in rows] == ["id0", "id1", "id2", "id3"]
    assert score_of(benchmark, [says(row, "red") for row in rows], "accuracy") == pytest.approx(0.75)
    assert score_of(benchmark, [says(row, "Red") for row in rows], "accuracy") == 0.0, "compared as it stands"


def test_a_raw_yes_against_ten_is_wrong_under_one_normaliser_only(tmp_path: Path) -> None:
    benchmark = made("vqav2", tmp_path)
    rows = rows_of(benchmark)
    golds = json.dumps([row.meta["answers"] for row in rows])
    scores = benchmark.score([says(rows[0], "Yes")])
    assert scores["vqav2/accuracy"].value == 0.0 and scores["vqav2/accuracy_evalai"].value == 1.0
    assert json.dumps([row.meta["answers"] for row in rows]) == golds
    assert rows[0].cluster == rows[1].cluster != rows[2].cluster, "two questions about one image"


def test_questions_and_annotations_must_belong_together(tmp_path: Path) -> None:
    benchmark = made("vqav2", tmp_path)
    path = tmp_path / "vqav2" / "v2_mscoco_val2014_annotations.json"
    value = json.loads(path.read_text())
    write(path, {"annotations": value["annotations"][1:]})
    with pytest.raises(BenchmarkError, match=r"row 1: expected question_id 0 in 'v2_mscoco"):
        list(benchmark.records())
    write(path, {"annotations": [*value["annotations"], {**value["annotations"][0], "question_id": 5}]})
    with pytest.raises(BenchmarkError, match=r"got none for 1, such as 5"):
        list(benchmark.records())


def test_ocr_tokens_are_another_protocol(tmp_path: Path) -> None:
    plain, hinted = made("textvqa", tmp_path), made("textvqa_ocr", tmp_path)
    assert "Reference OCR token: main, st\n" in prompt_of(hinted, "34603")
    assert "OCR" not in prompt_of(plain, "34603")
    assert plain.protocol != hinted.protocol


def test_unanswerable_questions_have_precision_and_recall(tmp_path: Path) -> None:
    benchmark = made("vizwiz", tmp_path)
    rows = rows_of(benchmark)
    replies = ["Unanswerable", "soup", "unanswerable.", "blue"]
    score = benchmark.score(says(row, reply) for row, reply in zip(rows, replies, strict=True))["vizwiz/accuracy"]
    assert score.parts["unanswerable: precision"].value == 0.5
    assert score.parts["unanswerable: recall"].value == 0.5


def test_half_of_mme_says_so(tmp_path: Path) -> None:
    benchmark = made("mme", tmp_path)
    rows = [benchmark.gold(row) for row in rows_of(benchmark)][:3]  # one pair, one half
    score = benchmark.score(rows)["mme/perception"]
    assert score.value == pytest.approx(200 + 100) and "1 images have one answer only" in score.protocol
    assert benchmark.score(rows)["mme/cognition"].na
    assert "Please answer yes or no" not in prompt_of(benchmark, rows[0].key)


def test_rotations_are_made_or_read(tmp_path: Path) -> None:
    benchmark = made("mmbench", tmp_path)
    rows = rows_of(benchmark)
    assert [row.key for row in rows if row.meta["group"] == 1] == ["1", "1000001", "2000001"]
    assert prompt_of(benchmark, "1000001").startswith("[image] Think.\nWhich colour?\nA. green\nB. red\nC. blue\n")
    gold = [benchmark.gold(row) for row in rows]
    part = benchmark.score(gold[:4])["mmbench/circular"]  # group 0, and two of three rotations of group 1
    assert part.value == 0.5 and part.n == 4 and "1 whose rotations were not all asked" in part.protocol
    one_wrong = [says(row, "C") if row.key == "2000001" else row for row in gold]
    scores = benchmark.score(one_wrong)
    assert scores["mmbench/circular"].value == pytest.approx(2 / 3) and scores["mmbench/vanilla"].value == 1.0
    # A file that holds its rotations is asked as it is.
    lines = (tmp_path / "mmbench" / "mmbench_dev_en.tsv").read_text().splitlines()
    first = dict(zip(lines[0].split("\t"), lines[1].split("\t"), strict=True))
    shifted = {**first, "index": "1000000", "A": "blue", "B": "red", "answer": "A", "image": "0"}
    write_tsv(tmp_path / "mmbench" / "mmbench_dev_en.tsv", [first, shifted])
    assert [row.key for row in rows_of(benchmark)] == ["0", "1000000"]
    assert len(rows_of(CatalogBenchmark("mmbench_vanilla", ROWS["mmbench_vanilla"], tmp_path))) == 1


def test_captions_of_a_part_mean_nothing_and_say_so(tmp_path: Path) -> None:
    benchmark = made("nocaps", tmp_path)
    scores = benchmark.score(benchmark.gold(row) for row in rows_of(benchmark))
    assert scores["nocaps/cider"].corpus and "Java" in scores["nocaps/cider"].protocol
    assert set(scores["nocaps/cider"].parts) == {"domain: in-domain", "domain: near-domain", "domain: out-domain"}
    assert not any("meteor" in name or "spice" in name for name in scores)


def test_a_slip_of_case_costs_in_translation(tmp_path: Path) -> None:
    benchmark = made("covost2_en_de", tmp_path)
    rows = rows_of(benchmark)
    slipped = benchmark.score(says(row, row.answer.lower().replace(",", "")) for row in rows)["covost2_en_de/bleu"]
    assert slipped.value < 70 and "case:mixed" in slipped.protocol and "tok:13a" in slipped.protocol
    chinese = made("covost2_en_zh", tmp_path)
    assert "tok:zh" in chinese.score(map(chinese.gold, rows_of(chinese)))["covost2_en_zh/bleu"].protocol


def test_transcripts_are_normalised_by_one_named_normaliser(tmp_path: Path) -> None:
    benchmark = made("librispeech_clean", tmp_path)
    rows = rows_of(benchmark)
    replies = ["Mr. Quilter is the apostle", "nor is he glad.", "He tells us", "Linnell's pictures"]
    score = benchmark.score(says(r, t) for r, t in zip(rows, replies, strict=True))["librispeech_clean/wer"]
    assert score.value == 0.0 and "whisper-english without spelling table" in score.protocol
    assert score_of(benchmark, [says(rows[0], ""), says(rows[1], rows[1].answer)], "wer") == pytest.approx(5 / 9)


def test_talks_are_cut_where_the_cuts_say(tmp_path: Path) -> None:
    benchmark = made("mustc_en_de", tmp_path)
    samples = list(benchmark.records())
    assert [sample.key for sample in samples[:2]] == ["ted_1/0", "ted_1/1"]
    (item,) = samples[1].record.media.values()
    cut = decode_media(item, samples[1].members[item.file])
    assert (len(cut.waveform), cut.sample_rate) == (800, 16_000)  # type: ignore[union-attr]
    whole, _ = soundfile.read(tmp_path / "mustc/en-de/data/tst-COMMON/wav/ted_1.wav", dtype="float32")
    assert torch.equal(cut.waveform, torch.from_numpy(whole[800:1600]))  # type: ignore[union-attr]
    stream = io.BytesIO()
    soundfile.write(stream, whole[:900], 16_000, format="WAV", subtype="PCM_16")
    write(tmp_path / "mustc/en-de/data/tst-COMMON/wav/ted_1.wav", stream.getvalue())
    with pytest.raises(ValueError, match=r"ted_1\.wav.*expected 0\.05 s"):
        _ = samples[1].members[item.file]
    path = tmp_path / "mustc/en-de/data/tst-COMMON/txt/tst-COMMON.de"
    path.write_text("ein Satz\n")
    with pytest.raises(BenchmarkError, match="4 cuts and 4 and 1 lines"):
        list(benchmark.records())


def test_physbench_shows_media_in_their_slots_and_divides_by_all(tmp_path: Path) -> None:
    benchmark = made("physbench", tmp_path)
    assert prompt_of(benchmark, "0").startswith("[image0] and [image1] Which is heavier?")
    assert prompt_of(benchmark, "1").startswith("[video0] Which is heavier?")
    rows = rows_of(benchmark)
    assert [row.key for row in rows] == ["0", "1", "2", "3"], "test questions have no labels"
    replies = [says(rows[0], "B"), says(rows[1], "B. right"), replace(rows[2], finish_reason="length"), rows[3]]
    score = benchmark.score(replies)["physbench/accuracy"]
    assert score.value == 0.5 and score.n == 4
    assert not benchmark.right(says(rows[0], "The answer is B")), "its rule is the first letter"


def test_scores_of_heads_rank_trials_and_a_missing_one_is_the_worst(tmp_path: Path) -> None:
    benchmark = made("voxceleb", tmp_path)
    rows = rows_of(benchmark)
    values = [0.9, 0.2, 0.6, 0.7]
    replies = [
        replace(row, results=[{"type": "score", "score": value}]) for row, value in zip(rows, values, strict=True)
    ]
    assert score_of(benchmark, replies, "eer") == pytest.approx(0.5)
    replies[3] = replace(rows[3], results=[{"type": "score", "score": 0.1}])
    assert score_of(benchmark, replies, "eer") == 0.0
    replies[0] = says(rows[0], "hard to say")
    assert score_of(benchmark, replies, "eer") == pytest.approx(0.5), "below every impostor"


def test_ranks_are_filtered_and_ties_averaged(tmp_path: Path) -> None:
    benchmark = made("wn18rr", tmp_path)
    rows = {row.key: row for row in rows_of(benchmark)}
    row = rows["0/tail"]  # (a, likes, d); b and c are right as well; five entities
    assert row.answer == "d" and row.meta["known"] == ["b", "c"] and row.meta["num_candidates"] == 5
    assert prompt_of(benchmark, "0/tail").endswith("a – likes – ?\nName the entity in the place of the question mark.")
    assert prompt_of(benchmark, "1/head").endswith("? – knows – a\nName the entity in the place of the question mark.")

    def mrr(**scores: float) -> float:
        result = {"type": "label", "label": "b", "probabilities": scores}
        return score_of(benchmark, [replace(row, results=[result])], "mrr")

    assert mrr(a=0.1, b=0.9, c=0.8, d=0.5, e=0.2) == 1.0, "b and c do not count against d"
    assert mrr(a=0.5, b=0.9, c=0.8, d=0.5, e=0.5) == pytest.approx(1 / 2), "tied with a and e"
    assert mrr(a=0.5) == pytest.approx(1 / 2.5), "below a, and tied with e"
    assert score_of(benchmark, [says(row, "d")], "mrr") == 1.0
    assert score_of(benchmark, [says(row, "b")], "mrr") == pytest.approx(1 / 2), "a right one names no wrong one"


def test_listing_every_class_is_no_answer(tmp_path: Path) -> None:
    benchmark = made("arxiv_nodes", tmp_path)
    row = next(row for row in rows_of(benchmark) if row.answer == "cs.CL")
    scores = benchmark.score([says(row, "cs.CL, cs.LG")])
    assert scores["arxiv_nodes/accuracy"].value == scores["arxiv_nodes/mentioned"].value == 0.0
    scores = benchmark.score([says(row, "It is cs.CL, I think")])
    assert scores["arxiv_nodes/accuracy"].value == 0.0 and scores["arxiv_nodes/mentioned"].value == 1.0


def test_asked_links_are_hidden_from_the_neighbourhoods(tmp_path: Path) -> None:
    benchmark = made("arxiv_links", tmp_path)
    samples = list(benchmark.records())
    again = [sample.key for sample in benchmark.records()]
    assert [sample.key for sample in samples] == again, "the same pairs every time"
    linked = {sample.key for sample in samples if sample.record.meta["match"]}
    for sample in samples:
        for item in sample.record.media.values():
            graph = decode_media(item, sample.members[item.file])
            papers = [text.split()[1] for text in graph.node_texts]  # type: ignore[union-attr]
            for a, b in graph.edge_index.T.tolist():  # type: ignore[union-attr]
                assert f"{int(papers[a]) + 900} {int(papers[b]) + 900}" not in linked
    assert sum(sample.record.meta["match"] for sample in samples) == len(samples) / 2


def test_detection_by_calls(tmp_path: Path) -> None:
    benchmark = made("coco_detection", tmp_path)
    rows = rows_of(benchmark)
    assert prompt_of(benchmark, "0") == "[image] Locate every object of these categories: cat, dog."
    assert [len(row.reference["calls"]) for row in rows] == [1, 2, 1, 0]
    gold = [benchmark.gold(row) for row in rows]
    renamed = [{**call, "prompt": "zebra"} for call in gold[0].calls]
    score = benchmark.score([replace(gold[0], calls=renamed), *gold[1:]])["coco_detection/ap"]
    assert score.value < 1.0 and "1 boxes of other prompts" in score.protocol
    region = replace(gold[0], results=[None])  # the head refused, the region of the call stands
    assert benchmark.right(region)


def test_hugging_face_directories_are_rows_too(tmp_path: Path) -> None:
    """Parquet as ``datasets`` writes it: images as bytes, a row of one's own."""
    table = [
        {"question_id": i, "image": {"bytes": picture(i), "path": None}, "question": "what?", "answers": ["stop"] * 10}
        for i in range(4)
    ]
    (tmp_path / "textvqa_hf" / "data").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "textvqa_hf" / "data" / "validation-00000-of-00001.parquet")
    row = {
        **{name: value for name, value in ROWS["textvqa"].items() if name != "constant"},
        "reader": {
            "class_path": "eval.benchmarks.readers.rows.TableReader",
            "init_args": {
                "file": "data/validation-*.parquet",
                "key": "question_id",
                "media": {"image": "image"},
                "answer": {"any": "answers"},
            },
        },
    }
    benchmark = CatalogBenchmark("textvqa_hf", row, tmp_path)
    rows = rows_of(benchmark)
    assert score_of(benchmark, [benchmark.gold(item) for item in rows], "accuracy") == 1.0
    sample = next(iter(benchmark.records()))
    (item,) = sample.record.media.values()
    assert decode_media(item, sample.members[item.file]).shape == (3, 8, 12)  # type: ignore[union-attr]


def test_without_a_judge_there_is_no_number(tmp_path: Path) -> None:
    for name, metric in (("mmvet", "grade"), ("audiobench_qa", "grade"), ("mathvista", "accuracy")):
        benchmark = made(name, tmp_path)
        benchmark.judge = None
        scores = benchmark.score(says(row, "It is something else.") for row in rows_of(benchmark))
        score = scores[f"{name}/{metric}"]
        assert score.na.startswith("no judge") and score.value != score.value, "not 0, and no other metric instead"


def test_mathvista_asks_a_judge_for_what_no_rule_can_read(tmp_path: Path) -> None:
    asked = []

    class Extractor(Judge):
        identity = "extractor"

        def verdicts(self, template: Template, payloads: Any) -> Any:
            for payload in payloads:
                asked.append(payload["reply"])
                assert "answer" not in payload, "it does not see the gold"
                yield Verdict("(B)" if "second" in payload["reply"] else "14.0")

    benchmark = made("mathvista", tmp_path)
    benchmark.judge = Extractor()
    replies = ["The second option fits.", "I count fourteen.", "1.23", "14"]
    rows = [says(row, reply) for row, reply in zip(rows_of(benchmark), replies, strict=True)]
    scores = benchmark.score(rows)
    assert asked == replies[:2]
    assert scores["mathvista/accuracy"].value == 1.0 and scores["mathvista/rule_accuracy"].value == 0.5
    assert "judge extractor" in scores["mathvista/accuracy"].protocol
