"""Wrappers of other people's functions: on while somebody listens, gone afterwards, whoever else wraps the same function."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import pytest
import torch

from resmon.capture.host.interception import Interception


def room() -> Any:
    """A place with a function that doubles."""
    owner = types.SimpleNamespace(called=0)

    def double(value: int) -> int:
        owner.called += 1
        return 2 * value

    owner.double = owner.original = double
    return owner


def interception(owner: Any) -> Interception[list[int]]:
    def around(listeners: tuple[list[int], ...], original: Callable[[int], int], value: int) -> int:
        for listener in listeners:
            listener.append(value)
        return original(value)

    return Interception(lambda: [(owner, "double")], around)


def test_it_is_on_while_somebody_listens() -> None:
    owner = room()
    made = interception(owner)
    assert owner.double is owner.original
    one: list[int] = []
    other: list[int] = []
    made.listen(one)
    made.listen(other)
    assert owner.double(3) == 6
    made.leave(one)
    assert owner.double(4) == 8
    made.leave(other)
    made.leave(other)
    assert owner.double is owner.original
    assert owner.double(5) == 10
    assert (one, other, owner.called) == ([3], [3, 4], 3)


def test_it_keeps_the_functions_name_and_documentation() -> None:
    owner = room()
    interception(owner).listen([])
    assert owner.double.__name__ == "double"
    assert owner.double is not owner.original


def wrap(owner: Any) -> Callable[[int], int]:
    """Somebody else's wrapper, put in place; functools.wraps copies our attributes onto it, if there are any."""
    inner = owner.double

    def outer(value: int) -> int:
        return int(inner(value)) + 1

    outer.__dict__.update(inner.__dict__)
    owner.double = outer
    return outer


def test_somebody_wraps_after_us_and_goes_after_us() -> None:
    owner = room()
    made, heard = interception(owner), []
    made.listen(heard)
    ours = owner.double
    theirs = wrap(owner)
    made.leave(heard)
    assert owner.double is theirs
    assert owner.double(1) == 3
    owner.double = ours  # they put back what they had found
    assert owner.double(1) == 2
    assert owner.double is owner.original  # and ours, on top and without listeners, is gone
    assert heard == []


def test_somebody_wraps_after_us_and_goes_before_us() -> None:
    owner = room()
    made, heard = interception(owner), []
    made.listen(heard)
    ours = owner.double
    wrap(owner)
    owner.double(1)
    owner.double = ours
    owner.double(2)
    made.leave(heard)
    assert owner.double is owner.original
    assert heard == [1, 2]


def test_we_come_again_over_a_wrapper_that_holds_ours() -> None:
    owner = room()
    made, heard = interception(owner), []
    made.listen(heard)
    ours = owner.double
    theirs = wrap(owner)
    made.leave(heard)
    made.listen(heard)
    assert owner.double(1) == 3
    assert heard == [1]  # once, though two wrappers of ours lie in its way
    owner.double = ours  # their removal takes our outer one along; the inner one hears on
    assert owner.double(2) == 4
    assert heard == [1, 2]
    made.leave(heard)
    assert owner.double is owner.original
    assert theirs(3) == 7


def test_somebody_was_there_before_us() -> None:
    owner = room()
    theirs = wrap(owner)
    made, heard = interception(owner), []
    made.listen(heard)
    assert owner.double(1) == 3
    made.leave(heard)
    assert owner.double is theirs


def test_an_exception_passes_and_leaves_it_working() -> None:
    owner = room()
    made, heard = interception(owner), []
    made.listen(heard)
    with pytest.raises(TypeError):
        owner.double(None)
    owner.double(2)
    assert heard == [None, 2]


def test_compiled_code_passes_it_by() -> None:
    owner = room()
    owner.double = lambda value: value * 2
    made, heard = interception(owner), []
    made.listen(heard)
    compiled = torch.compile(lambda value: owner.double(value) + 1, fullgraph=True, backend="eager")
    assert compiled(torch.ones(2)).tolist() == [3, 3]
    assert heard == []
    made.leave(heard)
