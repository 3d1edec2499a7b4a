"""A task table as a page: what it says, the command, and that the committed page is current."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from routers.__main__ import main
from routers.commands.describe import read_table
from routers.describe import call_syntax, describe, describe_tasks
from routers.vocabulary import task_tokens

ROOT = Path(__file__).parents[2]


def test_there_is_one_row_per_task(any_vocabulary):
    lines = describe_tasks(any_vocabulary.table).splitlines()
    assert len(lines) == 2 + len(any_vocabulary.table)
    assert len({line.count("|") for line in lines}) == 1
    for task, line in zip(any_vocabulary.table, lines[2:], strict=True):
        assert line.startswith(f"| `{task.name}` | `{task.open_token}") and f"| {task.head} |" in line


@pytest.mark.parametrize(
    ("task", "syntax"),
    [
        ("seg", "<seg> prompt <anchor> </seg>"),
        ("draw", "<draw> prompt <anchor> 3 queries </draw>"),
        ("classify", "<classify> <anchor> </classify>"),
        ("speak", "<speak> prompt (<span> start end or <result> earlier-call)* </speak>"),
    ],
)
def test_call_syntax(vocabulary, task, syntax):
    assert call_syntax(vocabulary.table[task], vocabulary.table) == syntax


def test_the_page_counts_every_token(any_vocabulary):
    page = describe(any_vocabulary.table, "tests")
    table = page[page.index("## Tokens") :]
    counts = [int(line.split("|")[2]) for line in table.splitlines() if line.startswith("| ") and line[-3].isdigit()]
    assert counts[-1] == sum(counts[:-1]) == len(task_tokens(any_vocabulary.table))
    written = "x1,y1,x2,y2 </region>" if any_vocabulary.end_region_id is not None else "x1 y1 x2 y2"
    assert written in page and "`text`: the prompt alone: `speak`" in page


def test_the_committed_page_is_current():
    source = "configs/quickstart/model.yaml"
    assert (ROOT / "docs" / "tasks.md").read_text() == describe(read_table(ROOT / source), "the quickstart"), (
        f"python -m routers describe {source} --title 'the quickstart' --out docs/tasks.md writes it anew"
    )


def test_the_command_reads_tables_and_refuses_what_is_none(vocabulary, tmp_path, capsys):
    (tmp_path / "tasks.yaml").write_text(yaml.safe_dump(vocabulary.table.to_dict()))
    assert main(["describe", str(tmp_path / "tasks.yaml"), "--out", str(tmp_path / "docs" / "tasks.md")]) == 0
    assert (tmp_path / "docs" / "tasks.md").read_text() == describe(vocabulary.table, str(tmp_path / "tasks.yaml"))
    (tmp_path / "other.yaml").write_text("model: {}")
    assert main(["describe", str(tmp_path / "other.yaml")]) == 2
    assert "expected a task table" in capsys.readouterr().err
