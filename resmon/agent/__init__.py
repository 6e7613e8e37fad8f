"""The process that follows flights, runs detectors and serves what they say; one per user and machine.

A training process uses two names (and `Reaction`, to its own incidents): it `register`s the folder that it writes to and then calls
`find_or_start`. In this order: an agent that is about to leave looks at the registrations once more at a moment when nobody can
find it.
"""

from resmon.agent import runtime
from resmon.agent.launch import find_or_start
from resmon.agent.reaction import Reaction
from resmon.agent.runtime import register

__all__ = ["Reaction", "find_or_start", "register", "runtime"]
