"""Everything that can be wrong with what a user gives, and the one line that each says."""

from __future__ import annotations

import errno
import gzip
import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

Grit = Any


@dataclass(frozen=True)
class Place:
    """Where a case happens: a folder of its own, a model to damage, and pytest's monkey."""

    folder: Path
    copy: Callable[..., Path]
    monkeypatch: pytest.MonkeyPatch

    def file(self, name: str, content: str | bytes) -> Path:
        path = self.folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        return path

    @property
    def good(self) -> Path:
        return self.file("good.txt", "A sail catches the wind.\n")


# The arguments of grit, made in a place; and what stands after "error: ", with {} for that place.
Case = tuple[Callable[[Place], list[object]], str]
CASES: dict[str, Case] = {}


def case(message: str) -> Callable[[Callable[[Place], list[object]]], Callable[[Place], list[object]]]:
    def add(make: Callable[[Place], list[object]]) -> Callable[[Place], list[object]]:
        name = make.__name__.strip("_")
        assert name not in CASES, name
        CASES[name] = (make, message)
        return make

    return add


# Texts


@case(r"{}/none\.txt does not exist\. Check the name\.")
def missing(place: Place) -> list[object]:
    return ["embed", place.folder / "none.txt"]


@case(r"{}/none\.txt does not exist\. Check the name\.")
def missing_beside_good(place: Place) -> list[object]:
    return ["embed", place.good, place.folder / "none.txt"]


@case(r"{}/good\.txt/x does not exist: a part of its path is a file, not a folder\.")
def below_a_file(place: Place) -> list[object]:
    return ["embed", place.good / "x"]


@case(r"There is no text in {}/empty\.txt\.")
def empty(place: Place) -> list[object]:
    return ["embed", place.file("empty.txt", "")]


@case(r"There is no text in {}/a\.txt, {}/b\.txt\.")
def blank(place: Place) -> list[object]:
    return ["search", "wind", place.file("a.txt", "\n \n\t\n"), place.file("b.txt", "\n")]


@case(r"{} is a folder, not a file\. Name the files in it, for example with a shell pattern: {}/\*\.txt\.")
def directory(place: Place) -> list[object]:
    return ["embed", place.folder]


@case(r"{}/x\.bin looks like a binary file \(it holds NUL bytes\)\. Name a text file\.")
def binary(place: Place) -> list[object]:
    return ["embed", place.file("x.bin", bytes(range(256)))]


@case(r"{}/x\.txt is a PDF, not text\. Give it a name that ends in \.pdf\.")
def pdf_as_text(place: Place) -> list[object]:
    return ["embed", place.file("x.txt", b"%PDF-1.7\n%\xe2\xe3")]


@case(r"{}/x\.pdf is damaged, or not a PDF file\.")
def broken_pdf(place: Place) -> list[object]:
    return ["embed", place.file("x.pdf", b"%PDF-1.7\n%\xe2\xe3")]


@case(r"{}/x\.txt is a zip archive or an office document, not text\. Give it the suffix of its kind\.")
def office(place: Place) -> list[object]:
    return ["embed", place.file("x.txt", b"PK\x03\x04\x14")]


@case(r"{}/x\.docx cannot be read as Word document: File is not a zip file\.")
def broken_office(place: Place) -> list[object]:
    return ["embed", place.file("x.docx", b"PK\x03\x04\x14")]


@case(r"Reading PDF files needs pypdfium2: pip install 'grit-mlx\[documents\]'\.")
def no_package_for_pdf(place: Place) -> list[object]:
    place.monkeypatch.setitem(sys.modules, "pypdfium2", None)
    return ["search", "wind", place.file("x.pdf", b"%PDF-1.7\n%\xe2\xe3")]


@case(r"{}/x\.txt, line 2: byte 0xfc at offset 6 is not UTF-8\. Name the encoding of the file, for example .*latin-1\.")
def bad_utf8(place: Place) -> list[object]:
    text = "good\ngrün\n".encode("latin-1").replace(b"gr", b"g")
    return ["embed", place.file("x.txt", text), "--encoding", "utf-8"]


@case(r"{}/x\.txt is encoded in UTF-16\. Read it with --encoding utf-16\.")
def utf16(place: Place) -> list[object]:
    return ["embed", place.file("x.txt", "text".encode("utf-16")), "--encoding", "utf-8"]


@case(r"The encoding 'klingon' is unknown\. Try utf-8, latin-1 or utf-16\.")
def unknown_encoding(place: Place) -> list[object]:
    return ["embed", place.good, "--encoding", "klingon"]


@case(r"{}/x\.txt\.gz cannot be read: Compressed file ended before the end-of-stream marker was reached\.")
def broken_gzip(place: Place) -> list[object]:
    return ["embed", place.file("x.txt.gz", gzip.compress(b"text\n" * 1000)[:-20])]


@case(r"{}/x\.jsonl, line 3: column 10 is not JSON \(.*\)\. Fix the line\.")
def bad_json(place: Place) -> list[object]:
    return ["embed", place.file("x.jsonl", '{"text": "a"}\n\n{"text": b}\n')]


@case(r"{}/x\.jsonl, line 2: there is no field 'body'; the fields are 'text', 'id'\. Choose one with --field\.")
def missing_field(place: Place) -> list[object]:
    return ["embed", place.file("x.jsonl", '{"body": "a"}\n{"text": "b", "id": 1}\n'), "--field", "body"]


@case(r"{}/x\.jsonl, line 1: the field 'text' is a number, not a string\.")
def field_of_numbers(place: Place) -> list[object]:
    return ["embed", place.file("x.jsonl", '{"text": 3}\n')]


@case(r"{}/x\.jsonl, line 2: the text of this row is empty\. Remove the row, or skip such rows with --skip-empty\.")
def empty_row(place: Place) -> list[object]:
    return ["embed", place.file("x.jsonl", '{"text": "a"}\n{"text": ""}\n')]


@case(r"{}/x\.jsonl, line 1: the field 'text' holds half of a character \(a lone surrogate .*\)\. Fix the line\.")
def surrogate(place: Place) -> list[object]:
    return ["embed", place.file("x.jsonl", '{"text": "\\ud800"}\n')]


@case(r"{}/x\.csv, line 1: there is no column 'text'; the columns are 'id', 'body'\. Choose one with --field\.")
def missing_column(place: Place) -> list[object]:
    return ["embed", place.file("x.csv", "id,body\n1,a\n"), "--field", "text"]


@case(
    r"{}/x\.csv, line 3: the row has 3 columns, but the first row has 2\. Put texts that contain ',' into \"quotes\"\."
)
def ragged_csv(place: Place) -> list[object]:
    return ["embed", place.file("x.csv", "id,text\n1,a\n2,b,c\n")]


@case(r"{}/x\.csv, line 2: cannot be read as CSV \(.*\)\. Check the quotes of the row\.")
def unclosed_quote(place: Place) -> list[object]:
    return ["embed", place.file("x.csv", 'id,text\n1,"a\n2,b\n')]


@case(r"{}/good\.txt holds text, not rows\. Name a \.jsonl, \.json, \.csv or \.tsv file, or omit --field\.")
def field_of_plain_text(place: Place) -> list[object]:
    return ["embed", place.good, "--field", "body"]


@case(r"--overlap must be at least 0 and below --chunk-size \(10\), not 10\.")
def overlap_too_large(place: Place) -> list[object]:
    return ["embed", place.good, "--by", "chunk", "--chunk-size", 10, "--overlap", 10]


@case(r"Standard input \(-\) can be read only once\.")
def standard_input_twice(place: Place) -> list[object]:
    return ["embed", "-", "-"]


@case(r"a\\x00b cannot be read: embedded null byte\.")
def nul_in_a_name(place: Place) -> list[object]:
    return ["embed", "a\0b"]


@case(r"{}/good\.txt, line 1: the text has no room: the instruction takes all 16 tokens of --max-length\. .*")
def instruction_fills_max_length(place: Place) -> list[object]:
    return ["embed", place.good, "--instruction", "Represent this sentence for me", "--max-length", 16]


# Output


@case(
    r"Cannot write {}/v\.xyz: name a file that ends in \.npy, \.npz, \.jsonl, \.jsonl\.gz or \.parquet, "
    r"or a folder, in /\."
)
def unknown_suffix(place: Place) -> list[object]:
    return ["embed", place.good, "-o", place.folder / "v.xyz"]


@case(r"Cannot write {}/none/v\.npy: its folder does not exist\. Create it first\.")
def no_output_folder(place: Place) -> list[object]:
    return ["embed", place.good, "-o", place.folder / "none" / "v.npy"]


@case(r"Cannot write {}/v\.npy: it is a folder\. Name a file in it\.")
def output_is_a_folder(place: Place) -> list[object]:
    (place.folder / "v.npy").mkdir()
    return ["embed", place.good, "-o", place.folder / "v.npy"]


@case(r"Cannot write {}/v\.npy: permission denied\. Check the permissions, or choose another place\.")
def unwritable_folder(place: Place) -> list[object]:
    def refuse(path: object, *args: object, **kwargs: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    place.good  # noqa: B018 - written before nothing can be
    place.monkeypatch.setattr("grit_mlx.files.atomic.os.open", refuse)  # root may write anywhere
    return ["embed", place.folder / "good.txt", "-o", place.folder / "v.npy"]


@case(r"Cannot write {}/v\.npy: the disk is full\. Make room, or choose another place\.")
def full_disk(place: Place) -> list[object]:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    place.monkeypatch.setattr("grit_mlx.files.atomic.os.fsync", full)
    return ["embed", place.good, "-o", place.folder / "v.npy"]


@case(r"A \.npy file cannot keep the scales of int8 vectors\. Write \.npz, \.jsonl, \.jsonl\.gz or \.parquet\.")
def scales_in_npy(place: Place) -> list[object]:
    return ["embed", place.good, "-o", place.folder / "v.npy", "--dtype", "int8"]


@case(r"{}/x\.jsonl is also an input\. Name another file for the vectors\.")
def output_is_an_input(place: Place) -> list[object]:
    path = place.file("x.jsonl", '{"text": "a"}\n')
    return ["embed", path, "-o", path]


# Arguments


@case(r"The query is empty\. Say what to look for\.")
def empty_query(place: Place) -> list[object]:
    return ["search", "  ", place.good]


@case(r"Text 2 is empty\. Give every text at least a word\.")
def empty_comparison(place: Place) -> list[object]:
    return ["similarity", "a", ""]


@case(r"Text 1 holds half a surrogate pair at character 1\.")
def argument_that_is_no_unicode(place: Place) -> list[object]:
    return ["similarity", "a", "b\udcff"]


@case(r"The prompt is empty\.")
def empty_prompt(place: Place) -> list[object]:
    return ["generate", " \n"]


@case(r"The prompt is empty\.")
def empty_prompt_from_standard_input(place: Place) -> list[object]:
    return ["generate", "-"]


@case(r"--max-tokens must be at least 1, or -1 for no limit, not 0\.")
def no_tokens(place: Place) -> list[object]:
    return ["generate", "x", "--max-tokens", 0]


@case(r"--top-p must be above 0 and at most 1, not 0\.0\.")
def no_probability(place: Place) -> list[object]:
    return ["generate", "x", "--top-p", 0]


@case(r"--repetition-penalty must be above 0, not -2\.0\.")
def negative_penalty(place: Place) -> list[object]:
    return ["chat", "--repetition-penalty", -2]


@case(r"Unknown --kv-bits 5: use one of 2, 3, 4, 6, 8\.")
def odd_bits(place: Place) -> list[object]:
    return ["generate", "x", "--kv-bits", 5]


@case(r"--stop must be texts that are not empty, not \('',\)\.")
def empty_stop(place: Place) -> list[object]:
    return ["generate", "x", "--stop", ""]


# Models


@case(r"There is no folder and no model called 'gritlm7b'\. Did you mean gritlm-7b\?")
def misspelt_model(place: Place) -> list[object]:
    return ["embed", place.good, "-m", "gritlm7b"]


@case(r"There is no folder {}/none\.")
def no_model_folder(place: Place) -> list[object]:
    return ["generate", "x", "-m", place.folder / "none"]


@case(r"{}/good\.txt is a file\. Name the folder that it is in, the one with config\.json\.")
def model_is_a_file(place: Place) -> list[object]:
    return ["similarity", "a", "b", "-m", place.good]


@case(r"{} has no config\.json, so it is not a model folder\. Name a folder with a Hugging Face or MLX model\.")
def no_config(place: Place) -> list[object]:
    return ["embed", place.good, "-m", place.folder]


@case(r"{} has no config\.json, so it is not a model folder\. .*")
def no_config_to_use(place: Place) -> list[object]:
    return ["models", "use", place.folder]


@case(r"{}/model/config\.json cannot be read: Expecting .*\. Download the model again\.")
def broken_config(place: Place) -> list[object]:
    folder = place.copy()
    (folder / "config.json").write_text('{"model_type": ')
    return ["embed", place.good, "-m", folder]


@case(r"{}/model/config\.json does not say which architecture it is: it needs a '?\"?model_type.*")
def config_without_type(place: Place) -> list[object]:
    return ["models", "info", place.copy(model_type=None)]


@case(r"{}/model/config\.json lacks what mistral needs: .*'hidden_size'.*\.")
def config_without_fields(place: Place) -> list[object]:
    return ["embed", place.good, "-m", place.copy(hidden_size=None)]


@case(r"mlx-lm has no architecture 'hal9000', which {}/model/config\.json asks for\. .*")
def unknown_architecture(place: Place) -> list[object]:
    return ["embed", place.good, "-m", place.copy(model_type="hal9000")]


@case(r"{}/model holds no model\*\.safetensors\. Name a Hugging Face or MLX model folder\.")
def no_weights(place: Place) -> list[object]:
    folder = place.copy()
    (folder / "model.safetensors").unlink()
    return ["embed", place.good, "-m", folder]


@case(r"{}/model holds its weights as pickle files \(\.bin or \.pth\), which can run code and are not read\. .*")
def pickled_weights(place: Place) -> list[object]:
    folder = place.copy()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    return ["generate", "x", "-m", folder]


@case(r"{}/model/model\.safetensors is damaged or not a safetensors file: it has [\d,]+ bytes and .*")
def truncated_weights(place: Place) -> list[object]:
    folder = place.copy()
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[:-1000])
    return ["embed", place.good, "-m", folder]


@case(
    r"{}/model/model\.safetensors is damaged or not a safetensors file: it ends after 5 bytes, inside its header\. .*"
)
def weights_that_are_none(place: Place) -> list[object]:
    folder = place.copy()
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").write_bytes(b"hello")
    return ["models", "info", folder]


@case(r"{}/model/model\.safetensors\.index\.json names model-00002-of-00002\.safetensors, which is missing\. .*")
def missing_shard(place: Place) -> list[object]:
    folder = place.copy()
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return ["embed", place.good, "-m", folder]


def _with_weights(place: Place, change: Callable[[dict[str, mx.array]], None]) -> Path:
    folder = place.copy()
    path = folder / "model.safetensors"
    weights: Any = mx.load(str(path))
    mx.eval(weights)
    change(weights)
    path.unlink()
    mx.save_safetensors(str(path), weights)
    return folder


@case(r"The weights in {}/model are damaged: model\.norm\.weight holds NaN or infinity\. Download or convert .*")
def nan_weights(place: Place) -> list[object]:
    def damage(weights: dict[str, mx.array]) -> None:
        weights["model.norm.weight"] = weights["model.norm.weight"] * float("nan")

    return ["embed", place.good, "-m", _with_weights(place, damage)]


@case(
    r"The weights in {}/model do not fit its config\.json: .*model\.norm\.weight.*\. Download or convert the model .*"
)
def weights_of_another_shape(place: Place) -> list[object]:
    def damage(weights: dict[str, mx.array]) -> None:
        weights["model.norm.weight"] = mx.zeros((7,))

    return ["embed", place.good, "-m", _with_weights(place, damage)]


@case(
    r"The weights in {}/model do not fit its config\.json: .*model\.norm\.weight.*\. Download or convert the model .*"
)
def missing_tensor(place: Place) -> list[object]:
    def damage(weights: dict[str, mx.array]) -> None:
        del weights["model.norm.weight"]

    return ["embed", place.good, "-m", _with_weights(place, damage)]


@case(r"{}/model has no tokenizer \(tokenizer\.json, .*\)\. Download the model again\.")
def no_tokenizer(place: Place) -> list[object]:
    folder = place.copy()
    (folder / "tokenizer.json").unlink()
    return ["embed", place.good, "-m", folder]


@case(r"Cannot read the tokenizer in {}/model: .*\. Download the model again\.")
def broken_tokenizer(place: Place) -> list[object]:
    folder = place.copy()
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").write_text('{"version": "1.0", "model": {}}')
    return ["embed", place.good, "-m", folder]


@case(
    r"Cannot use {}/model/grit\.json\. There is no option 'poolin': did you mean 'pooling'\? "
    r"Fix the file, or remove it to use the defaults\."
)
def unknown_setting(place: Place) -> list[object]:
    folder = place.copy()
    (folder / "grit.json").write_text('{"poolin": "mean"}')
    return ["embed", place.good, "-m", folder]


@case(
    r"Cannot use {}/model/grit\.json\. max_length must be at least 1, not -5\. "
    r"Fix the file, or remove it to use the defaults\."
)
def impossible_setting(place: Place) -> list[object]:
    folder = place.copy()
    (folder / "grit.json").write_text('{"max_length": -5}')
    return ["models", "info", folder]


@case(r"There is no adapter folder {}/none\.")
def no_adapter(place: Place) -> list[object]:
    return ["embed", place.good, "--adapter", place.folder / "none"]


@case(r"{}/adapter is not an adapter folder: it has no adapter_config\.json\.")
def adapter_without_config(place: Place) -> list[object]:
    (place.folder / "adapter").mkdir()
    return ["generate", "x", "--adapter", place.folder / "adapter"]


@case(r"The adapter {}/adapter does not fit the model: .*\. Use it with the model it was trained on\.")
def adapter_of_another_model(place: Place) -> list[object]:
    folder = place.folder / "adapter"
    folder.mkdir()
    lora = {"rank": 2, "scale": 1.0, "dropout": 0.0, "keys": ["self_attn.q_proj"]}
    config = {"fine_tune_type": "lora", "num_layers": 1, "lora_parameters": lora}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    mx.save_safetensors(
        str(folder / "adapters.safetensors"), {"model.layers.0.self_attn.q_proj.lora_a": mx.zeros((5, 2))}
    )
    return ["embed", place.good, "--adapter", folder]


@case(r"own/none is not on this machine and HF_HUB_OFFLINE is set\. Connect to the network and unset .*")
def offline(place: Place) -> list[object]:
    # The hub's client reads the variable once, when it is imported.
    place.monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    place.monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return ["embed", place.good, "-m", "own/none"]


@case(r"own/none is not on this machine\. Fetch it: grit models pull own/none")
def info_about_an_absent_model(place: Place) -> list[object]:
    place.monkeypatch.setattr("grit_mlx.model.hub.local_models", lambda: iter(()))
    return ["models", "info", "own/none"]


@case(r"{}/config\.json cannot be read: .*\. Remove it, then choose again: grit models use NAME")
def broken_choice(place: Place) -> list[object]:
    place.monkeypatch.delenv("GRIT_MODEL")
    place.monkeypatch.setenv("GRIT_HOME", str(place.folder))
    place.file("config.json", "{")
    return ["embed", place.good]


@case(r"Cannot write {}/good\.txt/config\.json: .*\. Set GRIT_HOME to a folder you can write to\.")
def unwritable_choice(place: Place) -> list[object]:
    place.monkeypatch.setenv("GRIT_HOME", str(place.good))
    return ["models", "use", "gritlm-7b"]


@pytest.mark.parametrize("name", CASES)
def test_a_bad_input_is_told_in_one_line(
    grit: Grit, name: str, tmp_path: Path, model_copy: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    make, message = CASES[name]
    args = make(Place(tmp_path, model_copy, monkeypatch))
    files = sorted(tmp_path.rglob("*"))
    run = grit(*args, stdin="")
    assert run.out == ""
    assert "Traceback" not in run.err
    pattern = "error: " + message.replace("{}", re.escape(str(tmp_path))) + "\n"
    assert re.fullmatch(pattern, run.err), f"{run.err!r} is not {pattern!r}"
    assert run.code == 1
    assert sorted(tmp_path.rglob("*")) == files  # no temporary file either


def test_there_are_enough() -> None:
    assert len(CASES) >= 30


def test_verbose_shows_where_an_error_came_from(grit: Grit, tmp_path: Path) -> None:
    run = grit("embed", tmp_path / "none.txt", "-v")
    assert run.code == 1
    assert run.err.startswith("Traceback")
    assert run.err.splitlines()[-1] == f"error: {tmp_path}/none.txt does not exist. Check the name."
    assert "Traceback" not in grit("embed", tmp_path / "none.txt").err
