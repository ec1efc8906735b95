"""OpenAI's list of models, and the lookup of a model by its routes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compiler.errors import InputError
from compiler.serving.app.http import Call, Reply, check_method, json_reply
from compiler.serving.repository import Repository
from compiler.support.shown import shown

_PREFIX = "/v1/models"


class OpenAIModels:
    """`GET /v1/models` and `GET /v1/models/NAME`."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository

    async def answer(self, call: Call) -> Reply | None:
        """See `Routes`."""
        if call.path != _PREFIX and not call.path.startswith(f"{_PREFIX}/"):
            return None
        check_method(call, "GET")
        call.route = "models"
        name = call.path[len(_PREFIX) + 1 :]
        adapters = self._repository.adapters
        if name:
            if name not in adapters:
                self._repository.service(name)
            return json_reply(_described(name, adapters.get(name)))
        names = dict.fromkeys(each.name for each in self._repository.index() if each.state == "READY") | adapters
        return json_reply({"object": "list", "data": [_described(*each) for each in names.items()]})


def _described(name: str, parent: str | None) -> dict[str, Any]:
    """Describe a model; `parent`: the base model of an adapter."""
    found = {"id": name, "object": "model", "created": 0, "owned_by": "tensorwright"}
    return found if parent is None else {**found, "parent": parent}


def named_model(repository: Repository, body: Mapping[str, object], call: Call) -> str:
    """Return the name of the requested model. Raises InputError, ModelNotFoundError, ServiceUnavailableError."""
    name = body.get("model")
    if not isinstance(name, str):
        raise InputError(f"'model' must be the name of a model, not {shown(name)}")
    repository.options(name)
    call.model = name
    return name


def unknown_fields(body: Mapping[str, object], known: frozenset[str], ignored: frozenset[str]) -> None:
    """Raise InputError for an unsupported field that would change the answer."""
    for name, value in body.items():
        if name not in known and name not in ignored and value is not None:
            raise InputError(f"the field {shown(name)} is not supported", f"known are {', '.join(sorted(known))}")
