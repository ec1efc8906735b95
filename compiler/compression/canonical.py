"""The form of a model that techniques work on."""

from __future__ import annotations

from dataclasses import replace

import targets
from compiler.frontends.imported_model import ImportedModel
from compiler.passes.context import PassOptions, PipelineContext
from compiler.passes.pipeline import run_pipeline


def canonical(model: ImportedModel, target: targets.Target) -> ImportedModel:
    """With batch norms folded and constants computed."""
    context = PipelineContext(target=target, machine=target.machine, options=_options(model))
    mod = run_pipeline(model.mod, context, until="canonicalize").mod
    return replace(model, mod=mod, nodes=context.tracker.nodes)


def _options(model: ImportedModel) -> PassOptions:
    return PassOptions(checks=model.checks, nodes=model.nodes)
