"""Building and timing candidates in processes of their own, so that a crash or a hang costs one trial.

`build_worker` builds single kernels, `measure_worker` runs them; each serves requests (`messages`) over a pipe
(`channel`). `pool` is the caller's side: it restarts what died and turns every outcome into a `messages.Outcome`.
"""
