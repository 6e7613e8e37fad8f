"""What an error says to do next."""

from __future__ import annotations

import errno

from resmon.errors import nearest, remedy


def test_what_may_have_been_meant_is_named() -> None:
    assert nearest("objectiv", ["objective", "name"]) == "; the nearest is objective"
    assert nearest("x", ["b", "a"]) == "; there are a, b"


def test_what_to_do_about_files_that_cannot_be_written() -> None:
    assert remedy(OSError(errno.ENOSPC, "full")) == remedy(OSError(errno.EDQUOT, "full")) == "Free space"
    assert remedy(OSError(errno.EACCES, "no")) == "See that its folder is there and can be written"
