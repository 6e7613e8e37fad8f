"""The agent's runtime folder, for the tests that need an agent."""

from tests.agent.conftest import runtime_folder

__all__ = ["runtime_folder"]
