"""The documents say what is there: a row per paper, existing paths, the tree of the README."""

from __future__ import annotations

import ast
import hashlib
import json
import re
import tomllib
from importlib import import_module
from itertools import chain
from pathlib import Path

import pytest

from data.shards import expand, read_samples
from tests.test_architecture import tracked_files

ROOT = Path(__file__).parents[1]
COLUMNS = ("#", "Paper", "Mechanism", "Where", "Config", "Test", "Command", "Measured", "Status", "Left out")
STATUSES = ("works", "partly", "not yet")
TITLES_SHA256 = "116dc20d39a0a67080f815d686500b37d02cc20fe147f5fefdf4f361f0957bff"
"""Of the lines ``NUMBER. TITLE`` of the 71 papers, joined by newlines."""


def read_rows(text: str) -> list[dict[str, str]]:
    """The rows of the table of methods, keyed by column."""
    table = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table]
    assert tuple(cells[0]) == COLUMNS
    assert set(table[1]) <= set("|:-")
    return [dict(zip(COLUMNS, row, strict=True)) for row in cells[2:]]


def paths_of(row: dict[str, str]) -> tuple[list[str], list[str]]:
    """(existing, planned) paths that the columns Where, Config and Test name."""
    cells = " ".join(row[column] for column in ("Where", "Config", "Test"))
    found = re.findall(r"(planned )?`([^`]+)`", cells)
    return [path for mark, path in found if not mark], [path for mark, path in found if mark]


def problems_of(row: dict[str, str], root: Path) -> list[str]:
    """What is wrong with a row, given the files below ``root``."""
    name = f"paper {row['#']}"
    named, planned = paths_of(row)
    found = [f"{name}: {path} does not exist" for path in named if not (root / path).exists()]
    found += [f"{name}: {path} exists and is still marked planned" for path in planned if (root / path).is_file()]
    if row["Status"] not in STATUSES:
        found.append(f"{name}: status '{row['Status']}', expected one of {STATUSES}")
    if row["Status"] in ("works", "partly") and not (named and row["Test"] != "–" and row["Command"] != "–"):
        found.append(f"{name}: '{row['Status']}' needs an existing file, a test and a command")
    if row["Status"] == "partly" and row["Left out"] == "–":
        found.append(f"{name}: 'partly' needs what was left out")
    if row["Status"] == "not yet" and not (named or planned):
        found.append(f"{name}: says nowhere where it will live")
    if row["Status"] == "works":
        found += _problems_of_result(name, row["Command"], root)
    return found


def _problems_of_result(name: str, command: str, root: Path) -> list[str]:
    match = re.search(r"make demonstrations NAME=([a-z0-9_]+)", command)
    if not match:
        return [f"{name}: 'works' needs the command make demonstrations NAME=..., got {command}"]
    scripts = sorted((root / "demonstrations").glob(f"*/{match[1]}.py"))
    results = [script.with_suffix(".json") for script in scripts if script.with_suffix(".json").is_file()]
    if not results:
        return [f"{name}: 'works' needs {match[1]}.py and its committed {match[1]}.json in a folder of demonstrations/"]
    value = json.loads(results[0].read_text())
    missing = {"seeds", "arms", "controls", "holds"} - set(value)
    if missing:
        return [f"{name}: {results[0].name} lacks {sorted(missing)}"]
    return [] if value["holds"] else [f"{name}: 'works', but the claims of {results[0].name} do not hold"]


def test_every_paper_has_its_row() -> None:
    rows = read_rows((ROOT / "docs" / "methods.md").read_text())
    assert [row["#"] for row in rows] == [str(number) for number in range(1, 72)]
    lines = "\n".join(f"{row['#']}. {row['Paper']}" for row in rows)
    assert hashlib.sha256(lines.encode()).hexdigest() == TITLES_SHA256, "a title differs from the list of papers"
    assert [problem for row in rows for problem in problems_of(row, ROOT)] == []


_ROW = {
    **dict.fromkeys(COLUMNS, "–"),
    "#": "1",
    "Where": "`heads/a.py`",
    "Test": "`tests/a.py`",
    "Command": "`make demonstrations NAME=a`",
    "Status": "works",
    "Left out": "nothing",
}


@pytest.mark.parametrize(
    ("changes", "files", "expected"),
    [
        ({}, ("demonstrations/b/a.py", "demonstrations/b/a.json"), None),
        ({"Where": "`heads/b.py`"}, ("demonstrations/b/a.py", "demonstrations/b/a.json"), "heads/b.py does not exist"),
        ({}, ("demonstrations/b/a.py",), "committed a.json"),
        ({"Command": "`make quickstart`"}, (), "needs the command make demonstrations"),
        ({"Status": "done"}, (), "status 'done'"),
        ({"Status": "partly", "Test": "–"}, (), "needs an existing file, a test and a command"),
        ({"Status": "partly", "Left out": "–"}, (), "what was left out"),
        ({"Status": "not yet", "Where": "–", "Test": "–"}, (), "nowhere"),
        ({"Status": "not yet", "Where": "planned `heads/a.py`"}, (), "still marked planned"),
        ({"Status": "not yet", "Where": "planned `heads/b.py`, planned `heads/c.py`"}, (), None),
    ],
)
def test_a_wrong_row_is_reported(
    changes: dict[str, str], files: tuple[str, ...], expected: str | None, tmp_path: Path
) -> None:
    for path in ("heads/a.py", "tests/a.py", *files):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text('{"seeds": [], "arms": {}, "controls": {}, "holds": true}')
    problems = problems_of({**_ROW, **changes}, tmp_path)
    assert bool(problems) == (expected is not None)
    assert expected is None or expected in "; ".join(problems)


def test_a_claim_that_does_not_hold_does_not_work(tmp_path: Path) -> None:
    folder = tmp_path / "demonstrations" / "b"
    folder.mkdir(parents=True)
    (folder / "a.py").touch()
    (folder / "a.json").write_text('{"seeds": [], "arms": {}, "controls": {}, "holds": false}')
    assert _problems_of_result("1", _ROW["Command"], tmp_path) == ["1: 'works', but the claims of a.json do not hold"]


def test_the_readme_shows_the_tree_as_it_is() -> None:
    readme = (ROOT / "README.md").read_text()
    shown = set(re.findall(r"^([a-z_]+)/ {2,}\S", readme, flags=re.MULTILINE))
    tracked = {path.split("/")[0] for path in tracked_files(ROOT) if "/" in path}
    assert shown == {folder for folder in tracked if not folder.startswith(".")}


def test_the_readme_names_the_two_commands_and_existing_files() -> None:
    readme = (ROOT / "README.md").read_text()
    for command in ("make quickstart", "make test"):
        assert command in readme
        assert re.search(rf"^{command.split()[1]}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)\)", readme) + re.findall(r'src(?:set)?="([^"]+)"', readme)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_readmes_python_uses_names_that_exist() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert len(blocks) == 2
    imports = [node for block in blocks for node in ast.parse(block).body if isinstance(node, ast.ImportFrom)]
    for node in imports:
        module = import_module(str(node.module))
        assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


def test_the_readmes_record_is_written_as_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photo.jpg").write_bytes(b"a photo")
    block = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)[1]
    exec(block, {})
    (sample,) = read_samples(expand("my_data/train"))
    assert sample.members == {"photo.jpg": b"a photo"}
    assert sample.record.messages[1].content[1].task == "ground"


def test_every_requirement_has_its_tested_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = chain(project["dependencies"], *project["optional-dependencies"].values())
    wanted = {_normal(re.split(r"[\s<>=!\[;]", requirement, maxsplit=1)[0]) for requirement in requirements}
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pinned = dict(line.split("==") for line in lines)
    assert all(re.fullmatch(r"[\w.]+", version) for version in pinned.values())
    assert wanted - {_normal(name) for name in pinned} - {_normal(project["name"])} == set()  # an extra names others


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
