"""The crash-surviving record of a run.

A run is a folder; everything in it is appended or written once, nothing is overwritten.

    runs/digits/
      attempt-0001/                        a run started again under its name goes on as the next attempt
        launch.json                        what the ranks of one launch share; by it a rank finds its attempt
        findings.jsonl                     one finding event a line (records.Finding), written by the agent
        on_incident.log                    what on_incident's command has printed
        rank-00000/
          info.json                        records.RunInfo and `format`, the format version; written whole before the first row
          alive.lock                       held (fcntl.lockf) by the training process while it lives
          checkpoints.jsonl                one line for each Monitor.checkpoint (records.Checkpoint)
          incidents.jsonl                  one event of an incident a line (records.Incident), written by the training process and
                                           by the agent: that no step comes, how a process ended that could not say so
          reactions.jsonl                  one line for each incident that on_incident's command was run for (agent.reaction)
          reached.jsonl                    one line for each target that a score has met (targets.Reached)
          spans.jsonl                      one line whenever the loop is in another span of OpenTelemetry's (records.SpanRecord)
          capsule-*.safetensors            what repeats an incident elsewhere (capture/forensics/capsule.py)
          steps-000000000000.arrow         full rows, one per step; named by the first step that the segment holds
          scalars-000000000000.arrow       what was logged: step, time, name, value; rotates and goes together with steps-
          bins-0-000000000000.arrow        thinned rows: bins of 64 steps; bins-1: of 512, bins-2: of 4096, ... bins-5
          scalarbins-0-000000000000.arrow  thinned scalars: one row a bin and name; rotates and goes together with bins-0-
          end.json                         records.RunEnd, the end mark; written whole at the end
          stopped.json                     records.Stopped, the mark that nothing more could be written while training went on

A run's name that is no harmless folder name becomes a readable stem, `~` and a hash of the name (layout.safe_name).

`*.arrow` are Arrow IPC streams, one record batch a row, appended with one write each, so that after a SIGKILL at any moment all
rows but the one under way are there, readable by pandas, polars or anything that knows Arrow. Within a segment sites and parameter
groups are fixed; they stand as JSON in the schema's metadata under `resmon.sites` and `resmon.groups`, the format version under
`resmon.format`. When a site or a group appears, the next segment begins.

All lists of a segment have fixed lengths and every nullable column has its validity bitmap, so all rows of a segment have the same
size and layout: a reader may take a segment as fixed-size records behind a schema message (schema.RowFormat does). There is no
compression and no end-of-stream mark.

A row of steps-*.arrow (S sites and G parameter groups, in the order of the metadata) is a `records.StepRecord`: `step`, `time`
(timestamp, UTC), `complete`, `skipped`, one nullable double per RUN_VALUES, one list of G nullable doubles per GROUP_VALUES, called
`group_<name>`, one list of S nullable doubles per BLOCK_VALUES and one list of S integers per BLOCK_COUNTS, both called
`block_<name>`, then the cumulative counters: `steps_total`, `skipped_total`, `clipped_total`, `errors_total`, `samples_total`,
`duration_total`, `phase_totals` (list, as PHASES), `duration_buckets` (list), `nonfinite_steps` (list of S), `magnitude_buckets`
(list of S * MAGNITUDE_COLUMNS, site by site), `magnitude_sum` (list of S). A logged name is cut at 128 bytes (and then ends in a
hash).

The last column of every row is `checksum`, the CRC-32 of every byte of the row's message before it, begun with the bytes
"<resmon.format>\n<resmon.sites>\n<resmon.groups>" of the segment's metadata. By it a reader tells damage, finds the next whole row
behind it, and knows under which sites a row was written when the segment's own schema is damaged.

The byte budget thins, it does not forget. Every step is also folded, as it comes, into bins of 64 steps, those into bins of 512,
and so on by eights: `first_step`, `last_step`, `steps`, `first_time`, `last_time`; `<value>_min`, `_max`, `_sum` and `_count` of
every RUN_VALUES, every GROUP_VALUES, every BLOCK_VALUES and `branch_skip_ratio` (as lists), in which absent and non-finite values
have no part; sums of BLOCK_COUNTS; the cumulative counters as at the bin's end. The sites' change and the run's end close bins
early. When the budget is spent, the oldest full segment goes, but never those with the first 1,000 steps, never the newest, and
not those with the 64 steps before an incident, as long as these take no more than a quarter of the room; each level of bins has a
share of its own, and beyond it the oldest of the finer level goes. Nothing goes before the coarser bins that hold its steps are on
file. (Where the first 1,000 steps alone take most of the budget, the flight grows larger than that.)
"""
