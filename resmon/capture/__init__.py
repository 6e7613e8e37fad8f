"""Inside the training process, and the only room that imports torch.

- Which adds are residual: `discovery` traces one forward pass (`dataflow`), judges its adds (`rule`), names them (`survey`) and
  says which `operations` lie on their ways.
- Taking their operands in every later pass: `model` decides which passes count, `taps` are the hooks, `marker` the explicit add,
  `sleepers` are the modules that have not run (`registration` hears of new ones), `compiler` and `cells` are for what torch.compile
  makes of all that.
- From tensors to numbers (`columns` names them): `channel` gathers those of a site; `sums` and `sample` read tensors in main
  memory, with the compiled `_native`; `accelerator` has a GPU read its own, and `fetch` brings what comes of it to the host.
  `positions` are looked at now and then, as are the inputs of the `layers` that end branches; `keeping` tells dropped samples.
- The run's own: `clock` says where a step's time goes, `memory` what is in use and free.
- Gradients: `gradients` reads them, `measured` is what comes of a step's, `optimizers` says when, `clipping` and `scaler` hear what
  was done to them (`interception` is how), `placement` knows what share of them this rank has.
- Values that are not finite: `nonfinite` notices them, `references` are what is kept of a step's passes (`randomness` the states
  that they draw from), `replay` does one again and leaves no trace, `birth` finds where in it the first one was made, `origin`
  makes the incident of that (`writes` tells who wrote a parameter), `capsule` lets it be repeated elsewhere.
- What does not fit: `rehearsal` goes through a model on stand-ins (`fakes`) past what does not fit (`mends`), `fixes` and `trials`
  try what would help there. `shapes` tells it of a run, `check` of a model before one, with `requisites` in memory and
  `initialisation`.
- Records: `session` is the loop as it is told here, `drafts` make a step's record of it all, `outbox` hands it on in its turn.
- How it ends: `failures` says what an exception means (`stack` where it arose), by the table of `diagnoses`: shapes, or memory
  that was `out_of_memory`, of which `activations` know the blocks' share. `last_words` mark the end where Python cannot.
- `process` and `target` know this process and what a command names; `requirement` which torch all of this needs.
"""

from resmon.capture import requirement

requirement.check()  # before torch's private parts are imported by any of the others
