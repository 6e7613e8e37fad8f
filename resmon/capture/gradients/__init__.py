"""The parameters' gradients: as they were read, and what clipping and scaling made of them.

`reader` reads them, `measured` is what comes of a step's. `clipping`, `scaler` and `clearing` hear what was done to them,
`writes` who wrote a parameter.
"""
