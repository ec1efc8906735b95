"""Runs whose results differ from the reference's, and the statements of docs/runtime_checks.md about them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.fuzz.hostile.catalog import Subject

PAGE = Path(__file__).parents[3] / "docs" / "runtime_checks.md"


@dataclass(frozen=True)
class Statement:
    """A statement of the page about runs.

    Attributes:
        text: quotation from the page.
        operators: a pattern of subjects' operators.
        runs: a pattern of runs' labels.
        computed: True if it applies only to values that the model computes.
    """

    text: str
    operators: str
    runs: str = r".*"
    computed: bool = True

    def is_about(self, subject: Subject, label: str) -> bool:
        """True if it applies to a run of a subject."""
        if self.computed and subject.form == "input" and not re.fullmatch(_COMPUTED_IN_ITSELF, subject.operator):
            return False
        return bool(re.fullmatch(self.operators, subject.operator) and re.fullmatch(self.runs, label))


_COMPUTED_IN_ITSELF = r"Loop .*|torch (select by a tensor|index x\[i, j\]|LSTM's last step)"
"""Whose indices are computed in every form."""

_INDEX = "an index outside the axis that the model computes"
_REFUSED = "an index that PyTorch refuses, computed by the model"
_WILD = "coordinates that are NaN, infinite or beyond 2^31"
_COORDINATES = "coordinates into axes of different sizes"

STATEMENTS = (
    Statement(_INDEX, r"(Gather|ArrayFeatureExtractor).*|Loop that indexes by its turn"),
    Statement(_COORDINATES, r"GatherND", computed=False),
    Statement("the update is left out", r"Scatter(Elements|ND).*"),
    Statement("such coordinates", r"ScatterND", computed=False),
    Statement("a position outside the cache that the model computes", r"TensorScatter"),
    Statement("a length outside [0, size] that the model computes", r"(ReverseSequence|RNN|GRU|LSTM).*"),
    Statement("a batch index outside the data that the model computes, or that is a float", r"RoiAlign.*"),
    Statement(
        "a batch index outside the data that the model computes, or that is a float", r"MaxRoiPool", computed=False
    ),
    Statement("more than 1024 samples of a bin", r"RoiAlign.*", r"r.*", computed=False),
    Statement("an index outside the output that the model computes", r"MaxUnpool"),
    Statement("a negative size or count that the model computes", r"(ConstantOfShape|Expand|Tile|OneHot|TopK).*"),
    Statement("an `output_shape` smaller than its input", r"MaxUnpool output_shape", computed=False),
    Statement("a last position outside [-1, total length)", r"GroupQueryAttention", computed=False),
    Statement("a position or an id outside the table", r"(RotaryEmbedding|EmbedLayerNormalization).*"),
    Statement("RotaryEmbedding a negative position too", r"RotaryEmbedding", r"p=-.*", computed=False),
    Statement("a target outside the classes", r"(NegativeLogLikelihoodLoss|SoftmaxCrossEntropyLoss)", computed=False),
    Statement("a mask whose last axis is shorter or longer than the keys", r"Attention mask", computed=False),
    Statement("a threshold outside [0, 1] or NaN", r"NonMaxSuppression", r"t=.*", computed=False),
    Statement("a size of 0, or a negative one", r"(OneHot|Resize|AffineGrid|MaxUnpool output_shape).*"),
    Statement("a size that is negative or beyond 2^62", r"\w+Window", computed=False),
    Statement("an end of 2^63 - 1 that is not a constant", r"Slice by -.*", r"b=9223372036854775807", computed=False),
    Statement("scores that are NaN", r"NonMaxSuppression", r"s=nan", computed=False),
    Statement("NaN, as in numpy", r"ReduceMean", computed=False),
    Statement("a number of keys outside [0, size] that the model computes", r"Attention lengths"),
    Statement("positions of one sample for several", r"RotaryEmbedding.*", r"p of 1 batch", computed=False),
    Statement("the least integer divided by -1", r"Div.*", r"c=-1", computed=False),
    Statement("integers whose power overflows", r"Pow of integers", computed=False),
    Statement("a size of 0, or a negative one", r"(OneHot|Resize).*", r"[sd]=0", computed=False),
    Statement("a negative size other than -1", r"Reshape.*", computed=False),
    Statement("negative borders that leave no element", r"Pad.*", r"p=?.*-.*|x\[0, 8\]", computed=False),
    Statement("a tensor without elements", r"(Group|Attention|Tf|Global|Scan).*", r"x\[.*0.*\]|no.*", computed=False),
    Statement("an integer divided by 0", r"(Div|Mod).*", r"c=0", computed=False),
    Statement("`delta` of 0, bounds that are NaN", r"Range.*", computed=False),
    Statement("a border wider than a size that is known when compiling", r"Pad reflect.*", computed=False),
    Statement(
        _WILD, r"(GridSample|DeformConv|torch grid_sample).*", r"[go]=(nan|.*inf|-?1e\+30|3000000000.0)", computed=False
    ),
    Statement("a condition longer than the axis", r"Compress.*", computed=False),
    Statement(_REFUSED, r"torch (Embedding|index|select|gather|take|scatter|max_unpool|LSTM's last step|one_hot).*"),
    Statement(
        "a negative target that is not `ignore_index`", r"torch (nll_loss|cross_entropy)", r".*-.*", computed=False
    ),
    Statement("a target that PyTorch refuses, computed by the model", r"torch (nll_loss|cross_entropy)"),
    Statement("offsets that do not begin with 0, or fall", r"torch EmbeddingBag.*", r"o.*", computed=False),
    Statement("a negative count that the model computes", r"torch repeat_interleave"),
    Statement("fewer parts than the example input", r"torch (split by 3|chunk)", computed=False),
    Statement("sizes that come to 0", r"torch interpolate.*", computed=False),
)


@cache
def page() -> str:
    """The text of the page, with single spaces."""
    return " ".join(PAGE.read_text().split())


def is_documented(subject: Subject, label: str) -> bool:
    """True if the page has a statement about a run of a subject."""
    return any(each.is_about(subject, label) and each.text in page() for each in STATEMENTS)
