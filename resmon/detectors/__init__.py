"""Detectors turn step records into findings.

A detector (detector.py) is told the sites, then every step, window of steps and logged value in order, and gives finding events
(records.Finding). It keeps its own state, knows neither files nor metrics, and is deterministic: the same records give the same
findings, live or replayed. The bank (bank.py) runs all of them over a rank; `DETECTORS` is the table of those that run by default.
"""

from resmon.detectors.bank import DETECTORS, Bank
from resmon.detectors.detector import Detector
from resmon.detectors.episode import Account, Episodes
from resmon.detectors.options import Options
from resmon.detectors.window import Window

__all__ = ["DETECTORS", "Account", "Bank", "Detector", "Episodes", "Options", "Window"]
