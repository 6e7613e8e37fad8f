"""Inside the training process, and the only room that imports torch.

- Which adds are residual: `discovery` traces one forward pass (`dataflow`), judges its adds (`rule`) and names them (`survey`).
- Taking their operands in every later pass: `model` decides which passes count, `taps` are the hooks, `marker` the explicit add,
  `compiler` and `cells` are for what torch.compile makes of both, `registration` hears of modules that are added.
- From tensors to numbers: `channel` gathers those of a site, `sums` and `sample` read tensors, with the compiled `_native`.
- Gradients: `gradients` reads them, `optimizers` says when, `clipping` and `scaler` hear what was done to them (`interception` is
  how), `placement` knows what share of them this rank has.
- `session` makes a step's record of it all; `process` and `target` know this process and what a command names; `requirement` which
  torch all of this needs.
"""

from resmon.capture import requirement

requirement.check()  # before torch's private parts are imported by any of the others
