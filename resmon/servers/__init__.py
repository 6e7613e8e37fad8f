"""Servers that resmon asks over HTTP: `connection` is how, `prometheus` and `alertmanager` are what they are asked."""
