"""What it costs a training that many read what the agent serves, and what it costs the agent."""
