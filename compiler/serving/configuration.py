"""Configuration of a server: its models, and the services wrapped around each of them.

It is read from a YAML file or built from the command line. A model's services, from the inside out: the module, the
batcher, then those of `LAYERS` in its options.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from compiler.errors import OptionError, storage_errors
from compiler.runtime import Module
from compiler.serving.batching.batcher import Batcher
from compiler.serving.batching.module_service import ModuleService, Runners, load_proven
from compiler.serving.batching.planner import BatchOptions
from compiler.serving.caches import embedding, exact, semantic
from compiler.serving.limits import Limits
from compiler.serving.metrics import Observer
from compiler.serving.parts import Parts
from compiler.serving.policies import cascade, drift, router
from compiler.serving.policies.variants import DegradationOptions, Variants, load_variants
from compiler.serving.service import Service
from compiler.serving.text.service import GenerationLimits, TextOptions, TextService, is_language_model
from compiler.support.tokenizer_file import read_tokenizer_file

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class Layer:
    """A service that wraps another one: the name and type of its options, and its builder."""

    name: str
    options: type[Any]
    build: Callable[[Any, Service, Parts], Service]


LAYERS: tuple[Layer, ...] = (
    Layer("cascade", cascade.CascadeOptions, cascade.build),
    Layer("router", router.RouterOptions, router.build),
    Layer("drift", drift.DriftOptions, drift.build),
    Layer("embedding_cache", embedding.EmbeddingCacheOptions, embedding.build),
    Layer("semantic_cache", semantic.SemanticCacheOptions, semantic.build),
    Layer("exact_cache", exact.ExactCacheOptions, exact.build),
)
"""From the inside out."""


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """One model of a server.

    Attributes:
        name: name for clients.
        path: a module (.twm); a folder of variants, as `tensorwright compress --variants` writes it; or a folder of
            versions, VERSION/model.twm or VERSION with variants, whole numbers, of which the highest is served.
        batch: batching options.
        runners, threads: number of concurrent runs, and threads of each; None: by the number of cores.
        cores: number of cores to use; None for all.
        latency_ms: the deadline of requests that do not set one; None: no deadline.
        text: options of the embeddings route.
        generation: options for language models.
        variants: degradation under overload, for a folder of variants.
        layers: options of the services around the batcher, by their names in `LAYERS`.
    """

    name: str
    path: Path
    batch: BatchOptions = field(default_factory=BatchOptions)
    runners: int | None = None
    threads: int | None = None
    cores: int | None = None
    latency_ms: float | None = None
    text: TextOptions = field(default_factory=TextOptions)
    generation: GenerationLimits = field(default_factory=GenerationLimits)
    variants: DegradationOptions = field(default_factory=DegradationOptions)
    layers: Mapping[str, Any] = field(default_factory=dict, metadata={"elsewhere": True})

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise OptionError(f"{self.name!r} is not a model name", "use letters, digits, '.', '_' and '-'")


def build_service(options: ModelOptions, path: Path, version: str, observer: Observer) -> Service:
    """Build the services of one version of a model, not started; the module's stored example is verified.

    Raises as loading a module, and OptionError for options that do not fit the model.
    """

    runners = Runners(options.name)

    def batched(module: Module, variant: str) -> Service:
        made = ModuleService(
            module,
            options.name,
            version,
            variant,
            runners=options.runners,
            threads=options.threads,
            cores=options.cores,
            batched=options.batch.enabled,
        )
        made.share(runners)
        return Batcher(made, options.batch)

    service: Service
    if path.is_dir():
        index, variants = load_variants(path, batched)
        service = Variants(variants, options.variants, observer, reference=index.reference)
    else:
        if options.variants != DegradationOptions():
            raise OptionError(f"{path} is one module, and variants= is for a folder of variants")
        module = load_proven(path)
        if is_language_model(module):
            return _text_service(module, options, version)
        _check_texts(options, path)
        service = batched(module, "default")
    parts = Parts(observer, lambda file, variant: batched(load_proven(file), variant))
    for layer in LAYERS:
        if layer.name in options.layers:
            service = layer.build(options.layers[layer.name], service, parts)
    return service


def _check_texts(options: ModelOptions, path: Path) -> None:
    """Refuse options that would fail with the first text."""
    if options.generation != GenerationLimits():
        raise OptionError(f"{path} is not a language model, to which alone generation= applies")
    if options.text.tokenizer is not None:
        read_tokenizer_file(options.text.tokenizer)


def _text_service(module: Module, options: ModelOptions, version: str) -> TextService:
    if options.layers:
        raise OptionError(
            f"{options.name!r} is a language model, to which {', '.join(options.layers)} cannot be applied"
        )
    module.threads = options.threads or options.cores
    return TextService(module, options.name, version, options.generation)


def read_configuration(path: Path) -> list[ModelOptions]:
    """Read the models listed under `models` in a YAML file, each a mapping of `ModelOptions` and of `LAYERS`.

    Raises:
        StorageError: it cannot be read.
        OptionError: it is not valid YAML, or an option is unknown or does not fit.
    """
    models = _content(path).get("models")
    if not isinstance(models, Sequence) or isinstance(models, str) or not models:
        raise OptionError(f"{path} must hold a list of models under the key 'models'")
    return check_models(
        [model_options(each, f"model {index} of {path}", path.parent) for index, each in enumerate(models)]
    )


def server_limits(path: Path | None, given: Mapping[str, object]) -> Limits:
    """Return the limits of requests: the given ones, or else those under `limits` in a YAML file. Raises as above."""
    listed = {} if path is None else _content(path).get("limits") or {}
    return options_from(Limits, {**options_mapping(listed, f"limits of {path}"), **given}, "limits")


def _content(path: Path) -> Mapping[str, Any]:
    with storage_errors(path):
        text = path.read_text(encoding="utf-8")
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise OptionError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, Mapping) or not set(content) <= {"models", "limits"}:
        raise OptionError(f"{path} must hold a list of models under the key 'models', and otherwise only 'limits'")
    return content


def model_options(given: object, where: str, folder: Path | None = None) -> ModelOptions:
    """Read the options of a model from a mapping. Raises OptionError if one is unknown or does not fit."""
    if not isinstance(given, Mapping):
        raise OptionError(f"{where} must be a mapping of options, not {given!r}")
    layers = {layer.name: layer for layer in LAYERS}
    built = {
        name: options_from(layers[name].options, value or {}, f"{name} of {where}", folder)
        for name, value in given.items()
        if name in layers
    }
    plain = {name: value for name, value in given.items() if name not in layers}
    if "name" not in plain and "path" in plain:
        plain["name"] = default_name(Path(str(plain["path"])))
    if "layers" in plain:
        raise OptionError(f"{where} has no option 'layers'", f"name them directly: {', '.join(layers)}")
    return replace(options_from(ModelOptions, plain, where, folder, others=tuple(layers)), layers=built)


def default_name(path: Path) -> str:
    """Return a model's default name, from its file or folder."""
    name = re.sub(r"[^A-Za-z0-9._-]", "-", path.name.removesuffix(".twm"))
    return name.lstrip("._-") or "model"


def check_models(models: Sequence[ModelOptions]) -> list[ModelOptions]:
    """Raise OptionError if two models have the same name."""
    names = [each.name for each in models]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise OptionError(
            f"two models are named {twice!r}", "give them different names: NAME=MODULE, or name: in a file"
        )
    return list(models)


Options = TypeVar("Options")


def options_from(
    kind: type[Options],
    given: Mapping[str, object],
    where: str,
    folder: Path | None = None,
    *,
    others: Sequence[str] = (),
) -> Options:
    """Create an options dataclass from a mapping. Raises OptionError if a name is unknown, or a value does not fit.

    Args:
        where: description of the mapping, for messages: "exact_cache of model 'minilm'".
        folder: base of relative paths.
        others: names that are read elsewhere, for messages.
    """
    options_mapping(given, where)
    known = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for name in given:
        if name not in known:
            names = [*(each for each in known if not known[each].metadata.get("elsewhere")), *others]
            near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
            raise OptionError(
                f"{where} has no option {name!r}" + (f" (did you mean {near[0]!r}?)" if near else ""),
                f"its options are {', '.join(names)}",
            )
    try:
        options: Options = TypeAdapter(kind).validate_python(dict(given))
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(map(str, first["loc"]))
        raise OptionError(f"{where}: {path}: {first['msg']}") from error
    return options if folder is None else _with_absolute_paths(options, folder)


def options_mapping(given: object, where: str) -> Mapping[str, object]:
    """Return a mapping of options. Raises OptionError for anything else."""
    if not isinstance(given, Mapping):
        raise OptionError(f"{where} must be a mapping of options, not {given!r}")
    return given


def _with_absolute_paths(value: object, folder: Path) -> Any:
    """Make the relative paths in an options dataclass absolute, recursively."""
    if isinstance(value, Path):
        return folder / value
    if isinstance(value, tuple | list):
        return type(value)(_with_absolute_paths(each, folder) for each in value)
    if isinstance(value, Mapping):
        return {name: _with_absolute_paths(each, folder) for name, each in value.items()}
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    fields = (field.name for field in dataclasses.fields(value))
    return dataclasses.replace(value, **{name: _with_absolute_paths(getattr(value, name), folder) for name in fields})
