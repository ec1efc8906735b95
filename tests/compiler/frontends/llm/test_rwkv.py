"""RWKV 7 by GGUF file equals float64 numpy: logits, greedy tokens, sessions, several sequences, and its tokenizer."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import compiler
from compiler.artifact.language_model import TOKENIZER_ASSET, LanguageModelDescription
from compiler.driver.compile import find_target
from compiler.errors import InvalidModelError, TensorwrightError
from compiler.frontends.llm import LanguageModelOptions, import_language_model
from compiler.generation import LanguageModel
from compiler.generation.loop import SequenceState
from compiler.generation.steps import BatchedSteps, Chunk
from compiler.generation.tokenizer import Tokenizer
from tests.compiler.artifact.native_library import NativeTokenizer
from tests.compiler.frontends.llm.rwkv_models import Reference, random_tensors, write_folder, write_gguf

_WORDS = ["the ", " the", " then", "\\n\\n", "\\xe4\\xb8", "\\xe4\\xb8\\xad", "aaaa", "aaaab", "\\\\'", "\\t\\x00"]
TOKENS = ["<s>", *(repr(bytes([byte]))[2:-1] for byte in range(256)), *_WORDS]
_BYTES = {each.encode().decode("unicode_escape").encode("latin1"): at for at, each in enumerate(TOKENS)}
_CONFIG: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "head_dim": 12,
    "vocab_size": len(TOKENS),
    "norm_eps": 1e-5,
}


def _greedy(reference: Reference, prompt: np.ndarray[Any, Any], steps: int) -> tuple[list[Any], list[int]]:
    """Logits and tokens of each step."""
    rows, tokens = [reference.run(prompt.tolist())[-1]], list[int]()
    for _ in range(steps):
        tokens.append(int(rows[-1].argmax()))
        rows.append(reference.run(tokens[-1:])[-1])
    return rows, tokens


def _close(found: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]) -> None:
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * abs(wanted).max())


@pytest.mark.parametrize(
    ("size", "gated_mlp", "gates"), [(12, False, True), (48, False, True), (16, True, True), (12, True, False)]
)
def test_logits_and_tokens_equal_the_reference(tmp_path: Path, size: int, *, gated_mlp: bool, gates: bool) -> None:
    config = {**_CONFIG, "head_dim": size}
    tensors = random_tensors(config, gated_mlp=gated_mlp, gates=gates)
    path = write_gguf(tmp_path / "model.gguf", config, tensors, TOKENS)
    model = LanguageModel(compiler.compile(path, threads=1))
    for length in (1, 65):
        prompt = np.random.default_rng(length).integers(1, len(TOKENS), length)
        rows, tokens = _greedy(Reference(config, tensors), prompt, 8)
        session, step = model.module.session(), prompt
        for row, token in zip(rows, [*tokens, 0], strict=True):
            _close(session.run([step[None]])["logits"][0, 0], row)
            step = np.array([token])
        generated = list(model.generate(prompt.tolist(), max_new_tokens=8).tokens)
        end = tokens.index(0) if 0 in tokens else 8  # the stop token
        assert generated[:end] == tokens[:end]


@pytest.mark.parametrize(("fuse_norm", "older"), [(True, False), (False, True)])
def test_folders_equal_the_reference(tmp_path: Path, *, fuse_norm: bool, older: bool) -> None:
    """As flash-linear-attention writes them; older ones have the shifts in one tensor."""
    config = {**_CONFIG, "num_hidden_layers": 2, "intermediate_size": None, "hidden_ratio": 1.5}
    tensors = random_tensors({**config, "intermediate_size": 96})
    stored = dict(tensors)
    if older:
        for index in range(2):
            shifts = [stored.pop(f"model.layers.{index}.attn.x_{part}")[0, 0] for part in "rwkvag"]
            stored[f"model.layers.{index}.attn.x_x"] = np.stack(shifts)
    write_folder(tmp_path, {**config, "fuse_norm": fuse_norm}, stored)
    lines = [f"{index} {each!r} {len(each)}" for each, index in list(_BYTES.items())[1:]]
    (tmp_path / "rwkv_vocab_v20230424.txt").write_text("\n".join(lines))
    model = LanguageModel(compiler.compile(tmp_path, threads=1))
    text = "<s>the then\n\n 中é"
    assert model.tokenizer is not None
    assert model.tokenizer.encode(text) == _longest(text)
    prompt = np.random.default_rng(1).integers(1, len(TOKENS), 9)
    reference = Reference(config, tensors, 1e-6 if fuse_norm else 1e-24, 12 * 1e-5)
    rows, tokens = _greedy(reference, prompt, 4)
    session, step = model.module.session(), prompt
    for row, token in zip(rows, [*tokens, 0], strict=True):
        _close(session.run([step[None]])["logits"][0, 0], row)
        step = np.array([token])


def test_weights_are_calibrated_without_a_capacity(tmp_path: Path) -> None:
    """The states have no rows, so calibration opens a session without a number of them."""
    config = {**_CONFIG, "num_hidden_layers": 2, "hidden_size": 64, "head_dim": 32}
    tensors = random_tensors(config)
    path = write_gguf(tmp_path / "model.gguf", config, tensors, TOKENS)
    text = tmp_path / "text.txt"
    text.write_text("".join(random.Random(0).choices("the n\n\tabcé中", k=4000)))
    module = compiler.compile(path, threads=1, precision="int4", calibration=text)
    prompt = np.random.default_rng(1).integers(1, len(TOKENS), 9)
    found = module.session().run([prompt[None]])["logits"][0, 0]
    assert np.corrcoef(found, Reference(config, tensors).run(prompt.tolist())[-1])[0, 1] > 0.97


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attn": {"layers": [1]}}, "attention in some layers"),
        ({"value_dim": [48, 96]}, "values of"),
        ({"hidden_act": "relu"}, "this activation"),
    ],
)
def test_variants_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    config = {**_CONFIG, "num_hidden_layers": 2}
    write_folder(tmp_path, {**config, **change}, random_tensors(config))
    with pytest.raises(TensorwrightError, match=message):
        import_language_model(tmp_path)


def test_damaged_vocabularies_are_refused(tmp_path: Path) -> None:
    config = {**_CONFIG, "num_hidden_layers": 1}
    write_folder(tmp_path, config, random_tensors(config))
    (tmp_path / "rwkv_vocab_v20230424.txt").write_text("1 b'\\x00' 1\n2 b'ab' 3\n")
    with pytest.raises(InvalidModelError, match="b'ab' does not have 3 bytes"):
        import_language_model(tmp_path)


@pytest.mark.parametrize("sequences", [False, True])
def test_states_of_sessions_go_back_and_fork(tmp_path: Path, *, sequences: bool) -> None:
    tensors = random_tensors(_CONFIG)
    path = write_gguf(tmp_path / "model.gguf", _CONFIG, tensors, TOKENS)
    module = compiler.compile(import_language_model(path, LanguageModelOptions(sequences=sequences)), threads=1)
    shared, *ends = (np.random.default_rng(size).integers(1, len(TOKENS), size).tolist() for size in (20, 7, 9, 5))
    if sequences:
        steps = BatchedSteps(module, 3, 64)
        first = [Chunk(at, [*shared, *end][:20], 0, 20, is_prompt=True, logits=0) for at, end in enumerate(ends)]
        steps.run(first)
        second = [Chunk(at, end, 20, 20 + len(end), is_prompt=True, logits=1) for at, end in enumerate(ends)]
        for end, logits in zip(ends, steps.run(second[::-1])[::-1], strict=True):
            _close(logits[0], Reference(_CONFIG, tensors).run([*shared, *end])[-1])
        return
    session = module.session(snapshots=2)
    session.run([np.array([shared])])
    kept, path = session.snapshot(), tmp_path / "session"
    session.save(path)
    loaded, fork = module.session(), session.fork()
    loaded.load(path)
    for end, each in zip(ends, (session, loaded, fork), strict=True):
        wanted = Reference(_CONFIG, tensors).run([*shared, *end])[-1]
        _close(each.run([np.array([end])])["logits"][0, 0], wanted)
    session.restore(kept)
    _close(
        session.run([np.array([ends[1]])])["logits"][0, 0],
        Reference(_CONFIG, tensors).run([*shared, *ends[1]])[-1],
    )


def test_speculation_and_shared_prompts_change_no_token(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", _CONFIG, random_tensors(_CONFIG), TOKENS)
    imported = import_language_model(path, LanguageModelOptions(sequences=True))
    model = LanguageModel(compiler.compile(imported, threads=1))
    prompt = [5, 6, 7, 8] * 4
    wanted = model.generate(prompt, max_new_tokens=20).tokens
    assert model.generate(prompt, speculative=4, max_new_tokens=20).tokens == wanted
    state, reused = SequenceState(model.steps(1, 64), 64), []
    for end in ([9, 10], [11, 12, 13], [14]):
        reused.append(state.keep_common([*prompt, *end]))
        found = state.read_prompt([*prompt, *end]).copy()
        _close(found, SequenceState(model.steps(1, 64), 64).read_prompt([*prompt, *end]))
    assert reused == [0, 0, len(prompt)]


def _longest(text: str) -> list[int]:
    """The longest token at each place, found as plainly as it is said."""
    content, found, at = text.encode(), list[int](), 0
    while at < len(content):
        end = max(end for end in range(at + 1, len(content) + 1) if content[at:end] in _BYTES)
        found.append(_BYTES[content[at:end]])
        at = end
    return found


def test_texts_are_cut_into_the_longest_tokens(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", _CONFIG, random_tensors(_CONFIG), TOKENS)
    content = import_language_model(path).assets[TOKENIZER_ASSET]
    description = LanguageModelDescription(architecture="rwkv7", context=64, vocabulary=len(TOKENS))
    tokenizer = Tokenizer(content, description)
    native = NativeTokenizer(content, find_target("host"))
    chance = random.Random(3)
    parts = ["the ", " then", "a", "\n\n", "\n", "中", "文", "é", "aaaab", "<s>", "<", "\\'", "\t\0", "😀"]
    texts = ["", *("".join(chance.choices(parts, k=chance.randrange(30))) for _ in range(60))]
    for text in texts:
        found = tokenizer.encode(text)
        assert found == _longest(text)
        assert found == native.encode(text, special=True)
        assert found == tokenizer._tokenizer.encode(text).ids
        assert tokenizer.decode(found, skip_special=False) == text
        assert native.decode(found) == text.replace("<s>", "")
    assert tokenizer.encode("aaaa" * 20_000) == [TOKENS.index("aaaa")] * 20_000
    assert tokenizer.token_bytes(len(TOKENS))[257 + 4] == b"\xe4\xb8"
