"""What the agent knows, as series: for Prometheus, which asks for them, and for OTLP receivers, to which they are pushed.

`view` is the moment that is told, with the `ranks` of a machine as one; `samples` are its values by the catalogue's names, and
`budget` holds their number within bounds.
"""
