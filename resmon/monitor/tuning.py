"""Settings of which only the detectors can say whether they are right, refused before training begins like all others.

The detectors are imported only where something of them is set: a training process pays for what it uses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from resmon.settings import Resolved, resolve


def resolved(arguments: Mapping[str, Any]) -> Resolved:
    """Settings from all places under `arguments`, those of the detectors looked at too."""
    # Which options the user's own detectors have is known where they are imported, which the training process never does.
    own = bool(resolve(arguments).settings.own_detectors)

    def detectors(values: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], str]]:
        if values:
            from resmon.detectors.bank import options

            _, wrong = options(values)
            yield from (each for each in wrong if not own or len(each.path) > 1 or not isinstance(values[each.path[0]], Mapping))

    return resolve(arguments, {"detectors": detectors})
