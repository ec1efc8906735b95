"""Import of ONNX models as Relax."""

from compiler.frontends.onnx.coverage import CoverageReport, coverage_report
from compiler.frontends.onnx.frontend import import_onnx

__all__ = ["CoverageReport", "coverage_report", "import_onnx"]
