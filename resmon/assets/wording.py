"""What annotations are made of: Prometheus' templates for the labels of an alert and for values that are asked for as it fires."""

from __future__ import annotations

from collections.abc import Sequence

PLACE = (
    "run {{ $labels.run }}{{ with $labels.model }}, model {{ . }}{{ end }}{{ with $labels.block }}, block {{ . }}{{ end }}"
    "{{ with $labels.instance }}, seen by {{ . }}{{ end }}"
)

LABELS = ("run", "model", "block")


def name(*words: str) -> str:
    """Resmon and the words in camel case: out_of_memory is OutOfMemory."""
    return "Resmon" + "".join(part.capitalize() for word in words for part in word.split("_"))


def asked(query: str, sentence: str, shown: str, labels: Sequence[str] = LABELS) -> str:
    """A sentence with the value of a query in the place of {}; nothing where the query gives none.

    `query` has %q in the place of each label's value, in the order of `labels`, as many as there are.
    """
    values = " ".join(f"$labels.{label}" for label in labels[: query.count("%q")])
    value = f"{{{{ . | first | value | {shown} }}}}"
    escaped = query.replace('"', r"\"")
    return f'{{{{ with printf "{escaped}" {values} | query }}}} {sentence.replace("{}", value)}{{{{ end }}}}'
