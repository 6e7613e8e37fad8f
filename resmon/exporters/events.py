"""Findings, incidents and ends of runs as OpenTelemetry's events: log records with a name, a severity, a sentence and attributes.

An event happens when the step does, and is observed when the agent reads it. It carries the trace and the span that the training
process was in at that step, if it was in one. It may come twice, where an agent was started again: `log.record.uid` is the same.

OpenTelemetry limits how many attributes a log record has (128) and, where OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT or
OTEL_LOGRECORD_ATTRIBUTE_VALUE_LENGTH_LIMIT says so, how long their values are; what is over the limit is left out or cut, and
counted in the record. The attributes that say what it is about come first, the evidence last.
"""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Mapping
from typing import Any

from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.attributes import BoundedAttributes
from opentelemetry.sdk._logs import LogRecordLimits, ReadableLogRecord
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

from resmon.exporters.names import writable
from resmon.exporters.opentelemetry import nanoseconds
from resmon.exporters.view import Event
from resmon.records import Finding, Incident, RunEnd, SpanRecord

_LARGEST = 1 << 63  # an attribute's whole numbers have 64 bits


def log_record(event: Event, resource: Resource, scope: InstrumentationScope, limits: LogRecordLimits) -> ReadableLogRecord:
    """The event as it is sent."""
    what = event.what
    if isinstance(what, Finding):
        kind, severity, about = _of_finding(event, what)
    elif isinstance(what, Incident):
        kind, severity, about = _of_incident(event, what)
    else:
        kind, severity, about = _of_end(event, what)
    known = [(name, value) for name, value in about.items() if not (value is None or value == "")]
    attributes = BoundedAttributes(
        maxlen=limits.max_log_record_attributes,
        attributes=dict(reversed(known)),  # where there are too many, it leaves out the first ones
        immutable=False,
        max_value_len=limits.max_log_record_attribute_length,
    )
    record = LogRecord(
        timestamp=nanoseconds(what.time),
        observed_timestamp=nanoseconds(event.observed),
        context=set_span_in_context(NonRecordingSpan(_context(event.span))),
        severity_text=severity.name,
        severity_number=severity,
        body=writable(_said(event, what)),
        attributes=attributes,
        event_name=kind,
    )
    return ReadableLogRecord(record, resource, scope, limits)


def _context(span: SpanRecord | None) -> SpanContext:
    if span is None:
        return SpanContext(0, 0, is_remote=True)
    return SpanContext(int(span.trace_id, 16), int(span.span_id, 16), is_remote=True, trace_flags=TraceFlags(span.flags))


def _of_finding(event: Event, finding: Finding) -> tuple[str, SeverityNumber, dict[str, Any]]:
    severity = SeverityNumber.ERROR if finding.severity == "page" else SeverityNumber.WARN
    if finding.state == "closed":
        severity = SeverityNumber.INFO
    about = {
        "run": event.run,
        "model": event.info.models.get(finding.model, finding.model),
        "block": finding.block,
        "finding": finding.kind,
        "severity": finding.severity,
        "resmon.finding.id": finding.id,
        "resmon.finding.state": finding.state,
        "resmon.finding.opened_step": finding.opened_step,
        "resmon.step": finding.step,
        "resmon.expected": finding.expected,
        "resmon.seen": finding.seen,
        "resmon.confidence": finding.confidence,
        "resmon.runbook": finding.runbook,
        "log.record.uid": _uid(event, f"{finding.id} {finding.state} {finding.step}"),
    }
    return f"resmon.finding.{finding.state}", severity, _plain(about) | _evidence(finding.evidence)


def _of_incident(event: Event, incident: Incident) -> tuple[str, SeverityNumber, dict[str, Any]]:
    about = {
        "run": event.run,
        "rank": str(incident.rank),
        "model": event.info.models.get(incident.model, incident.model),
        "block": incident.block,
        "kind": incident.kind,
        "resmon.incident.id": incident.id,
        "resmon.step": incident.step,
        "resmon.module": incident.module,
        "resmon.operation": incident.operation,
        "resmon.line": incident.line,
        "resmon.origin": incident.origin,
        "resmon.confidence": incident.confidence,
        "resmon.since_step": incident.since,
        "resmon.checkpoint": incident.checkpoint,
        "resmon.checkpoint_step": incident.checkpoint_step,
        "resmon.advice": incident.advice,
        "resmon.runbook": incident.runbook,
        "log.record.uid": _uid(event, f"{incident.rank} {incident.id} {incident.summary}"),
    }
    return "resmon.incident", SeverityNumber.ERROR, _plain(about) | _evidence(incident.evidence)


def _of_end(event: Event, end: RunEnd) -> tuple[str, SeverityNumber, dict[str, Any]]:
    about = {
        "run": event.run,
        "rank": str(event.info.rank),
        "outcome": end.outcome,
        "resmon.step": end.step,
        "resmon.reason": end.reason,
        "log.record.uid": _uid(event, f"{event.info.rank} ended"),
    }
    severity = SeverityNumber.INFO if end.outcome in ("finished", "interrupted") else SeverityNumber.ERROR
    return "resmon.run.ended", severity, _plain(about)


def _said(event: Event, what: Finding | Incident | RunEnd) -> str:
    if isinstance(what, RunEnd):
        return f"rank {event.info.rank} of run {event.run} ended: {what.outcome}"
    return what.summary


def _uid(event: Event, what: str) -> str:
    info = event.info
    whose = f"{info.host} {info.boot_id} {info.launch} {info.run} {info.attempt}"
    return str(uuid.uuid5(uuid.NAMESPACE_URL, writable(f"{whose} {what}")))


def _evidence(evidence: Mapping[str, Any]) -> dict[str, Any]:
    return _plain({f"resmon.evidence.{name}": value for name, value in evidence.items()})


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as attributes have them: texts, truths, numbers; what is made of several as JSON."""
    made: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, str):
            made[writable(name)] = writable(value)
        elif value is None or isinstance(value, bool | float) or (isinstance(value, int) and -_LARGEST <= value < _LARGEST):
            made[writable(name)] = value
        else:
            made[writable(name)] = writable(json.dumps(_finite(value), default=str))
    return made


def _finite(value: Any) -> Any:
    """For JSON, which has no NaN and nothing infinite: those become their names."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return value
