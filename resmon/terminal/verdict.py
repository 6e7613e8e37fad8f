"""What `resmon check` says: for people, as JSON, and as JUnit XML for a CI server.

A model's and a file's names may hold anything: no control character of theirs reaches a terminal or an XML file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from resmon.quantities import count, printable, size

if TYPE_CHECKING:
    from resmon.capture.fitting.check import Fault, Report
    from resmon.capture.fitting.requisites import Requisites, Share

MOST_BLOCKS = 24  # rows of the table; of more blocks those that take most
_SIGNS = {"error": ("✖", "red"), "warning": ("!", "yellow"), "note": ("·", "dim")}


def is_good(report: Report, strict: bool) -> bool:
    """Whether a check passes: without errors or, where it is strict, without warnings either."""
    return report.healthy and not (strict and any(fault.level == "warning" for fault in report.faults))


def render(report: Report, kinds: Sequence[str]) -> RenderableType:
    """For people."""
    given = f", given {', '.join(report.inputs)}" if report.inputs else ""
    parts: list[RenderableType] = [Text(printable(f"{report.model}{given}; made {report.made}"), style="dim")]
    if report.requisites is not None:
        parts += [_memory(report.requisites), Text("")]
    parts += [_fault(fault) for fault in report.faults]
    parts.append(_summary(report, kinds))
    return Group(*parts)


def as_json(report: Report, strict: bool) -> dict[str, Any]:
    """The whole report; memory in bytes."""
    shares = {share.name: asdict(share) for share in report.requisites.shares} if report.requisites else {}
    outside = shares.pop("", None)
    return {
        "target": report.target,
        "model": report.model,
        "passed": is_good(report, strict),
        "made": report.made,
        "inputs": list(report.inputs),
        "batches": list(report.batches),
        "blocks": [
            {"name": site.name, "kind": site.kind, "shape": list(site.shape), "memory": _bytes(shares.get(site.name))}
            for site in report.sites
        ],
        "outside": _bytes(outside),
        "memory": _bytes(asdict(report.requisites.whole)) if report.requisites else None,
        "faults": [asdict(fault) for fault in report.faults],
        "skipped": dict(report.skipped),
    }


def as_junit(report: Report, kinds: Sequence[str], strict: bool) -> bytes:
    """One test case for each kind of check, or for each fault of a kind that fails."""
    levels = ("error", "warning") if strict else ("error",)
    suite = ElementTree.Element("testsuite", name=_xml(f"resmon check {report.target}"))
    failures = skips = 0
    for kind in kinds:
        faults = [fault for fault in report.faults if fault.kind == kind]
        failing = [fault for fault in faults if fault.level in levels]
        for fault in failing:
            place = fault.block or fault.module
            case = _case(suite, report, f"{kind}: {place}" if place else kind)
            failure = ElementTree.SubElement(case, "failure", message=_xml(fault.says), type=kind)
            failure.text = _xml("\n".join(filter(None, (fault.says, fault.do, fault.line))))
            failures += 1
        if failing:
            continue
        case = _case(suite, report, kind)
        reason = dict(report.skipped).get(kind)  # type: ignore[call-overload]
        if reason and not faults:
            ElementTree.SubElement(case, "skipped", message=_xml(reason))
            skips += 1
        if faults:
            ElementTree.SubElement(case, "system-out").text = _xml(
                "\n".join(f"{f.level}: {f.block or f.module}: {f.says}" for f in faults)
            )
    counts = {"tests": str(len(suite)), "failures": str(failures), "errors": "0", "skipped": str(skips)}
    for name, number in counts.items():
        suite.set(name, number)
    root = ElementTree.Element("testsuites", {"name": "resmon check", **counts})
    root.append(suite)
    ElementTree.indent(root)
    made: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return made


def _case(suite: ElementTree.Element, report: Report, name: str) -> ElementTree.Element:
    return ElementTree.SubElement(suite, "testcase", classname=_xml(report.target), name=_xml(name), time="0")


def _memory(requisites: Requisites) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("block", overflow="fold")
    for name in ("parameters", "gradients", "Adam", "activations", "share"):
        table.add_column(name, justify="right", no_wrap=True)
    whole = requisites.whole
    blocks = [share for share in requisites.shares if share.name]
    shown = sorted(blocks, key=lambda share: -share.total)[:MOST_BLOCKS] if len(blocks) > MOST_BLOCKS else blocks
    for share in shown:
        _row(table, printable(share.name), share, whole)
    if rest := [share for share in blocks if share not in shown]:
        _row(table, f"{len(rest):,} more blocks", _sum(rest), whole, style="dim")
    for share in requisites.shares:
        if not share.name:
            _row(table, "outside of blocks", share, whole, style="dim")
    _row(table, f"a batch of {requisites.batch}" if requisites.batch else "all", whole, whole, style="bold")
    return table


def _row(table: Table, name: str, share: Share, whole: Share, style: str = "") -> None:
    part = f"{share.total / whole.total:.0%}" if whole.total else "–"
    sizes = (share.parameters, share.gradients, share.optimizer, share.activations)
    table.add_row(name, *map(size, sizes), part, style=style)


def _sum(shares: Sequence[Share]) -> Share:
    first = shares[0]
    names = ("parameters", "gradients", "optimizer", "activations")
    return type(first)("", *(sum(getattr(share, name) for share in shares) for name in names))


def _fault(fault: Fault) -> Text:
    sign, style = _SIGNS[fault.level]
    said = Text.assemble((f"{sign} ", style), (f"{fault.kind}", style))
    if place := fault.block or fault.module:
        said.append(f" {printable(place)}", style="bold")
    said.append(f": {printable(fault.says)}\n")
    for line in filter(None, (fault.do, fault.line)):
        said.append(f"  {printable(line)}\n", style="" if line == fault.do else "dim")
    return said


def _summary(report: Report, kinds: Sequence[str]) -> Text:
    counts = {level: sum(fault.level == level for fault in report.faults) for level in ("error", "warning")}
    batches = f"; batches of {', '.join(map(str, report.batches))}" if report.batches else ""
    said = Text(f"{count(len(report.sites), 'residual addition')}{batches}", style="dim")
    skipped = dict(report.skipped)
    found = {fault.kind for fault in report.faults if fault.level != "note"}
    passed = [kind for kind in kinds if kind not in found and kind not in skipped]
    if passed:
        said.append(f"\npassed: {', '.join(passed)}", style="green")
    for kind, reason in skipped.items():
        said.append(f"\nnot checked: {kind}: {printable(reason)}", style="yellow")
    for level, number in counts.items():
        if number:
            said.append(f"\n{count(number, level)}", style=_SIGNS[level][1])
    return said


def _bytes(share: dict[str, Any] | None) -> dict[str, int] | None:
    return None if share is None else {name: size for name, size in share.items() if name != "name"}


def _xml(text: str) -> str:
    """Characters that XML 1.0 cannot hold, escaped or not, are replaced."""
    return "".join(_allowed(text))


def _allowed(text: str) -> Iterator[str]:
    for c in text:
        code = ord(c)
        fine = c in "\t\n\r" or 0x20 <= code <= 0xD7FF or 0xE000 <= code <= 0xFFFD or code >= 0x10000
        yield c if fine else "�"
