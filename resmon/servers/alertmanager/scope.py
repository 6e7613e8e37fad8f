"""What a silence may cover: something that is named, for a time that ends, with a reason.

A silence that matches every alert, or all of a severity, is how a page gets lost that nobody meant to lose. At least one matcher
must name what is silenced: a model, a run, a block, an alert, a machine. A matcher names something if it is positive (= or =~),
does not match a label that is missing, does not match whatever stands there, and its label is none that all alerts share.
"""

from __future__ import annotations

from collections.abc import Sequence

from resmon.errors import ConfigurationError
from resmon.rules.durations import seconds, written
from resmon.servers.alertmanager.matchers import Matcher

LONGEST = 30 * 86400.0  # seconds of a silence: what is to be quiet for longer needs its rule or its route changed
COMMENT = 1000  # characters
SHARED = frozenset({"severity", "tier"})  # that every alert has, or every alert of a kind

# Values that no expression fits which is written for some name: what fits all of them fits whatever stands there.
_ANYTHING = ("0", "q", "Zq7-x_9", "a b.c/d:e", "\N{GREEK SMALL LETTER OMEGA}\N{CJK UNIFIED IDEOGRAPH-4E00}")


def checked(matchers: Sequence[Matcher], comment: str) -> None:
    """Raises ConfigurationError that names all that is wrong with a silence for these matchers."""
    nits = [
        f"{each.name!r} is no label's name: letters, digits and _, and no digit first"
        for each in matchers
        if not each.has_usual_name
    ]
    if not matchers:
        nits.append("it names nothing, so it would match every alert")
    elif not any(_names(matcher) for matcher in matchers):
        said = ", ".join(map(str, matchers))
        nits.append(f"{said} would match every alert, or all of a severity, and nothing by its name")
    if not comment.strip():
        nits.append("it has no comment: whoever is on call wants to know why it is quiet")
    elif len(comment) > COMMENT:
        nits.append(f"its comment has {len(comment):,} characters; {COMMENT:,} are the most")
    if nits:
        raise ConfigurationError(
            f"This silence is refused: {'; '.join(nits)}. Name a model, a run, a block or an alert, and say why."
        )


def length(duration: str | float, longest: float = LONGEST) -> float:
    """A duration in seconds, 2h or 7200. Raises ConfigurationError where it is none, not above 0, or too long for a silence."""
    try:
        value = seconds(duration.strip()) if isinstance(duration, str) else float(duration)
    except ValueError as error:
        raise ConfigurationError(f"the time of a silence {error}.") from error
    if not 0 < value <= longest:
        raise ConfigurationError(f"a silence lasts more than 0s and at most {written(longest)}, not {duration}. Name another time.")
    return value


def _names(matcher: Matcher) -> bool:
    if not matcher.is_equal or matcher.name in SHARED or matcher.fits(""):
        return False
    return not matcher.is_regex or not all(matcher.fits(value) for value in _ANYTHING)
