"""The description of a language model beside the manifest: the asset `language_model.json`."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

DESCRIPTION_ASSET = "language_model.json"
TOKENIZER_ASSET = "tokenizer.json"
ENCODER_ASSET = "encoder.twm"

Token = Annotated[int, Field(ge=0, lt=1 << 31)]


class LanguageModelDescription(BaseModel):
    """How to generate with a module.

    Attributes:
        architecture: the kind of model, as "llama".
        context: the largest number of tokens, prompt and result together.
        vocabulary: how many logits there are.
        stop_tokens: those that end a text.
        begin: text of the token that begins a text, for chat templates; "" for none.
        end: text of the token that ends one.
        chat_template: Jinja source that turns messages into a prompt; None where the model has none.
        sequences: whether a run is of several sequences.
        stable_context: the length of a sequence beyond which keys depend on the length, so that longer sequences cannot
            share their beginnings; None where they never do.
        image_token: stands in a prompt for each row that the encoder returns for images; None for other models.
        start: what a text begins with where the prompt is empty; of models with an encoder and cross attention.
        suppressed: tokens that are never generated.
        suppressed_first: those that are not generated first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    architecture: str
    context: Annotated[int, Field(ge=1)]
    vocabulary: Annotated[int, Field(ge=1)]
    stop_tokens: Annotated[tuple[Token, ...], Field(strict=False)] = ()
    begin: str = ""
    end: str = ""
    chat_template: str | None = None
    sequences: bool = False
    stable_context: Annotated[int, Field(ge=1)] | None = None
    image_token: Token | None = None
    start: Annotated[tuple[Token, ...], Field(strict=False)] = ()
    suppressed: Annotated[tuple[Token, ...], Field(strict=False)] = ()
    suppressed_first: Annotated[tuple[Token, ...], Field(strict=False)] = ()
