"""Agents and trainers come from where the agent's tests have them."""

from tests.agent.conftest import house, port, runtime_folder

__all__ = ["house", "port", "runtime_folder"]
