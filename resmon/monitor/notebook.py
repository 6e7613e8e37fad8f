"""Notebooks: an exception ends a cell there, and not the process.

So whoever trains in a cell is told of its exceptions by IPython, which runs the cells. IPython is never imported here: where it
does not run already there are no cells.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any


def follow(begins: Callable[[], None], fails: Callable[[BaseException], None]) -> Callable[[], None]:
    """Call `begins` before every cell and `fails` with the exception of one that ended so, until what is given back is called.

    What the user stopped by hand did not fail.
    """
    shell = _shell()
    if shell is None:
        return _nothing

    def before(*_: Any) -> None:
        begins()

    def after(result: Any) -> None:
        error = getattr(result, "error_in_exec", None)
        if error is not None and not isinstance(error, KeyboardInterrupt):
            fails(error)

    shell.events.register("pre_run_cell", before)
    shell.events.register("post_run_cell", after)

    def leave() -> None:
        for event, function in (("pre_run_cell", before), ("post_run_cell", after)):
            try:
                shell.events.unregister(event, function)
            except ValueError:  # somebody has cleared them
                continue

    return leave


def is_one() -> bool:
    """Whether this process runs cells."""
    return _shell() is not None


def _shell() -> Any:
    module = sys.modules.get("IPython")
    try:
        return None if module is None else module.get_ipython()
    except AttributeError:  # it is being imported
        return None


def _nothing() -> None: ...
