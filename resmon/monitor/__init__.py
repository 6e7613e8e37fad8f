"""What a training script calls: `watch` gives the monitor of a run, `planned` silences alerts while something is planned.

`watch` is the one place where capture, flight and agent meet. `tuning` refuses settings that the detectors could not use,
`notebook` hears of exceptions in cells, `instruments` shows the run to the program's own OpenTelemetry. `watchdog` looks where the
training is when no step comes.
"""
