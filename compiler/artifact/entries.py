"""The functions of a module's library: a contract between the compiler and the runtime.

`main(*inputs, *parameters)` is always there. Where `CHECK_ENTRY(*parameters)` is there too, `main` no longer checks the
types and shapes of its parameters: the runtime has that function do it once, when it loads the module.

Where the manifest says that the last `n` parameters are stored smaller than `main` takes them, `EXPAND_ENTRY(*those)`
returns what `main` takes in their place; the runtime calls it once, when it loads the module.

Where `RUN_ENTRY(*inputs, *parameters, *PREPARE_ENTRY(*inputs))` is there, it gives what `main(*inputs, *parameters)`
gives, and what the second returned serves all runs whose inputs have the same shapes, one run at a time.
`RUN_KEEPING_ENTRY` with `PREPARE_KEEPING_ENTRY` does the same, but each run writes its results to the tensors that the
first one gave: a caller has to copy them, which costs less than memory of their own where they are small.
"""

MAIN_ENTRY = "main"
CHECK_ENTRY = "tensorwright_check"
EXPAND_ENTRY = "tensorwright_expand"
PREPARE_ENTRY = "tensorwright_prepare"
RUN_ENTRY = "tensorwright_run"
PREPARE_KEEPING_ENTRY = "tensorwright_prepare_keeping"
RUN_KEEPING_ENTRY = "tensorwright_run_keeping"

CHECK_MARK = "tensorwright"
"""Begins the text of a check in a library: `MARK[what the check is for]`."""
