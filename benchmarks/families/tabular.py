"""Tabular nets: ensembles of trees and linear models of scikit-learn, LightGBM and XGBoost, MLP pipelines, DLRM and
FT-Transformer."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.families.registry import floats, integers, net

FEATURES, CLASSES, SAMPLES = 30, 3, 2000
INPUT = {"x": floats("rows", FEATURES)}
SIZES = ({"rows": 1}, {"rows": 64})


def _data() -> tuple[Any, Any]:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((SAMPLES, FEATURES)).astype(np.float32)
    y = (x[:, 0] * x[:, 1] + np.sin(2 * x[:, 2]) + x[:, 3:8].sum(1) * 0.3 > 0).astype(int) + (x[:, 8] > 0.8)
    return x, y


def _of_sklearn(model: Any) -> Any:
    from skl2onnx import to_onnx

    x, y = _data()
    model.fit(x, y)
    return _renamed(to_onnx(model, x[:1], options={"zipmap": False} if hasattr(model, "predict_proba") else None))


def _renamed(model: Any) -> Any:
    """The model with its input named x."""
    old = model.graph.input[0].name
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name == old:
                node.input[index] = "x"
    model.graph.input[0].name = "x"
    return model


@net("random-forest", INPUT, SIZES)
def random_forest() -> Any:
    """100 trees, three classes (scikit-learn)."""
    from sklearn.ensemble import RandomForestClassifier

    return _of_sklearn(RandomForestClassifier(100, random_state=0, max_depth=12))


@net("gradient-boosting", INPUT, SIZES)
def gradient_boosting() -> Any:
    """100 rounds of trees of depth 3, three classes (scikit-learn)."""
    from sklearn.ensemble import GradientBoostingClassifier

    return _of_sklearn(GradientBoostingClassifier(random_state=0))


@net("sklearn-mlp", INPUT, SIZES)
def sklearn_mlp() -> Any:
    """A scaler and an MLP of two hidden layers, with labels."""
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return _of_sklearn(make_pipeline(StandardScaler(), MLPClassifier((64, 32), max_iter=30, random_state=0)))


@net("logistic-regression", INPUT, SIZES)
def logistic_regression() -> Any:
    """A scaler, polynomial features and a linear classifier."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return _of_sklearn(make_pipeline(StandardScaler(), LogisticRegression(max_iter=200)))


@net("lightgbm", INPUT, SIZES)
def lightgbm() -> Any:
    """200 rounds of 31 leaves, three classes."""
    from lightgbm import LGBMClassifier
    from onnxmltools import convert_lightgbm
    from onnxmltools.convert.common.data_types import FloatTensorType

    x, y = _data()
    model = LGBMClassifier(n_estimators=200, verbose=-1, n_jobs=2, random_state=0).fit(x, y)
    return convert_lightgbm(model, initial_types=[("x", FloatTensorType([None, FEATURES]))], zipmap=False)


@net("xgboost", INPUT, SIZES)
def xgboost() -> Any:
    """200 rounds of trees of depth 6, a regression."""
    from onnxmltools import convert_xgboost
    from onnxmltools.convert.common.data_types import FloatTensorType
    from xgboost import XGBRegressor

    x, y = _data()
    model = XGBRegressor(n_estimators=200, max_depth=6, n_jobs=2).fit(x, y)
    return convert_xgboost(model, initial_types=[("x", FloatTensorType([None, FEATURES]))])


DENSE, SPARSE, VOCABULARY = 13, 26, 1000


@net(
    "dlrm",
    {"dense": floats("rows", DENSE), "sparse": integers(VOCABULARY, "rows", SPARSE)},
    [{"rows": 1}, {"rows": 128}],
)
def dlrm() -> nn.Module:
    """DLRM (arXiv:1906.00091): embeddings, their pairwise products, two MLPs."""

    class Dlrm(nn.Module):
        pairs: torch.Tensor

        def __init__(self, width: int = 64) -> None:
            super().__init__()
            self.tables = nn.ModuleList([nn.Embedding(VOCABULARY, width) for _ in range(SPARSE)])
            self.bottom = _mlp(DENSE, 256, width)
            self.top = _mlp(width + (SPARSE + 1) * SPARSE // 2, 256, 1)
            rows, columns = torch.tril_indices(SPARSE + 1, SPARSE + 1, -1)
            self.register_buffer("pairs", rows * (SPARSE + 1) + columns)

        def forward(self, dense: Any, sparse: Any) -> Any:
            first = self.bottom(dense)
            vectors = torch.stack([first, *(table(sparse[:, k]) for k, table in enumerate(self.tables))], 1)
            products = (vectors @ vectors.transpose(1, 2)).flatten(1).index_select(1, self.pairs)
            return self.top(torch.cat([first, products], 1)).sigmoid()

    torch.manual_seed(0)
    return Dlrm().eval()


@net(
    "ft-transformer",
    {"numbers": floats("rows", 12), "categories": integers(50, "rows", 4)},
    [{"rows": 1}, {"rows": 64}],
)
def ft_transformer() -> nn.Module:
    """FT-Transformer (arXiv:2106.11959): a token per feature, three layers."""

    class FTTransformer(nn.Module):
        offsets: torch.Tensor

        def __init__(self, width: int = 64) -> None:
            super().__init__()
            self.weight, self.bias = (nn.Parameter(torch.randn(12, width)) for _ in range(2))
            self.table = nn.Embedding(4 * 50, width)
            self.first = nn.Parameter(torch.randn(1, 1, width))
            self.register_buffer("offsets", torch.arange(4) * 50)
            layer = nn.TransformerEncoderLayer(width, 8, 128, 0.0, batch_first=True, norm_first=True)
            self.layers = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
            self.head = nn.Sequential(nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, 1))

        def forward(self, numbers: Any, categories: Any) -> Any:
            first = self.first.expand(numbers.shape[0], -1, -1)
            tokens = [first, numbers[:, :, None] * self.weight + self.bias, self.table(categories + self.offsets)]
            return self.head(self.layers(torch.cat(tokens, 1))[:, 0])

    torch.manual_seed(0)
    return FTTransformer().eval()


def _mlp(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inner, outer in itertools.pairwise(widths):
        layers += [nn.Linear(inner, outer), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
