"""Tuning: the fastest config of each schedule rule on a device, found by measuring and kept as records.

`tune.tune` is the loop; `tasks` says what to tune, `search` proposes, `cost_models` rank, `measuring` builds and times,
`records` keep.
"""
