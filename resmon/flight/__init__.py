'''The crash-surviving record of a run.

A run is a folder; everything in it is appended or written once, nothing is overwritten.

    runs/digits/
      attempt-0001/                        a run started again under its name goes on as the next attempt
        launch.json                        what the ranks of one launch share; by it a rank finds its attempt
        findings.jsonl                     one finding event a line (records.Finding), written by the agent
        rank-00000/
          info.json                        records.RunInfo, the format version; written whole before the first row
          alive.lock                       held (fcntl.lockf) by the training process while it lives
          steps-000000000000.arrow         full rows, one per step; named by the first step that the segment holds
          scalars-000000000000.arrow       what was logged: step, time, name, value; rotates together with steps-
          bins-0-000000000000.arrow        thinned rows: bins of 64 steps; bins-1: of 512, bins-2: of 4096, ...
          end.json                         records.RunEnd, the end mark; written whole at the end

`*.arrow` are Arrow IPC streams, one record batch a row, appended with one write each, so that after a SIGKILL at any moment all
rows but the one under way are there, readable by pandas, polars or anything that knows Arrow. Within a segment the sites are
fixed; they stand as JSON in the schema's metadata under `resmon.sites`, the format version under `resmon.format`. When a site
appears, the next segment begins.

A row of steps-*.arrow (S sites, in the order of the metadata) is a `records.StepRecord`: `step`, `time` (timestamp, UTC),
`complete`, one nullable double per RUN_VALUES, `steps_total`, `errors_total`, `duration_total`, `duration_buckets` (list), one
list of S nullable doubles per BLOCK_VALUES, one list of S integers per BLOCK_COUNTS, `nonfinite_steps` (list of S),
`magnitude_buckets` (list of S * MAGNITUDE_COLUMNS, site by site), `magnitude_sum` (list of S), and last `checksum`, the CRC-32 of
all the other columns' values, by which a reader tells damage and finds the next whole row behind it.

The byte budget thins, it does not forget. Every step is also folded, as it comes, into bins of 64 steps, those into bins of 512,
and so on by eights: minimum, maximum, sum and count of every value, the cumulative counters as at the bin's end. When the budget
is spent, the oldest full segment goes, but never those with the first 1,000 steps and never the newest; each level of bins has a share of
its own, and beyond it the oldest of the finer level goes, as the coarser one holds its steps already.
'''
