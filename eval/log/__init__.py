"""The prediction log: append-only JSON lines, a header that says what was run, and one row per sample.

A log is one file, written by one process, or a folder that any number of processes share: each appends to a file of its
own, and reading merges them. A run that is killed leaves at most one torn last line per file; that line is dropped, all
others stay. Resuming is a set difference over (benchmark, key), whatever the batch sizes and numbers of processes were.
"""

from eval.log.format import FORMAT, RUN, Header, LogError, Skipped
from eval.log.reading import Log, Rows, find_logs, read_log
from eval.log.writing import PredictionLog, open_log

__all__ = [
    "FORMAT",
    "RUN",
    "Header",
    "Log",
    "LogError",
    "PredictionLog",
    "Rows",
    "Skipped",
    "find_logs",
    "open_log",
    "read_log",
]
