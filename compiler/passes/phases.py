"""The phases of the pipeline, with their passes in order.

Passes that lay out data or write kernels for CPU vectors are registered with `only="processor"`.
"""

from __future__ import annotations

from dataclasses import dataclass

from compiler.passes.canonicalize.cancel_transposes import cancel_reshapes, cancel_transposes
from compiler.passes.canonicalize.eliminate import eliminate_common_subexpressions, eliminate_dead_code
from compiler.passes.canonicalize.fold_batch_norm import fold_batch_norm
from compiler.passes.canonicalize.fold_constants import fold_constants, fold_dequantize
from compiler.passes.canonicalize.fold_pad import crop_filters, fold_pad
from compiler.passes.canonicalize.hoist_slices import hoist_slices
from compiler.passes.canonicalize.merge_matmuls import merge_products_of_slices, merge_small_matmuls
from compiler.passes.canonicalize.normalize import normalize, track_nodes
from compiler.passes.canonicalize.recognize_activations import recognize_gelu, recognize_silu
from compiler.passes.canonicalize.recognize_norms import recognize_layer_norm, recognize_rms_norm
from compiler.passes.canonicalize.simplify_algebra import simplify_algebra
from compiler.passes.canonicalize.spell_sizes import spell_sizes
from compiler.passes.canonicalize.widen_half import widen_half
from compiler.passes.fuse.fuse_kernels import fuse_kernels, group_operators
from compiler.passes.fuse.kernel_sizes import gather_sizes, separate_sizes, specialize_sizes
from compiler.passes.fuse.legalizations import legalize_operators
from compiler.passes.fuse.lower_reshapes import lower_reshapes
from compiler.passes.integers.compute_in_integers import compute_in_integers
from compiler.passes.integers.compute_with_int16 import compute_with_int16
from compiler.passes.integers.keep_weights_narrow import keep_weights_narrow
from compiler.passes.integers.sign_integers import center_weights, sign_integers
from compiler.passes.integers.transposed_in_integers import transposed_in_integers
from compiler.passes.layout.attend_to_states import attend_to_states
from compiler.passes.layout.fuse_attention import fuse_attention
from compiler.passes.layout.narrow_operands import narrow_operands
from compiler.passes.layout.pack_weights import pack_grouped_weights, pack_matmul_weights, pack_sparse_weights
from compiler.passes.layout.plan_layout import plan_layout
from compiler.passes.layout.split_dilated import split_dilated
from compiler.passes.lower.check_parameters_once import check_parameters_once
from compiler.passes.lower.check_sizes import check_sizes, drop_result_checks, name_checks
from compiler.passes.lower.order_sizes import order_sizes
from compiler.passes.lower.prepare_runs import prepare_runs
from compiler.passes.lower.release_results import release_results
from compiler.passes.lower.share_shapes import share_shapes
from compiler.passes.lower.tvm_passes import (
    annotate_patterns,
    call_kernels,
    compute_scalars,
    dispatch_sampling,
    dispatch_sort,
    drop_dataflow,
    drop_purity,
    export_symbols,
    fold_lowered_constants,
    free_storage,
    lower_allocations,
    lower_builtins,
    lower_shapes,
)
from compiler.passes.memory.capture_graphs import capture_graphs
from compiler.passes.memory.lift_parameters import lift_parameters, share_constants
from compiler.passes.memory.list_calls import list_calls
from compiler.passes.memory.plan_memory import plan_memory
from compiler.passes.memory.update_states import update_states
from compiler.passes.registry import GraphPass
from compiler.passes.schedule.apply_schedules import apply_schedules, count_operations
from compiler.passes.schedule.compile_loops import compile_loops
from compiler.passes.schedule.lift_workspaces import lift_workspaces
from compiler.passes.schedule.mark_in_place import mark_in_place
from compiler.passes.schedule.store_compressed import expand_at_load, store_palettes, store_scaled_integers


@dataclass(frozen=True)
class Phase:
    """A named sequence of passes."""

    name: str
    passes: tuple[GraphPass, ...]


# 1. Canonicalize: fold constants, remove unused code, simplify the graph.
CANONICALIZE = (
    normalize,
    track_nodes,
    spell_sizes,
    fold_constants,
    eliminate_dead_code,
    attend_to_states,  # while slices and transposes of states are where the model has them
    widen_half,
    simplify_algebra,
    eliminate_common_subexpressions,
    hoist_slices,
    cancel_transposes,
    fold_pad,
    crop_filters,
    recognize_gelu,
    recognize_silu,
    recognize_layer_norm,
    recognize_rms_norm,
    cancel_transposes,  # again: arithmetic that read a transpose twice may now be a single operator
    fold_batch_norm,
    simplify_algebra,
    merge_products_of_slices,
    merge_small_matmuls,
    normalize,
    track_nodes,
)
# 2. Compress: empty; `quantize`, `prune` and the like stop before it and resume here, and users may add passes.
# 3. Partition: the target claims what its accelerator can run, `Target.partition_passes()`.
# 4. Choose blocked layouts and pack weights for them.
LAYOUT = (
    share_constants,  # packing weights creates shared constants
    transposed_in_integers,
    compute_with_int16,
    compute_in_integers,
    center_weights,
    sign_integers,
    pack_grouped_weights,
    cancel_reshapes,
    keep_weights_narrow,
    fold_dequantize,
    split_dilated,
    narrow_operands,
    plan_layout,
    fuse_attention,
    pack_sparse_weights,
    pack_matmul_weights,
    track_nodes,
)
# 5. Lower operators to kernels and fuse epilogues with their producers.
FUSE = (
    dispatch_sampling,
    dispatch_sort,
    spell_sizes,
    legalize_operators,
    annotate_patterns,
    fold_lowered_constants,
    specialize_sizes,
    spell_sizes,  # again: kernels have the sizes of TVM's expressions
    separate_sizes,
    group_operators,
    gather_sizes,
    fuse_kernels,
    lower_reshapes,  # before schedules obscure which kernels only copy
    eliminate_dead_code,
)
# 6. Schedule every kernel for the machine.
SCHEDULE = (
    share_constants,  # again: weights are packed
    store_palettes,
    store_scaled_integers,
    expand_at_load,
    count_operations,
    mark_in_place,
    apply_schedules,
    lift_workspaces,
    compile_loops,
)
# 7. Move weights out of the code and plan memory.
PLAN_MEMORY = (
    lift_parameters,
    drop_dataflow,
    drop_purity,
    list_calls,
    call_kernels,
    update_states,
    plan_memory,
    capture_graphs,
    lower_allocations,
    free_storage,
)
# 8. Lower the remaining operators to calls of the virtual machine.
LOWER = (
    lower_builtins,
    compute_scalars,
    lower_shapes,
    order_sizes,
    check_sizes,
    name_checks,
    share_shapes,
    drop_result_checks,
    check_parameters_once,
    prepare_runs,
    release_results,
    export_symbols,
)

# The passes of phases 2 and 3 depend on the compilation.
PHASES = (
    Phase("canonicalize", CANONICALIZE),
    Phase("compress", ()),
    Phase("partition", ()),
    Phase("layout", LAYOUT),
    Phase("fuse", FUSE),
    Phase("schedule", SCHEDULE),
    Phase("plan-memory", PLAN_MEMORY),
    Phase("lower", LOWER),
)


def phases_of(pipeline: str) -> list[Phase]:
    """Return the phases with the passes that serve `pipeline`, a value of `Target.pipeline`."""
    return [Phase(each.name, tuple(one for one in each.passes if one.serves(pipeline))) for each in PHASES]
