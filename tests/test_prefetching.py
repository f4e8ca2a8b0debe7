"""Reading ahead changes when a part is read, never what comes out, in what order, or which error."""

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from continual.prefetching import read_ahead


@given(st.lists(st.integers(), max_size=30), st.integers(0, 8))
def test_the_order_is_kept_and_each_part_read_once(parts: list[int], ahead: int) -> None:
    read: list[int] = []

    def double(part: int) -> int:
        read.append(part)
        return 2 * part

    assert list(read_ahead(iter(parts), double, ahead=ahead)) == [2 * part for part in parts]
    assert read == parts


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_an_error_comes_where_its_part_stands(ahead: int) -> None:
    found = read_ahead([1, 2, 0, 4], lambda part: 8 // part, ahead=ahead)
    assert [next(found), next(found)] == [8, 4]
    with pytest.raises(ZeroDivisionError):
        next(found)
    assert list(found) == []


def test_the_next_parts_are_read_while_one_is_computed_and_no_more() -> None:
    read: list[int] = []
    third = threading.Event()

    def note(part: int) -> int:
        read.append(part)
        if part == 3:
            third.set()
        return part

    found = read_ahead(range(10), note, ahead=3)
    assert next(found) == 0
    assert third.wait(10), "nothing was read ahead"
    time.sleep(0.05)
    assert read == [0, 1, 2, 3]
    found.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read-ahead")]


def test_nothing_is_read_ahead_where_nobody_asked() -> None:
    read: list[int] = []
    found = read_ahead(range(3), read.append, ahead=0)
    next(found)
    assert read == [0]
    with pytest.raises(ValueError, match="ahead must be 0 or more, got -1"):
        next(read_ahead([1], abs, ahead=-1))
