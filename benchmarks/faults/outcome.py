"""What came of a trial."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Outcome:
    """One fault put into one training, and whether what resmon said of it is true.

    A question that the kind of fault does not ask (an operation where no operation is at fault), or that the injected fault leaves
    open, is answered by None.
    """

    kind: str
    trial: int
    architecture: str
    detected: bool
    delay: int | None = None  # steps between the fault and the step that is named
    block: bool | None = None  # named right, which outside of blocks is not at all
    operation: bool | None = None  # and its module
    line: bool | None = None  # of the source
    origin: bool | None = None
    expected: str = ""
    said: str = ""
    commit: str = field(default="", compare=False)  # of the sources that were tried; "" is not known

    @property
    def is_right(self) -> bool:
        return self.detected and not {False} & {self.block, self.operation, self.line, self.origin}
