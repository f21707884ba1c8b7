"""Faults, kind 5: errors of other libraries passed through. What is common is accepted; all else is one sentence."""

from __future__ import annotations

import errno
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grit_mlx import GritLM
from grit_mlx.errors import (
    ArgumentError,
    CheckpointError,
    ConfigError,
    DocumentError,
    DownloadError,
    GritError,
    ModelNotFoundError,
    Option,
    TextError,
    TokenizerError,
    first_line,
    unwritable,
)
from grit_mlx.model.options import ModelChoice
from tests.faults.conftest import Program

CODE = "import sys; from grit_mlx.cli.main import main; sys.argv[0] = 'grit'; main()"


def grit(*arguments: str | bytes, cwd: Path | None = None, **options: Any) -> subprocess.CompletedProcess[Any]:
    command: list[Any] = [sys.executable, "-c", CODE, *arguments]
    return subprocess.run(command, capture_output=True, timeout=120, check=False, cwd=cwd, **options)


def refused(result: subprocess.CompletedProcess[Any], message: str) -> None:
    """Exit code 1, and one line on stderr beside notes."""
    told = result.stderr if isinstance(result.stderr, str) else result.stderr.decode("utf-8", "replace")
    lines = [line for line in told.splitlines() if not line.startswith("note:")]
    assert result.returncode == 1 and len(lines) == 1, told
    assert lines[0].startswith("error: ") and re.search(message, lines[0]), told


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> GritLM:
    return GritLM(tiny_model)


# Chat templates

MISTRAL = (  # refuses what does not alternate, and systems
    "{{ bos_token }}{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ m['content'] + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<turn>' + role + '\\n' + m['content'] | trim + '</turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<turn>model\\n' }}{% endif %}"
)
SILENT = (  # leaves the system message out without a word
    "{% for m in messages %}{% if m['role'] != 'system' %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endif %}"
    "{% endfor %}assistant: "
)
TAKES = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}assistant: "
MISSING = "{{ bos_token + 'x' }}{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}"

SYSTEM = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]


def with_template(folder: Path, template: Any, **changes: Any) -> Path:
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"chat_template": template, **changes}
    config = {key: value for key, value in config.items() if value is not None}
    path.unlink()
    path.write_text(json.dumps(config), encoding="utf-8")
    return folder


def prompt_of(model: GritLM, messages: Any) -> str:
    return str(model.tokenizer.decode(model.prompt_tokens(messages, raw=False, continues=False)))


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (MISTRAL, "<s> [INST] Be brief.\n\nWhy? [/INST]"),
        (GEMMA, "<turn>user\nBe brief.\n\nWhy?</turn>\n<turn>model\n"),
        (SILENT, "user: Be brief.\n\nWhy?\nassistant: "),
        (TAKES, "system: Be brief.\nuser: Why?\nassistant: "),
    ],
)
def test_a_system_message_reaches_the_model(model_copy: Callable[..., Path], template: str, expected: str) -> None:
    folder = with_template(model_copy(), template)
    model = GritLM(folder)
    assert prompt_of(model, SYSTEM).strip() == expected.strip()
    turns = [*SYSTEM, {"role": "assistant", "content": "So."}, {"role": "user", "content": "And?"}]
    assert prompt_of(model, turns).count("Be brief.") == 1
    assert model.generate(turns, max_tokens=2) is not None
    result = grit("generate", "Why?", "--system", "Be brief.", "--model", str(folder), "--max-tokens", "2")
    assert result.returncode == 0, result.stderr
    result = grit("chat", "--system", "Be brief.", "--model", str(folder), "--max-tokens", "2", input=b"Why?\nAnd?\n")
    assert result.returncode == 0, result.stderr


def test_training_puts_the_system_message_there_too(model_copy: Callable[..., Path]) -> None:
    from grit_mlx.model import prompts

    tokenizer = GritLM(with_template(model_copy(), GEMMA)).tokenizer
    turns = [*SYSTEM, {"role": "assistant", "content": "So."}]
    rendered = prompts.render_chat(tokenizer, turns)
    assert "Be brief.\n\nWhy?" in rendered.text
    assert [rendered.text[start:end].strip() for start, end in rendered.answers] == ["So.</turn>"]


@pytest.mark.parametrize(
    ("template", "messages", "message"),
    [
        (MISTRAL, [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}], "roles must alternate"),
        (MISTRAL, [{"role": "tool", "content": "a"}, {"role": "user", "content": "b"}], "refuses these messages"),
        ("{{ messages[9]['content'] }}", SYSTEM[1:], "The model's chat template refuses these messages"),
        ("{{ undefined_thing.x }}", SYSTEM[1:], "The model's chat template refuses these messages"),
        ("{{ 1 / 0 }}", SYSTEM[1:], "The model's chat template refuses these messages"),
        ("{{ messages | nothing }}", SYSTEM[1:], r"not valid Jinja, line 1"),
        ("{% for m in messages %}\n{{ m.content }", SYSTEM[1:], r"not valid Jinja, line 2"),
        ("{% if %}", SYSTEM[1:], "not valid Jinja"),
    ],
)
def test_templates_that_refuse(model_copy: Callable[..., Path], template: str, messages: Any, message: str) -> None:
    folder = with_template(model_copy(), template)
    model = GritLM(folder)
    with pytest.raises((ArgumentError, TokenizerError), match=message) as caught:
        model.generate(messages, max_tokens=2)
    assert "\n" not in str(caught.value)
    if len(messages) == 1:
        refused(grit("generate", "Why?", "--model", str(folder)), message)
        refused(grit("chat", "--model", str(folder), input=b"Why?\n"), message)
        # The complete prompt needs no template.
        assert model.generate("Why?", raw=True, max_tokens=2) is not None


def test_several_templates(model_copy: Callable[..., Path]) -> None:
    named = [{"name": "rag", "template": TAKES}, {"name": "tool_use", "template": TAKES}]
    with pytest.raises(TokenizerError, match="chat templates for rag, tool_use, and no default"):
        GritLM(with_template(model_copy(name="a"), named)).generate("Why?", max_tokens=1)
    model = GritLM(with_template(model_copy(name="b"), named[:1]))
    assert prompt_of(model, "Why?").startswith("user: Why?")
    model = GritLM(with_template(model_copy(name="c"), [*named, {"name": "default", "template": SILENT}]))
    assert "system" not in prompt_of(model, SYSTEM)


@pytest.mark.parametrize("absent", [("eos_token",), ("bos_token",), ("bos_token", "eos_token")])
def test_a_template_that_writes_tokens_which_are_missing(
    model_copy: Callable[..., Path], absent: Sequence[str]
) -> None:
    folder = with_template(model_copy(), MISSING, **dict.fromkeys(absent))
    assert "Why?" in prompt_of(GritLM(folder), "Why?")


def test_grits_own_chat_without_those_tokens(model_copy: Callable[..., Path]) -> None:
    folder = with_template(model_copy(), None, bos_token=None, eos_token=None)
    model = GritLM(folder)
    turns = [*SYSTEM, {"role": "assistant", "content": "So."}, {"role": "user", "content": "And?"}]
    assert model.generate(turns, max_tokens=2) is not None
    assert "So." in model.tokenizer.apply_chat_template(turns[1:], tokenize=False)


# Values


@pytest.mark.parametrize(
    "options",
    [
        {"seed": -1}, {"seed": 2**31}, {"seed": 2**63}, {"seed": 2**64 - 1}, {"seed": np.int64(3)}, {"seed": None},
        {"stop": "x"}, {"stop": None}, {"stop": ("x", "y")}, {"stop": []}, {"max_tokens": None},
        {"max_tokens": np.int64(3)}, {"max_tokens": np.uint8(3)}, {"temperature": np.float32(0.5)}, {"temperature": 1},
        {"temperature": None}, {"top_k": np.int32(5)}, {"top_p": np.float64(0.5)}, {"kv_bits": None},
        {"repetition_penalty": None}, {"min_p": 0}, {"top_p": None},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_common_is_taken(model: GritLM, options: dict[str, Any]) -> None:
    options = {"max_tokens": 4, "temperature": 0.5, **options}
    assert isinstance(model.generate("Why?", **options), str)
    assert len(model.generate_batch(["Why?"], **options)) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -2}, "seed must be from 0 to 18446744073709551615, or -1 for a new one each time, not -2"),
        ({"seed": 2**64}, "seed must be"),
        ({"seed": 10**40}, "seed must be"),
        ({"seed": "7"}, "seed must be a whole number"),
        ({"seed": 1.5}, "seed must be a whole number"),
        ({"stop": 5}, "stop must be"),
        ({"stop": [None]}, "stop must be"),
        ({"stop": {"x": 1}}, "stop must be"),
        ({"max_tokens": "8"}, "max_tokens must be a whole number"),
        ({"max_tokens": 2.5}, "max_tokens must be a whole number"),
        ({"max_tokens": 10**12}, "max_tokens must be at most"),
        ({"temperature": "hot"}, "temperature must be a number"),
        ({"temperature": float("nan")}, "temperature must be a finite number"),
        ({"top_k": 1.5}, "top_k must be a whole number"),
        ({"maxtokens": 3}, "no option 'maxtokens': did you mean 'max_tokens'"),
        ({"top": 3}, "no option 'top'"),
    ],
)
def test_other_values_of_generation(model: GritLM, options: dict[str, Any], message: str) -> None:
    for call in (
        lambda: model.generate("Why?", **options),
        lambda: model.stream("Why?", **options),
        lambda: model.generate_batch(["Why?"], **options),
    ):
        with pytest.raises(ArgumentError, match=message):
            call()


@pytest.mark.parametrize(
    "options",
    [{"batch_size": np.int64(2)}, {"batch_size": None}, {"max_length": np.int32(16)}, {"max_length": None},
     {"instruction": None}, {"instruction": np.str_("x\n")}, {"embed_instruction": np.bool_(True)}],
    ids=str,
)  # fmt: skip
def test_common_values_of_embedding(model: GritLM, options: dict[str, Any]) -> None:
    assert model.encode(["a", "b c"], **options).shape == (2, 32)
    assert len(list(model.encode_iter(["a", "b c"], **options))) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": "8"}, "batch_size must be a whole number, not '8'"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"batch_size": 2.5}, "batch_size must be a whole number"),
        ({"max_length": "512"}, "max_length must be a whole number, not '512'"),
        ({"max_length": -1}, "max_length must be at least 1"),
        ({"instruction": b"x"}, "instruction must be text"),
        ({"instruction": "x \ud800"}, "The instruction holds half a surrogate pair at character 2"),
        ({"batchsize": 8}, "did you mean 'batch_size'"),
        ({"max_len": 8}, "did you mean 'max_length'"),
    ],
)
def test_other_values_of_embedding(model: GritLM, options: dict[str, Any], message: str) -> None:
    for call in (lambda: model.encode(["a"], **options), lambda: model.encode_iter(["a"], **options)):
        with pytest.raises(ArgumentError, match=message):
            call()


HALF = "bad \ud83d half"


def test_half_a_surrogate(model: GritLM) -> None:
    chat = [{"role": "user", "content": HALF}]
    calls: list[tuple[Callable[[], Any], str]] = [
        (lambda: model.generate(HALF), "The prompt holds half a surrogate pair at character 4"),
        (lambda: model.generate(HALF, raw=True), "The prompt holds half"),
        (lambda: model.generate(HALF, cache=model.encode("x", get_cache=True)[1]), "The prompt holds half"),
        (lambda: model.generate(chat), "Message 0 holds half a surrogate pair at character 4"),
        (lambda: model.generate([{"role": "system", "content": HALF}, chat[0]]), "Message 0 holds half"),
        (lambda: model.generate_batch(["a", HALF]), "The prompt holds half"),
        (lambda: model.encode(["a", HALF]), "Text 1 holds half"),
        (lambda: model.encode_corpus([{"title": HALF, "text": "b"}]), "Text 0 holds half"),
        (lambda: list(model.encode_iter(["a", HALF])), "Text 1 holds half"),
        (lambda: model.encode_queries(HALF), "Text 0 holds half"),
    ]
    for call, message in calls:
        with pytest.raises(ArgumentError, match=message):
            call()
    assert model.generate("Why?", max_tokens=2, stop=[HALF]) is not None  # nothing ends with it


@pytest.mark.skipif(sys.platform == "darwin", reason="arguments are always UTF-8")
def test_arguments_that_are_not_utf8(tiny_model: Path) -> None:
    commands: list[list[str | bytes]] = [["generate", b"bad \xff"], ["similarity", b"bad \xff", "b"]]
    for command in commands:
        refused(grit(*command, "--model", str(tiny_model)), "holds half a surrogate pair")
    refused(grit("generate", "hi", "--system", b"bad \xff", "--model", str(tiny_model)), "Message 0 holds half")


def test_the_seed_of_the_command_line(tiny_model: Path) -> None:
    for seed in ("-1", "0", str(2**64 - 1)):
        options = ("--seed", seed, "--temperature", "1", "--max-tokens", "2", "--model", str(tiny_model))
        result = grit("generate", "hi", *options)
        assert result.returncode == 0, result.stderr


PARTS = [{"type": "text", "text": "Why "}, {"type": "text", "text": "so?"}]


def test_content_in_parts_of_text(model: GritLM, model_copy: Callable[..., Path]) -> None:
    """As OpenAI's clients send it; mlx-lm's server joins the parts, too."""
    plain, parts = ([{"role": "user", "content": content}] for content in ("Why so?", PARTS))
    assert model.generate(parts, max_tokens=5) == model.generate(plain, max_tokens=5)
    system = [[{"role": "system", "content": content}, *chat] for content, chat in (("S", plain), (PARTS[:1], parts))]
    assert model.generate(system[1], max_tokens=5) is not None
    for content in ([], [{"type": "image_url", "image_url": "x"}], [*PARTS, {"type": "text"}], ["Why?"]):
        with pytest.raises(ArgumentError, match="Message 0 must have text as its content"):
            model.generate([{"role": "user", "content": content}])


# Encodings


@pytest.mark.parametrize("command", [["generate", "-"], ["chat"]])
@pytest.mark.parametrize(("content", "name"), [(b"caf\xe9", "latin-1"), (b"it\x92s", "cp1252"), (b"\x80 5", "cp1252")])
def test_standard_input_in_another_encoding(tiny_model: Path, command: list[str], content: bytes, name: str) -> None:
    result = grit(*command, "--model", str(tiny_model), input=content + b"\n")
    refused(result, rf"not UTF-8\. Convert the file to UTF-8 \(iconv -f {name} -t utf-8\)")
    assert b"--encoding" not in result.stderr and b"encoding=" not in result.stderr


@pytest.mark.parametrize(("content", "name"), [(b"caf\xe9", "latin-1"), (b"it\x92s", "cp1252"), (b"\x80 5", "cp1252")])
def test_what_messages_propose_maps_no_character_to_a_control(
    tiny_model: Path, tmp_path: Path, content: bytes, name: str
) -> None:
    """Of files the encoding is found out; of a stream it has to be named."""
    (tmp_path / "x.txt").write_bytes(content + b"\n")
    output = ("-o", str(tmp_path / "v.jsonl"), "--model", str(tiny_model))
    refused(grit("embed", "-", *output, input=content + b"\n"), f"--encoding {name}")
    for source in ("-", str(tmp_path / "x.txt")):
        result = grit("embed", source, *output, "--encoding", name, input=content + b"\n")
        assert result.returncode == 0, result.stderr
        text = json.loads((tmp_path / "v.jsonl").read_text(encoding="utf-8"))["text"]
        assert text == content.decode(name) and text.isprintable()


# Folders


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a folder in use cannot be deleted there")
@pytest.mark.parametrize(
    "arguments",
    [["generate", "hi", "--max-tokens", "1"], ["similarity", "a", "b"], ["chat"], ["embed", __file__],
     ["rag", "ask", "x"], ["search", "x", __file__]],
    ids=" ".join,
)  # fmt: skip
def test_a_deleted_working_folder(tiny_model: Path, tmp_path: Path, arguments: list[str]) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    model = [] if arguments[0] == "rag" else ["--model", str(tiny_model)]
    script = f'cd {gone} && rmdir {gone} && exec {sys.executable} -c "{CODE}" {" ".join([*arguments, *model])}'
    result = subprocess.run(["sh", "-c", script], capture_output=True, timeout=120, check=False, input=b"hi\n")
    if result.returncode:
        refused(result, r"The working folder no longer exists\. Change to another one|no store|There is no")


LONG = "x" * 300


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["embed", LONG], "too long for a file name"),
        (["embed", "{text}", "-o", LONG + ".npy"], "too long for a file name"),
        (["embed", "{text}", "-m", "~nobody-here/m"], "a user that this machine does not have"),
        (["rag", "index", "{text}", "--store", "~nobody-here/s"], "a user that this machine does not have"),
        (["convert", "{model}", "-o", LONG], "Cannot write"),
        (["convert", "{model}", "-o", "~nobody-here/x"], "Cannot write ~nobody-here/x"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_paths_that_cannot_be(arguments: list[str], message: str, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("a text\n")
    given = [one.format(text=tmp_path / "text.txt", model=tiny_model) for one in arguments]
    refused(grit(*given), message)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a folder in use cannot be deleted there")
def test_a_deleted_working_folder_in_a_program(program: Program) -> None:
    result = program(
        """
        import os, tempfile
        folder = tempfile.mkdtemp()
        os.chdir(folder)
        os.rmdir(folder)
        from grit_mlx.errors import GritError
        try:
            from grit_mlx import GritLM
        except GritError as error:
            print(error)
        os.chdir("/")
        from grit_mlx import GritLM
        model = GritLM(MODEL)
        folder = tempfile.mkdtemp()
        os.chdir(folder)
        os.rmdir(folder)
        model = GritLM(MODEL)
        model.encode("x")
        model.generate("x", max_tokens=2)
        """
    )
    assert "The working folder no longer exists" in result.stdout


def test_a_model_cache_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    environment = {**os.environ, "HF_HUB_CACHE": str(file), "GRIT_HOME": str(tmp_path / "home")}
    refused(
        grit("generate", "hi", "--model", "gritlm-7b", env=environment),
        "cache of models, .*, cannot be read: it is a file",
    )
    refused(grit("models", "pull", "gritlm-7b", env=environment), "Set HF_HUB_CACHE to another folder")
    result = grit("models", "list", env=environment)
    assert result.returncode == 0 and b"grit-tiny" in result.stdout and b"cannot be read" in result.stderr
    assert b"Traceback" not in result.stderr


# Files of other kinds


def test_gguf(tmp_path: Path, model_copy: Callable[..., Path]) -> None:
    file = tmp_path / "model-Q4_K_M.gguf"
    file.write_bytes(b"GGUF" + b"\0" * 100)
    for place in (file, tmp_path):
        with pytest.raises(CheckpointError, match=r"Q4_K_M.gguf is .*(version 0|big-endian)"):
            GritLM(place)
    folder = model_copy()
    (folder / "model.safetensors").unlink()
    shutil.copy(file, folder)
    with pytest.raises(CheckpointError, match=r"model-Q4_K_M.gguf is"):
        GritLM(folder)
    refused(grit("generate", "hi", "--model", str(file)), "model-Q4_K_M.gguf is")


def test_a_single_file_and_an_adapter(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"is a file\. Name the folder that it is in"):
        GritLM(tiny_model / "model.safetensors")
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"holds an adapter\. Name the model it was trained on"):
        GritLM(tmp_path)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 14483498224\n"


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_git_lfs_pointer(model_copy: Callable[..., Path], name: str) -> None:
    folder = model_copy()
    (folder / name).unlink()
    (folder / name).write_text(POINTER.format("a" * 64))
    with pytest.raises(CheckpointError, match=rf"{name} is a Git LFS pointer.*git lfs pull"):
        GritLM(folder)
    refused(grit("generate", "hi", "--model", str(folder)), "Git LFS pointer")


def rewritten(folder: Path, dtype: str, scale: str) -> None:
    """The weights of all projections in another dtype, with what another tool keeps beside them."""
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header, blob = json.loads(raw[8:start]), b""
    entries: dict[str, Any] = {}

    def add(name: str, kind: str, shape: list[int], content: bytes) -> None:
        nonlocal blob
        entries[name] = {"dtype": kind, "shape": shape, "data_offsets": [len(blob), len(blob) + len(content)]}
        blob += content

    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        if name.endswith("_proj.weight"):
            numbers = np.arange(np.prod(entry["shape"])) % 120
            add(name, dtype, entry["shape"], numbers.astype(np.uint8).tobytes())
            if scale:
                add(name + scale, "F32", [1], np.ones(1, np.float32).tobytes())
        else:
            add(name, entry["dtype"], entry["shape"], raw[start + begin : start + end])
    text = json.dumps(entries).encode()
    path.unlink()
    path.write_bytes(len(text).to_bytes(8, "little") + text + blob)


@pytest.mark.parametrize(
    ("dtype", "scale", "method", "named"),
    [
        ("F8_E4M3", "_scale_inv", "fp8", "fp8"),
        ("F8_E4M3", "_scale", "compressed-tensors", "compressed-tensors"),
        ("F8_E4M3", "", "fp8", "fp8"),
        ("F8_E5M2", "", None, "fp8"),
        ("F8_E4M3", "", None, "fp8"),
        ("U8", ".absmax", "bitsandbytes", "bitsandbytes"),
        ("U8", "", "bitsandbytes", "bitsandbytes"),
        ("I8", ".SCB", "bitsandbytes", "bitsandbytes"),
        ("I8", "", "quanto", "quanto"),
        ("I8", "", None, "another tool"),
    ],
)
@pytest.mark.parametrize("mode", ["unified", "embedding", "generative"])
def test_weights_that_other_tools_quantised(
    model_copy: Callable[..., Path], dtype: str, scale: str, method: str | None, named: str, mode: str
) -> None:
    quantization = None if method is None else {"quant_method": method, "format": "float-quantized"}
    folder = model_copy(quantization_config=quantization)
    rewritten(folder, dtype, scale)
    with pytest.raises(
        CheckpointError, match=rf"quantised with {named}, which mlx-lm cannot read.*original checkpoint"
    ):
        GritLM(folder, mode=mode)


def test_mlx_lms_own_quantisation_is_none_of_these(tiny_model: Path, tmp_path: Path) -> None:
    from mlx_lm import convert

    for mode in ("affine", "mxfp4"):
        convert(str(tiny_model), str(tmp_path / mode), quantize=True, q_group_size=32, q_bits=4, q_mode=mode)
        for dtype in ("auto", "stored"):
            assert GritLM(tmp_path / mode, dtype=dtype).encode("x").shape == (32,)


# Errors between processes


@pytest.mark.parametrize(
    "error",
    [
        ArgumentError("bad ", Option("top_p", 3), "."),
        TextError("Text 3 is empty.", index=3),
        DocumentError("x, line 2: bad", path="x", line=2),
        ModelNotFoundError("none"),
        DownloadError("gone"),
    ],
)
def test_errors_can_be_pickled(error: GritError) -> None:
    same = pickle.loads(pickle.dumps(error))
    assert (
        type(same) is type(error)
        and str(same) == str(error)
        and list(map(str, same.args)) == list(map(str, error.args))
    )
    assert {k: str(v) for k, v in vars(same).items()} | {"parts": ""} == {k: str(v) for k, v in vars(error).items()} | {
        "parts": ""
    }


# Raw prompts (kind 12)


@pytest.mark.parametrize("begins", [True, False])
def test_a_tokenizer_that_appends_eos_does_not_end_a_raw_prompt(
    model_copy: Callable[..., Path], model: GritLM, begins: bool
) -> None:
    folder = model_copy()
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    first = [{"SpecialToken": {"id": "<s>", "type_id": 0}}] if begins else []
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [*first, {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {name: {"id": name, "ids": [i], "tokens": [name]} for name, i in (("<s>", 1), ("</s>", 2))},
    }
    path.unlink()
    path.write_text(json.dumps(content), encoding="utf-8")
    ended = GritLM(folder)
    assert ended.tokenizer.encode("Why?")[-1] == 2
    plain = ended.tokenizer.encode("Once upon", add_special_tokens=False)
    tokens = ended.prompt_tokens("Once upon", raw=True, continues=False)
    assert tokens == ([1] if begins else []) + plain
    assert ended.prompt_tokens("<s>Once upon", raw=True, continues=False) == [1, *plain]
    assert 2 not in ended.prompt_tokens("Once upon", raw=False, continues=False)
    if begins:
        assert ended.generate("Once upon", raw=True, max_tokens=6) == model.generate(
            "Once upon", raw=True, max_tokens=6
        )
    assert ended.generate_batch(["Once upon"], raw=True, max_tokens=6) == [ended.generate(tokens, max_tokens=6)]


@pytest.mark.parametrize("field", ["model", "adapter"])
def test_no_name_is_not_the_working_folder(field: str) -> None:
    given: dict[str, Any] = {field: ""}
    with pytest.raises(ArgumentError, match=f"^{field} is empty"):
        ModelChoice(**given)


def test_a_device_in_the_place_of_a_folder() -> None:
    error = FileExistsError(errno.EEXIST, "", "/dev/full")
    assert unwritable("/dev/full/x", error).endswith("a part of its path is a file, not a folder.")
    assert "exists already" in unwritable("/dev/full", error)


@pytest.mark.parametrize(
    "message, line",
    [
        ("one\ntwo", "one."),
        ("Wrong field 'a':\n\n    TypeError: expected bool\nmore", "Wrong field 'a': TypeError: expected bool."),
        ("Heading:", "Heading."),
        ("", "ValueError."),
    ],
)
def test_a_line_that_announces_the_next(message: str, line: str) -> None:
    assert first_line(ValueError(message)) == line
