"""The form of a model that techniques work on."""

from __future__ import annotations

from dataclasses import replace

import targets
from compiler.frontends.imported_model import ImportedModel
from compiler.passes.context import PassOptions, PipelineContext
from compiler.passes.pipeline import run_pipeline


def canonical(model: ImportedModel, target: targets.Target) -> ImportedModel:
    """With batch norms folded and constants computed."""
    context = PipelineContext(target=target, machine=target.machine, options=PassOptions(checks=model.checks))
    return replace(model, mod=run_pipeline(model.mod, context, until="canonicalize").mod)
