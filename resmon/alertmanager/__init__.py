"""A typed client of Alertmanager (API v2, tried with 0.25), what a silence may cover, and the keeper of planned windows."""

from resmon.alertmanager.client import Alertmanager, default_author, skew_sentence
from resmon.alertmanager.matchers import Matcher, matches
from resmon.alertmanager.scope import LONGEST, checked, length
from resmon.alertmanager.values import Alert, AlertGroup, KnownAlert, Silence, Status

__all__ = [
    "LONGEST",
    "Alert",
    "AlertGroup",
    "Alertmanager",
    "KnownAlert",
    "Matcher",
    "Silence",
    "Status",
    "checked",
    "default_author",
    "length",
    "matches",
    "skew_sentence",
]
