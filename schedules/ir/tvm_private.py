"""Private parts of TVM that this project uses. Each function has a test that fails if TVM changes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from schedules.ir.tir import tvm

# isort: split
from tvm import relax
from tvm.relax import vm_build
from tvm.relax.transform.legalize_ops import binary, nn, qdq

if TYPE_CHECKING:
    from tvm.s_tir.meta_schedule import TuneContext

    from schedules.ir.tvm_types import IRModule, RuntimeModule, Type

Legalization = Callable[[relax.BlockBuilder, relax.Call], relax.Expr]

legalize_layer_norm: Legalization = nn._nn_layer_norm
legalize_instance_norm: Legalization = nn._nn_instance_norm
legalize_group_norm: Legalization = nn._nn_group_norm
legalize_quantize: Legalization = qdq._quantize


def legalize_binary(function: Callable[..., Any]) -> Legalization:
    """TVM's lowering of an elementwise operator of two tensors to a function of `topi`."""
    lowering: Legalization = binary._binary(function)
    return lowering


def set_type(expression: relax.Expr, of: Type) -> None:
    """Set the type of an expression: TVM has no public way to type a new GlobalVar."""
    relax.expr._update_type(expression, of)


def generate_bytecode(builder: relax.ExecBuilder, mod: tvm.IRModule) -> None:
    """The instructions of the virtual machine for a module's Relax functions, without its kernels."""
    vm_build._vmcodegen(builder, mod)


def link_bytecode(builder: relax.ExecBuilder, target: tvm.target.Target, library: RuntimeModule | None = None) -> Any:
    """Link the executable of a builder whose kernels are built separately. With a library of LLVM's its bytecode is
    exported as an object, otherwise as C."""
    return relax.VMExecutable(vm_build._ffi_api.VMLink(builder, target, library, [], {}))


def declare_operator(name: str, description: str) -> None:
    """Register a TensorIR operator."""
    tvm.ir._ffi_api.RegisterOp(name, description)


def tune_context(
    module: IRModule, target: tvm.target.Target, space: object, strategy: object, logger: tuple[int, object]
) -> TuneContext:
    """A `meta_schedule.TuneContext`, made without its Python constructor, which first parses the intrinsics of all
    processors and often takes longer than the search itself."""
    from tvm.s_tir import meta_schedule
    from tvm.s_tir.meta_schedule import _ffi_api

    context = meta_schedule.TuneContext.__new__(meta_schedule.TuneContext)
    seed, log = logger
    context.__init_handle_by_constructor__(_ffi_api.TuneContext, module, target, space, strategy, "main", 1, seed, log)
    _ffi_api.TuneContextInitialize(context)
    return context


def llvm_host_model() -> str:
    """LLVM's name of this machine's processor."""
    return str(tvm.get_global_func("tvm.codegen.llvm.GetHostCPUName")())


def llvm_host_features() -> frozenset[str]:
    """The features that LLVM detects on this machine."""
    reported = tvm.get_global_func("tvm.codegen.llvm.GetHostCPUFeatures")()
    return frozenset(str(name) for name, enabled in reported.items() if bool(enabled))


def llvm_features(options: dict[str, object]) -> frozenset[str]:
    """The features that LLVM enables for a target's options."""
    found = tvm.get_global_func("target.llvm_get_cpu_features")(tvm.target.Target(options))
    return frozenset(str(name) for name in found)
