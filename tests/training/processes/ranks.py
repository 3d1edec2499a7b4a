"""Several processes over gloo, forked from one server that has imported everything."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

_PRELOADED = ("tests.training.processes.preloaded",)


def run_ranks(
    function: Callable[..., None], world_size: int, *arguments: Any, timeout: float = 300.0, **named: Any
) -> None:
    """Run ``function(*arguments)`` in processes that find each other as those of torchrun do.

    Args:
        function: Of an importable module; it reads its rank from the environment.
        world_size: Processes.
        *arguments: Picklable.
        timeout: Seconds after which the processes count as hanging.
        **named: Picklable.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_PRELOADED))
    errors = context.SimpleQueue()
    port = free_port()
    processes = [
        context.Process(target=_run, args=(partial(function, *arguments, **named), rank, world_size, port, errors))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout)
    hanging = [rank for rank, process in enumerate(processes) if process.is_alive()]
    for process in processes:
        process.kill()
    told = "" if errors.empty() else errors.get()
    assert not hanging and not told, f"hanging: {hanging}\n{told}"
    assert [process.exitcode for process in processes] == [0] * world_size


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def rank() -> int:
    """Of this process."""
    return int(os.environ["RANK"])


def _run(function: Callable[[], None], rank: int, world_size: int, port: int, errors: Any) -> None:
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size, "GROUP_RANK": 0}
    os.environ.update({name: str(value) for name, value in own.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_RUN_ID="tests", OMP_NUM_THREADS="1")
    try:
        function()
    except BaseException:
        errors.put(f"rank {rank}: {traceback.format_exc()}")
        os._exit(1)


def out_of(folder: Path, name: str) -> Path:
    """Where this rank writes a result."""
    return folder / f"{name}-{rank()}.pt"
