"""Result of `quantize`."""

from __future__ import annotations

from dataclasses import dataclass

from compiler.compression.quantization.report import QuantizationReport
from compiler.frontends.imported_model import ImportedModel


@dataclass(frozen=True, kw_only=True)
class QuantizedModel(ImportedModel):
    """A model with quantized tensors, to be given to `tensorwright.compile`.

    Attributes:
        name: name of the model it was made from.
        report: what was quantized and what it cost; `report.save("report.html")`.
    """

    name: str
    report: QuantizationReport

    def __repr__(self) -> str:
        return f"<QuantizedModel {self.name!r}: {self.report!r}>"

    def _repr_html_(self) -> str:
        return self.report._repr_html_()


QuantizedModel.__module__ = "tensorwright"  # where it is imported from: for reprs, tracebacks and pickles
