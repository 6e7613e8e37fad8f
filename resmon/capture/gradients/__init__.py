"""The parameters' gradients: as they were read, and what clipping and scaling made of them.

`reader` reads them, `measured` is what comes of a step's. `backwards` hears where they come from, `clipping`, `scaler` and
`clearing` what was done to them, `writes` who wrote a parameter.
"""
