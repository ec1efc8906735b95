"""Builds and times candidates in separate processes, so that a crash or a hang costs only one trial.

`build_worker` builds single kernels, `measure_worker` runs them; each serves requests (`messages`) over a pipe
(`channel`). `pool` is the caller's side: it restarts dead workers and turns every outcome into a `messages.Outcome`.
"""
