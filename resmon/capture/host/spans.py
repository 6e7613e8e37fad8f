"""In which span of OpenTelemetry's the loop is, where the program traces itself.

Nothing is imported for that: where nobody has imported opentelemetry.trace there is no span, and a step costs one look into a
dict. Where there is one it is noted when it is another than before: one trace over a whole training is one line. Traces with a
span for each step are noted for the first MOST steps, and from then on none is, rather than one that is not the step's.
"""

from __future__ import annotations

import sys
import time

from resmon.records import SpanRecord

MOST = 10_000  # lines of some 150 bytes

_NOWHERE = (0, 0)


class Spans:
    """Asked at the end of each step, in the loop's own thread and context."""

    def __init__(self) -> None:
        self._newest = _NOWHERE
        self._left = MOST

    def look(self, step: int) -> SpanRecord | None:
        """The span of a step, where it is another than that of the step before."""
        library = sys.modules.get("opentelemetry.trace")
        if library is None or not self._left:
            return None
        try:
            context = library.get_current_span().get_span_context()
            flags = int(context.trace_flags)
            found = (context.trace_id, context.span_id) if context.is_valid else _NOWHERE
        except Exception:  # a library that is half imported, or a tracer of somebody's own that fails
            return None
        if found == self._newest:
            return None
        self._newest = found
        self._left -= 1
        if not self._left:
            found = _NOWHERE
        if found == _NOWHERE:
            return SpanRecord(step, time.time(), "", "", 0)
        return SpanRecord(step, time.time(), f"{found[0]:032x}", f"{found[1]:016x}", flags)
