"""Runs of a study side by side, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed


def run_all(
    one: Callable[..., dict], wanted: dict[str, tuple], workers: int, result: Callable[[dict], str]
) -> list[dict | None]:
    """What `one(*arguments)` returned for each of `wanted`, which names them, in its order; None where it failed.

    `workers` run at a time. Each has its line where it ends: what `result` says of it, or the error; the others go on.
    """
    started, found = time.perf_counter(), dict.fromkeys(wanted)
    context = multiprocessing.get_context("spawn")  # threads that torch has started do not survive a fork
    with ProcessPoolExecutor(workers, mp_context=context) as executor:
        tasks = {executor.submit(one, *arguments): name for name, arguments in wanted.items()}
        for count, task in enumerate(as_completed(tasks), 1):
            name = tasks[task]
            error = task.exception()
            if error is None:
                found[name] = task.result()
            said = result(found[name]) if error is None else f"{type(error).__name__}: {error}"
            done = f"{time.perf_counter() - started:5.0f} s  {count}/{len(wanted)}"
            print(f"{done}  {name}: {said}", file=sys.stderr, flush=True)
    return [*found.values()]
