"""The functions in a module's library: the interface between the compiler and the runtime.

`main(*inputs, *parameters)` always exists. If `CHECK_ENTRY(*parameters)` exists too, `main` does not check the types
and shapes of its parameters: the runtime calls that function once when it loads the module. If the manifest says that
the last `n` parameters are stored in a smaller form than `main` takes, `EXPAND_ENTRY(*those)` returns the form that
`main` takes; the runtime calls it once when it loads the module.

If `RUN_ENTRY(*inputs, *parameters, *PREPARE_ENTRY(*inputs))` exists, it returns the same as `main(*inputs,
*parameters)`. The result of `PREPARE_ENTRY` is valid for all runs whose inputs have the same shapes, one run at a time.
`RUN_KEEPING_ENTRY` with `PREPARE_KEEPING_ENTRY` does the same, but each run writes its results to the tensors that the
first run returned. The caller has to copy them, which is faster than allocating new memory if they are small. Where
results are allocated, the code calls `RELEASE_ENTRY` first.
"""

MAIN_ENTRY = "main"
CHECK_ENTRY = "tensorwright_check"
EXPAND_ENTRY = "tensorwright_expand"
PREPARE_ENTRY = "tensorwright_prepare"
RUN_ENTRY = "tensorwright_run"
PREPARE_KEEPING_ENTRY = "tensorwright_prepare_keeping"
RUN_KEEPING_ENTRY = "tensorwright_run_keeping"
RELEASE_ENTRY = "tensorwright_release_results"

CHECK_MARK = "tensorwright"
"""Prefix of the text of a check in a library: `MARK[purpose of the check]`."""
