"""Static executables of language models: text in, text out, in an empty root folder under QEMU."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import compiler
from compiler.artifact.language_model import DESCRIPTION_ASSET
from compiler.cli import main
from compiler.device.static_program import StaticProgram, write_static_program
from compiler.errors import OptionError
from compiler.generation import LanguageModel
from compiler.generation.text_program import _frames, text_program
from compiler.generation.tokenizer import Tokenizer
from targets import Target
from tests.compiler.cli.running import isolated_consoles
from tests.compiler.device.emulators import target_that_runs


@pytest.fixture(scope="module")
def target() -> Target:
    return target_that_runs("aarch64-linux", cores=1)


@pytest.fixture(scope="module")
def module(folder: Path, target: Target) -> compiler.Module:
    return compiler.compile(folder, target, threads=1)


@pytest.fixture(scope="module")
def program(module: compiler.Module, target: Target, tmp_path_factory: pytest.TempPathFactory) -> StaticProgram:
    artifact = module.artifact
    return write_static_program(
        artifact, target, tmp_path_factory.mktemp("device") / "model", text=text_program(artifact)
    )


def run(
    program: StaticProgram, target: Target, root: Path, *options: object, prompt: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    command = [target.emulator()[0], "-L", str(root), str(program.path), *map(str, options)]
    return subprocess.run(command, capture_output=True, timeout=600, input=prompt)


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ([], {}),
        (["--temperature", 0.9, "--top-k", 50, "--top-p", 0.9, "--min-p", 0.01, "--seed", 2**40 + 7],
         {"temperature": 0.9, "top_k": 50, "top_p": 0.9, "min_p": 0.01, "seed": 2**40 + 7}),
        (["--repetition-penalty", 1.5, "--stop", "zz", "--stop=\N{LATIN SMALL LETTER E WITH ACUTE}"],
         {"repetition_penalty": 1.5, "stop": ("zz", "\N{LATIN SMALL LETTER E WITH ACUTE}")}),
    ],
)  # fmt: skip
def test_it_generates_the_tokens_of_the_python_package(
    program: StaticProgram, target: Target, separate: LanguageModel, tmp_path: Path, options: Any, settings: Any
) -> None:
    text = "Gr\u00fc\u00dfe <|user|>\n"
    done = run(program, target, tmp_path, "-p", text, "--max-new-tokens", 40, "--json", *options)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    expected = separate.generate([{"role": "user", "content": text}], max_new_tokens=40, **settings)
    assert found["tokens"] == list(expected.tokens)
    assert (found["text"], found["finish_reason"]) == (expected.text, expected.finish_reason)
    assert (found["prompt_tokens"], found["seed"]) == (expected.prompt_tokens, expected.seed)


def test_a_text_from_standard_input_is_continued(
    program: StaticProgram, target: Target, separate: LanguageModel, tmp_path: Path
) -> None:
    prompt = "\u6f22 a"
    done = run(program, target, tmp_path, "--raw", "--max-new-tokens=12", prompt=prompt.encode())
    assert done.stdout.decode() == separate.generate(prompt, max_new_tokens=12).text + "\n"
    assert b"ended by length" in done.stderr


@pytest.mark.parametrize(
    ("options", "prompt", "message"),
    [
        (["-p", "a" * 200], b"", "exceeds the context of 96"),
        (["--raw"], b"", "the prompt is empty"),
        (["--raw"], b"a\xff", "the prompt is not valid UTF-8 at byte 1"),
        (["-p", "a", "--top-p", "2"], b"", "--top-p takes a number"),
        (["-p", "a", "--seed", "x"], b"", "--seed takes a whole number"),
        (["-p", "a", "--unknown"], b"", "usage: "),
    ],
)
def test_what_is_wrong_is_one_clear_error(
    program: StaticProgram, target: Target, tmp_path: Path, options: list[str], prompt: bytes, message: str
) -> None:
    done = run(program, target, tmp_path, *options, prompt=prompt)
    assert done.returncode in (1, 2)
    assert message in done.stderr.decode()
    assert done.stdout == b""


def test_it_still_verifies_itself(program: StaticProgram, target: Target, tmp_path: Path) -> None:
    assert b"verified" in run(program, target, tmp_path, "--verify").stdout


def _tokenizer(separate: LanguageModel, template: str) -> Tokenizer:
    content = separate.module.artifact.assets["tokenizer.json"].tobytes()
    return Tokenizer(content, msgspec.structs.replace(separate.description, chat_template=template))


def test_templates_become_the_texts_around_messages(separate: LanguageModel) -> None:
    body = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}\n{% endfor %}<assistant>"
    both = [(["<user>", "\n<assistant>"], [True]), (["<system>", "\n<user>", "\n<assistant>"], [True, True])]
    assert _frames(_tokenizer(separate, body)) == both
    users_alone = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + body
    assert _frames(_tokenizer(separate, users_alone)) == both[:1]
    with pytest.raises(OptionError, match="a chat template that depends on the messages"):
        _frames(_tokenizer(separate, "{{ messages[0].content | upper }}"))


def test_modules_with_other_inputs_are_refused(separate: LanguageModel) -> None:
    artifact = separate.module.artifact
    several = msgspec.json.encode(msgspec.structs.replace(separate.description, sequences=True))
    other = replace(artifact, assets={**artifact.assets, DESCRIPTION_ASSET: np.frombuffer(several, np.uint8)})
    with pytest.raises(OptionError, match="compiled for several sequences"):
        text_program(other)


def test_command(
    module: compiler.Module, program: StaticProgram, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module.export(tmp_path / "m.twm")
    bundle = ["bundle", str(tmp_path / "m.twm"), "--output"]
    with isolated_consoles():
        assert main([*bundle, str(tmp_path / "plain"), "--static", "--no-text"]) == 0
        assert main([*bundle, str(tmp_path / "folder"), "--raw"]) != 0
    assert "--no-text and --raw are for --static" in capsys.readouterr().err
    tokenizer = text_program(module.artifact)
    assert [tokenizer in path.read_bytes() for path in (program.path, tmp_path / "plain")] == [True, False]
