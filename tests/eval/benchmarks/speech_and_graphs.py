"""Fixtures of speech and of graphs."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

from tests.eval.benchmarks.fixture import Fixture, clip, repeat, write, write_tsv


def librispeech(folder_name: str) -> Any:
    def make(folder: Path) -> None:
        lines = ["MISTER QUILTER IS THE APOSTLE", "NOR IS HE GLAD", "HE TELLS US", "LINNELL'S PICTURES"]
        for speaker, own in (("61", lines[:2]), ("908", lines[2:])):
            chapter = folder / folder_name / speaker / "70968"
            names = [f"{speaker}-70968-{n:04d}" for n in range(len(own))]
            for n, name in enumerate(names):
                write(chapter / f"{name}.flac", clip(kind="FLAC", seed=n))
            text = "".join(f"{name} {line}\n" for name, line in zip(names, own, strict=True))
            write(chapter / f"{speaker}-70968.trans.txt", text)

    return make


def voice(file: str, translations: list[str]) -> Any:
    def make(folder: Path) -> None:
        rows = []
        for i, text in enumerate(translations):
            write(folder / "clips" / f"common_voice_{i}.mp3", clip(seed=i))
            rows.append(
                {
                    "client_id": f"speaker{i // 2}",
                    "path": f"common_voice_{i}.mp3",
                    "sentence": f"Sentence number {i}.",
                    "translation": text,
                }
            )
        write_tsv(folder / file, rows)

    return make


GERMAN = ["Das ist der erste Satz, oder?", "Hier steht noch ein Satz.", "Das ist der erste Satz, oder?", "Ein Ende."]
CHINESE = ["今天天气很好。", "他明天去北京。", "今天天气很好。", "我们在学校学习。"]


def mustc(folder: Path) -> None:
    base = folder / "en-de" / "data" / "tst-COMMON"
    write(base / "wav" / "ted_1.wav", clip(0.2))
    cuts = [f"- {{duration: 0.05, offset: {0.05 * n}, speaker_id: spk.1, wav: ted_1.wav}}" for n in range(4)]
    write(base / "txt" / "tst-COMMON.yaml", "\n".join(cuts) + "\n")
    write(base / "txt" / "tst-COMMON.en", "".join(f"Sentence {n}.\n" for n in range(4)))
    write(base / "txt" / "tst-COMMON.de", "".join(f"{text}\n" for text in GERMAN))


def voxceleb(folder: Path) -> None:
    lines = []
    for label, first, second in ((1, "a/1", "a/2"), (0, "a/1", "b/1"), (1, "b/1", "b/2"), (0, "b/2", "c/1")):
        for name in (first, second):
            write(folder / "wav" / f"{name}.wav", clip())
        lines.append(f"{label} {first}.wav {second}.wav")
    write(folder / "veri_test2.txt", "\n".join(lines) + "\n")


def iemocap(folder: Path) -> None:
    session = folder / "Session5"
    emotions = ["neu", "exc", "hap", "fru", "ang", "neu"]
    lines = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""]
    for n, emotion in enumerate(emotions):
        name = f"Ses05F_impro01_F{n:03d}"
        lines += [f"[{n}.1000 - {n}.9000]\t{name}\t{emotion}\t[2.5000, 2.5000, 2.5000]", "C-E2:\tNeutral;\t()", ""]
        write(session / "sentences" / "wav" / "Ses05F_impro01" / f"{name}.wav", clip(seed=n))
    write(session / "dialog" / "EmoEvaluation" / "Ses05F_impro01.txt", "\n".join(lines))


def gaokao(folder: Path) -> None:
    rows = []
    for i, gold in enumerate("ABAC"):
        write(folder / f"{i}.wav", clip(seed=i))
        rows.append(
            {
                "id": str(i),
                "audio": f"{i}.wav",
                "n_frames": "160000",
                "prompt": "What will they do? A. Read. B. Swim. C. Sleep.",
                "tgt_text": gold,
                "with_speech": "True",
            }
        )
    write_tsv(folder / "gaokao.tsv", rows)


def arxiv(folder: Path) -> None:
    def packed(name: str, lines: list[str]) -> None:
        write(folder / name, gzip.compress(("\n".join(lines) + "\n").encode()))

    edges = [(i, (i + 1) % 10) for i in range(10)] + [(i, (i + 3) % 10) for i in range(10)]
    packed("raw/edge.csv.gz", [f"{a},{b}" for a, b in edges])
    packed("raw/node-label.csv.gz", [str(int(i >= 6)) for i in range(10)])
    packed("mapping/nodeidx2paperid.csv.gz", ["node idx,paper id", *(f"{i},{900 + i}" for i in range(10))])
    packed("mapping/labelidx2arxivcategeory.csv.gz", ["label idx,arxiv category", "0,arxiv cs lg", "1,arxiv cs cl"])
    for split, nodes in (("train", range(4)), ("valid", range(4, 5)), ("test", range(5, 9))):
        packed(f"split/time/{split}.csv.gz", [str(node) for node in nodes])
    write(folder / "titleabs.tsv", "".join(f"{900 + i}\tTitle {i}\tAbstract of {i}.\n" for i in range(10)))


def cora(folder: Path) -> None:
    names = [str(31336 + i) for i in range(20)]
    lines = [
        "\t".join([name, *("1" if (i + k) % 3 == 0 else "0" for k in range(5)), "Theory" if i % 2 else "Case_Based"])
        for i, name in enumerate(names)
    ]
    write(folder / "cora.content", "\n".join(lines) + "\n")
    cites = [f"{names[i]}\t{names[(i + k) % 20]}" for i in range(20) for k in (1, 4)]
    write(folder / "cora.cites", "\n".join(cites) + "\n")


def pubmed(folder: Path) -> None:
    words = ["w-rat", "w-insulin", "w-child"]
    header = "cat=1,2,3:label\t" + "\t".join(f"numeric:{word}:0.0" for word in words) + "\tsummary:string"
    lines = ["NODE\tpaper", header]
    for i in range(20):
        own = [f"{word}={0.1 * (k + 1):.2f}" for k, word in enumerate(words) if (i + k) % 2]
        listed = ",".join(word.split("=")[0] for word in own)
        lines.append("\t".join([str(1000 + i), f"label={1 + i % 2}", *own, f"summary={listed}"]))
    write(folder / "Pubmed-Diabetes.NODE.paper.tab", "\n".join(lines) + "\n")
    edges = [f"{n}\tpaper:{1000 + n}\t|\tpaper:{1000 + (n + k) % 20}" for n in range(20) for k in (1, 4)]
    write(folder / "Pubmed-Diabetes.DIRECTED.cites.tab", "\n".join(["DIRECTED\tcites", "NO_FEATURES", *edges]) + "\n")


def triples(texts: bool) -> Any:
    def make(folder: Path) -> None:
        write(folder / "train.txt", "\n".join(["a\tlikes\tb", "a\tlikes\tc", "b\tlikes\td", "c\tknows\td"]) + "\n")
        write(folder / "valid.txt", "d\tknows\te\n")
        write(folder / "test.txt", "a\tlikes\td\nd\tknows\ta\n")
        if texts:
            write(folder / "entity2text.txt", "".join(f"{name}\tEntity {name.upper()}\n" for name in "abcde"))

    return make


def mustc_with_dev(folder: Path) -> None:
    mustc(folder)
    base = folder / "en-de" / "data"
    for end in ("yaml", "en", "de"):
        write(base / "dev" / "txt" / f"dev.{end}", (base / "tst-COMMON" / "txt" / f"tst-COMMON.{end}").read_text())


def iemocap_with_others(folder: Path) -> None:
    iemocap(folder)
    own = folder / "Session5" / "dialog" / "EmoEvaluation" / "Ses05F_impro01.txt"
    for number in range(1, 5):
        other = folder / f"Session{number}" / "dialog" / "EmoEvaluation" / f"Ses0{number}F_impro01.txt"
        write(other, own.read_text().replace("Ses05", f"Ses0{number}"))


def iemocap_again(folder: Path) -> None:
    path = folder / "Session5" / "dialog" / "EmoEvaluation" / "Ses05F_impro01.txt"
    lines = path.read_text().split("\n")
    path.write_text("\n".join([*lines, lines[2], ""]))


def arxiv_again(folder: Path) -> None:
    path = folder / "mapping" / "nodeidx2paperid.csv.gz"
    lines = gzip.decompress(path.read_bytes()).decode().replace("\n5,905\n", "\n5,906\n")
    path.write_bytes(gzip.compress(lines.encode()))


_ERRORS = {"eer": 0.5, "min_dcf": 1.0}
_VERIFICATION = Fixture(voxceleb, 4, _ERRORS, again=repeat("veri_test2.txt"))
_TIES = {"auc": 0.5, "ap": 0.5, "accuracy": 0.5}
NO_TRIPLE_IDS = "its triples are numbered"


def covost(file: str, dev: str, texts: list[str]) -> Fixture:
    return Fixture(voice(file, texts), 4, {}, {"bleu": 100.0}, repeat(file), {file: dev})


FIXTURES = {
    "librispeech_clean": Fixture(
        librispeech("test-clean"), 4, {"wer": 1.0}, again=repeat("test-clean/61/70968/61-70968.trans.txt")
    ),
    "librispeech_other": Fixture(
        librispeech("test-other"), 4, {"wer": 1.0}, again=repeat("test-other/61/70968/61-70968.trans.txt")
    ),
    "covost2_en_de": covost("covost_v2.en_de.test.tsv", "covost_v2.en_de.dev.tsv", GERMAN),
    "covost2_en_zh": covost("covost_v2.en_zh-CN.test.tsv", "covost_v2.en_zh-CN.dev.tsv", CHINESE),
    "covost2_de_en": covost("covost_v2.de_en.test.tsv", "covost_v2.de_en.dev.tsv", GERMAN),
    "mustc_en_de": Fixture(mustc_with_dev, 4, {}, {"bleu": 100.0}, no_ids="its cuts are numbered"),
    "voxceleb": _VERIFICATION,
    # Five clips in four trials, all of them alike.
    "voxceleb_vectors": Fixture(voxceleb, 5, _ERRORS, again=repeat("veri_test2.txt")),
    # Neutral 2 of 5, happy 2 of 5 (hap and exc), angry 1; frustration is not asked. "happy" is first in the alphabet.
    "iemocap": Fixture(
        iemocap_with_others,
        5,
        {"accuracy": 0.4, "mentioned": 0.4, "balanced_accuracy": 1 / 3, "macro_f1": (4 / 7) / 3},
        again=iemocap_again,
    ),
    "gaokao_speech": Fixture(gaokao, 4, {"accuracy": 0.5}, again=repeat("gaokao.tsv")),
    # Test nodes 5 to 8: one of cs.LG, three of cs.CL; the validation node is of cs.LG.
    "arxiv_nodes": Fixture(arxiv, 4, {"accuracy": 0.25, "balanced_accuracy": 0.5}, again=arxiv_again, no_media=True),
    "arxiv_links": Fixture(arxiv, 16, _TIES, again=arxiv_again, no_media=True),
    "cora_nodes": Fixture(cora, 4, {}, no_media=True, again=repeat("cora.content")),
    "cora_links": Fixture(cora, 16, _TIES, no_media=True, again=repeat("cora.content")),
    "pubmed_nodes": Fixture(pubmed, 4, {}, no_media=True, again=repeat("Pubmed-Diabetes.NODE.paper.tab")),
    "pubmed_links": Fixture(pubmed, 16, _TIES, no_media=True, again=repeat("Pubmed-Diabetes.NODE.paper.tab")),
    "wn18rr": Fixture(triples(False), 4, {}, no_ids=NO_TRIPLE_IDS, no_media=True),
    "fb15k237": Fixture(triples(True), 4, {}, no_ids=NO_TRIPLE_IDS, no_media=True),
    # Five entities and two triples from either side. Everything ties: after a, likes, d a and e are left, so rank 2; of
    # heads of likes, d the known ones leave three others, rank 2.5; of d, knows four, rank 2.5; of knows, a four, 3.
    "wn18rr_vectors": Fixture(triples(True), 9, {"hits1": 0.0}, no_ids=NO_TRIPLE_IDS, no_media=True),
    "fb15k237_vectors": Fixture(triples(True), 9, {"hits1": 0.0}, no_ids=NO_TRIPLE_IDS, no_media=True),
}
