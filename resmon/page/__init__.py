"""The agent's own page: the runs of this machine for people without Grafana, live or long after.

Everything is read from flights, as any other reader does it, so that no request waits for the agent's lock or makes it wait.
`listing` knows which runs there are, `rows` and `history` read a flight, `course` keeps of it what a screen can show, `sight` is
one run that somebody looks at, `figures` draws it, `routes` answers requests; `static` is what the browser runs.
"""
