"""Commands give the same with a running server and without, byte for byte, and go on without it when it ends."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from grit_mlx import GritLM
from grit_mlx.cli import loader, warm
from grit_mlx.cli.main import app
from grit_mlx.errors import ArgumentError, Option, TextError
from grit_mlx.model import hub
from grit_mlx.model.options import ModelChoice
from grit_mlx.server.client import ServerClient, UnreachableError
from grit_mlx.server.running import RunningServer, announced, loaded_as, package_version

Server = Any  # of conftest


@pytest.fixture
def shown(server: Server, notes: Path, tiny_model: Path) -> Iterator[RunningServer]:
    """The shared server, where commands find it."""
    running = _running(server, tiny_model)
    with announced(running):
        yield running


def _running(server: Server, folder: Path, **changed: Any) -> RunningServer:
    values: dict[str, Any] = {
        "process": os.getpid(),
        "address": server.url,
        "version": package_version(),
        "models": {"tiny": str(folder)},
        "stores": {},
        "loaded": {str(folder): loaded_as(folder, "auto")},
    }
    return RunningServer(**{**values, **changed})


@pytest.fixture
def remote(shown: RunningServer, tiny_model: Path) -> warm.RemoteModel:
    def load() -> GritLM:
        raise AssertionError("the model was loaded here")

    found = warm.find(ModelChoice(model=tiny_model), tiny_model, load)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def local(tiny_model: Path) -> GritLM:
    return GritLM(tiny_model)


TEXTS = [
    "The boiler is serviced each October.",
    "a",
    "größer 東京 👩‍👩‍👧",
    "word " * 700,
    "  blanks \t ",
    "half \ud83d a pair",
][:5]


def test_vectors_are_equal_bit_for_bit(remote: warm.RemoteModel, local: GritLM) -> None:
    texts = [f"{text} {n}" for n in range(60) for text in TEXTS]
    options: dict[str, Any] = {"role": "document", "max_length": 64, "batch_size": None, "long_texts": "average"}
    np.testing.assert_array_equal(
        list(remote.encode_iter(iter(texts), **options)), list(local.encode_iter(texts, **options))
    )
    asked: dict[str, Any] = {"role": "query", "instruction": "Find it", "max_length": None}
    np.testing.assert_array_equal(remote.encode("a question", **asked), local.encode("a question", **asked))
    assert remote.embedding_size == local.embedding_size
    assert list(remote.encode_iter([])) == []


def test_they_are_while_the_server_answers_others(remote: warm.RemoteModel, local: GritLM, server: Server) -> None:
    ended = threading.Event()

    def disturb() -> None:
        while not ended.is_set():
            server.post("/v1/embeddings", {"model": "tiny", "input": ["other texts", "of other requests"]})
            server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5})

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        got = list(remote.encode_iter(TEXTS * 20, role="document"))
        answer = "".join(one.text for one in remote.stream_responses("Hello", max_tokens=30))
    finally:
        ended.set()
        thread.join()
    np.testing.assert_array_equal(got, list(local.encode_iter(TEXTS * 20, role="document")))
    assert answer == local.generate("Hello", 30)


def test_tokens_are_counted_alike(remote: warm.RemoteModel, local: GritLM) -> None:
    for text in (*TEXTS, "", "<s> and </s>", "\n\n  x", "\u2581"):
        assert remote.count_tokens(text) == len(local.tokenizer.encode(text, add_special_tokens=False))


def test_answers_are_equal_token_for_token(remote: warm.RemoteModel, local: GritLM) -> None:
    for options in ({}, {"temperature": 1.5, "seed": 3}, {"stop": ["e"]}, {"schema": {"enum": ["Zoë", 7]}}):
        for prompt in ("Hello there", [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]):
            got = list(remote.stream_responses(prompt, max_tokens=25, **options))
            expected = list(local.stream_responses(prompt, max_tokens=25, **options))
            names = ("text", "finish_reason", "prompt_tokens", "generation_tokens")
            assert [[getattr(one, name) for name in names] for one in got] == [
                [getattr(one, name) for name in names] for one in expected
            ]


def test_errors_and_notes_arrive_as_they_are(remote: warm.RemoteModel, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(TextError, match="Text 1 is empty") as empty:
        list(remote.encode_iter(["a", ""], role="document"))
    assert empty.value.index == 1
    with pytest.raises(TextError) as none:
        list(remote.encode_iter(["a"], instruction="long " * 90, max_length=20))
    assert [part.name for part in none.value.parts if isinstance(part, Option)] == ["max_length", "max_length"]
    with pytest.raises(ArgumentError, match="schema cannot be followed"):
        list(remote.stream_responses("Hi", schema={"type": "x"}))
    caplog.clear()
    list(remote.encode_iter(["word " * 90], role="document", max_length=20))
    mine = [record for record in caplog.records if record.name == "grit_mlx" and "truncated" in record.message]
    assert mine
    assert mine[-1].__dict__["cut_texts"] == 1


@pytest.mark.parametrize(
    "changed",
    [
        {"version": "0.0.0"},
        {"models": {"tiny": "/elsewhere"}},
        {"loaded": {}},
        {"process": 2**22 + 1},
    ],
)
def test_another_model_version_or_process_is_not_used(
    server: Server, tiny_model: Path, changed: dict[str, Any]
) -> None:
    with announced(_running(server, tiny_model, **changed)):
        assert warm.find(ModelChoice(model=tiny_model), tiny_model, lambda: None) is None  # type: ignore[arg-type, return-value]


def test_other_choices_are_loaded_here(shown: RunningServer, tiny_model: Path, tmp_path: Path) -> None:
    for choice in (
        ModelChoice(adapter=tmp_path),
        ModelChoice(dtype="float16"),
        ModelChoice(pooling="cls"),
        ModelChoice(attn="cccc"),
        ModelChoice(trust_remote_code=True),
    ):
        assert warm.find(choice, tiny_model, lambda: None) is None  # type: ignore[arg-type, return-value]


def test_a_model_that_changed_on_disk_is_not_used(server: Server, model_copy: Callable[..., Path]) -> None:
    folder = model_copy()
    with announced(_running(server, folder)):
        assert warm.find(ModelChoice(), folder, lambda: None) is not None  # type: ignore[arg-type, return-value]
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        (folder / "config.json").write_text(json.dumps({**config, "new": 1}), encoding="utf-8")
        assert warm.find(ModelChoice(), folder, lambda: None) is None  # type: ignore[arg-type, return-value]


def test_a_server_that_ends_is_replaced_by_the_model_itself(
    start: Callable[..., Server], local: GritLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    ending = start()
    loads: list[int] = []

    def load() -> GritLM:
        loads.append(1)
        return local

    model = warm.RemoteModel(ServerClient(ending.url), "tiny", local.folder, load)
    monkeypatch.setattr("grit_mlx.model.batching.WINDOW_TEXTS", 2)
    monkeypatch.setattr(
        warm, "windows", lambda texts: (lambda all_: (all_[i : i + 2] for i in range(0, len(all_), 2)))(list(texts))
    )
    vectors = []
    for vector in model.encode_iter(TEXTS, role="document"):
        vectors.append(vector)
        if len(vectors) == 2:
            ending.stop()
    np.testing.assert_allclose(vectors, list(local.encode_iter(TEXTS, role="document")), atol=1e-6)
    assert "".join(one.text for one in model.stream_responses("Hello", max_tokens=10)) == local.generate("Hello", 10)
    assert model.count_tokens("a b c") == len(local.tokenizer.encode("a b c", add_special_tokens=False))
    assert loads == [1]
    with pytest.raises(UnreachableError):
        next(iter(model.ask(question="?")))


def test_a_command_that_stops_frees_its_place(remote: warm.RemoteModel, server: Server) -> None:
    responses = remote.stream_responses("Hello", max_tokens=5000)
    next(responses)
    responses.close()  # type: ignore[attr-defined]
    server.settle()


CHAT = "When is the boiler serviced?\nBy whom?\n/sources\n/reset\nWhen are tomatoes sown?\n"


def _commands(notes: Path) -> list[tuple[str, list[str], str]]:
    boiler, garden, store = str(notes / "boiler.md"), str(notes / "garden.md"), str(notes / "store")
    return [
        ("embed", [boiler, garden], ""),
        ("embed", ["-", "--query", "--dtype", "int8"], "what is this?\nand this?\n"),
        ("embed", [boiler, "--by", "chunk", "--chunk-size", "5", "--max-length", "4"], ""),
        ("search", ["when is it serviced", boiler, garden, "--no-cache"], ""),
        ("search", ["pruned trees", garden, "--json", "--by", "line", "--no-cache", "--top", "2"], ""),
        ("search", ["pruned trees", boiler, garden, "--long", "average", "--max-length", "6", "--no-cache"], ""),
        ("generate", ["Name a colour", "--max-tokens", "20"], ""),
        ("generate", ["-", "--temp", "2", "--seed", "7", "--max-tokens", "20", "--system", "Be kind."], "A riddle"),
        ("generate", ["Name", "--raw", "--stop", "e", "--max-tokens", "30"], ""),
        ("generate", ["Name", "--schema", '{"enum": ["red", "Zoë"]}'], ""),
        ("generate", ["Name", "--schema", '{"type": "x"}'], ""),
        ("chat", ["--max-tokens", "9", "--temp", "0"], "Hello\nAnd then?\n/reset\nAnew\n"),
        ("rag ask", ["When is the boiler serviced?", "--store", store, "--min-score", "-1", "--max-tokens", "12"], ""),
        ("rag ask", ["When is the boiler serviced?", "--store", store, "--min-score", "1"], ""),
        ("rag ask", ["When is the boiler serviced?", "--store", store, "--min-score", "-1", "--answer", "quote"], ""),
        ("rag ask", ["October?", "--store", store, "--min-score", "-1", "--answer", "quote", "--json"], ""),
        ("rag ask", ["pruned?", "--store", store, "--no-generate", "--min-score", "-1", "--top", "1"], ""),
        ("rag ask", ["pruned?", "--store", store, "--rerank", "--sources-only", "--min-score", "-1"], ""),
        ("rag ask", ["pruned?", "--store", str(notes / "none")], ""),
        ("rag ask", ["pruned?", "--store", "none", "--sources-only"], ""),
        *(
            ("rag ask", ["serviced?", "--store", store, "--min-score", "-1", "--max-tokens", "5", "--path", path], "")
            for path in ("boiler.md", boiler, ".", "gar*.md", "nothing.md", "../elsewhere")
        ),
        ("rag ask", ["serviced?", "--store", store, "--sources-only", "--metadata", "a=b"], ""),
        ("rag chat", ["--store", store, "--min-score", "-1", "--max-tokens", "9"], CHAT),
        ("rag chat", ["--store", store, "--min-score", "1"], CHAT),
        ("rag chat", ["--store", store, "--min-score", "-1", "--answer", "quote"], CHAT),
        ("rag chat", ["--store", store, "--min-score", "-1"], "why " * 9000),
        ("rag chat", ["--store", "none"], CHAT),
    ]


def test_commands_print_the_same(
    shown: RunningServer,
    notes: Path,
    tiny_model: Path,
    run: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loads: list[str] = []
    monkeypatch.chdir(notes)

    def load(choice: ModelChoice, mode: str) -> GritLM:
        loads.append(mode)
        return GritLM.from_choice(choice, mode=mode)

    monkeypatch.setattr(loader, "_loaded", load)
    for name, arguments, stdin in _commands(notes):
        command = [*name.split(), *arguments, "--model", str(tiny_model)]
        with_server = run(*command, stdin=stdin)
        assert not loads, command
        without = run(*command, "--no-server", stdin=stdin)
        assert with_server == without, command
        assert loads.pop() if without[0] == 0 else True
        loads.clear()


def test_a_chat_about_a_store_goes_on_where_the_server_ends(
    start: Callable[..., Server], notes: Path, tiny_model: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    server = start()
    chosen = ["--store", str(notes / "store"), "--min-score", "-1", "--max-tokens", "9", "--model", str(tiny_model)]
    alone = run("rag", "chat", *chosen, "--no-server", stdin=CHAT)
    begun = warm.RemoteChat.chat
    with announced(_running(server, tiny_model)), pytest.MonkeyPatch.context() as patch:

        def ends(chat: warm.RemoteChat, question: str, **sampling: Any) -> Any:
            if question == "By whom?":
                server.stop()
            return begun(chat, question, **sampling)

        patch.setattr(warm.RemoteChat, "chat", ends)
        code, out, _ = run("rag", "chat", *chosen, stdin=CHAT)
    # The second answer is from passages that are looked for anew; the first and the one after /reset are the same.
    answers, expected = (text.split("\n\nSources:\n") for text in (out, alone[1]))
    assert code == 0 and len(answers) == len(expected) == 4
    assert (answers[0], answers[-1]) == (expected[0], expected[-1])


def test_a_model_that_only_embeds_says_so_at_once(
    start: Callable[..., Server], run: Callable[..., tuple[int, str, str]]
) -> None:
    folder = hub.embedded_model()
    assert folder is not None
    if GritLM(folder).settings.generates:
        pytest.skip("the built-in model generates")
    server = start(models={"tiny": folder})
    with announced(_running(server, folder)):
        for command in (["chat"], ["generate", "Hello"]):
            assert run(*command) == run(*command, "--no-server")
            assert run(*command)[0] == 1


def test_files_of_vectors_are_the_same(
    shown: RunningServer, notes: Path, tiny_model: Path, run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    for suffix in ("npz", "jsonl"):
        written = []
        for flags in ([], ["--no-server"]):
            path = tmp_path / f"vectors.{suffix}"
            done = run("embed", str(notes / "boiler.md"), "--output", str(path), "--model", str(tiny_model), *flags)
            assert done[0] == 0
            written.append(path.read_bytes() if suffix == "jsonl" else np.load(path)["vectors"].tobytes())
        assert written[0] == written[1]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """``run(*arguments, stdin="")``: exit code, stdout and stderr of a command."""
    for name in ("TRANSFORMERS_VERBOSITY", "TRANSFORMERS_NO_ADVISORY_WARNINGS", "HF_HUB_DISABLE_PROGRESS_BARS"):
        monkeypatch.setenv(name, "error" if name.endswith("VERBOSITY") else "1")
    logger = logging.getLogger("grit_mlx")
    handlers, propagate, level = logger.handlers, logger.propagate, logger.level

    def run(*arguments: str, stdin: str = "") -> tuple[int, str, str]:
        done = CliRunner().invoke(app, list(arguments), input=stdin, prog_name="grit")
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done.exit_code, done.stdout, done.stderr

    yield run
    logger.handlers, logger.propagate = handlers, propagate
    logger.setLevel(level)
