"""Read ahead: the next parts are read by another thread while this one is being computed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Part = TypeVar("Part")
Result = TypeVar("Result")


def read_ahead(parts: Iterable[Part], read: Callable[[Part], Result], *, ahead: int) -> Iterator[Result]:
    """Give ``read(part)`` for each part, in order, up to ``ahead`` of them read before they are asked for.

    One thread reads, one part after the other; 0 reads each when it is asked for. An error is raised where its
    part stands, and nothing after it is read.

    Raises:
        ValueError: ``ahead`` is negative.
    """
    if ahead < 0:
        raise ValueError(f"ahead must be 0 or more, got {ahead}")
    if ahead == 0:
        yield from map(read, parts)
        return
    waiting = iter(parts)
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-ahead") as thread:
        begun: deque[Future[Result]] = deque(thread.submit(read, part) for part in islice(waiting, ahead))
        try:
            while begun:
                result = begun.popleft().result()
                begun.extend(thread.submit(read, part) for part in islice(waiting, 1))
                yield result
        finally:
            for each in begun:
                each.cancel()
