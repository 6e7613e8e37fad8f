"""A typed client of Alertmanager (API v2, tried with 0.25), what a silence may cover, and the keeper of planned windows."""

from resmon.servers.alertmanager.client import Alertmanager, default_author, skew_sentence
from resmon.servers.alertmanager.matchers import Matcher, matches
from resmon.servers.alertmanager.scope import LONGEST, checked, length
from resmon.servers.alertmanager.values import Alert, AlertGroup, KnownAlert, Silence, Status

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
