"""Tuning: finds the fastest config of each schedule rule on a device by measuring, and stores it in records.

`tune.tune` is the loop; `tasks` lists what to tune, `search` proposes, `cost_models` rank, `measuring` builds and
times, `records` store.
"""
