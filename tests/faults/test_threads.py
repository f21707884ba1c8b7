"""Faults, kind 1: state that lives in a thread, or dies with one."""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from grit_mlx import GritLM, PromptCache
from grit_mlx.model import threads
from tests.faults.conftest import Program

PROMPT = "What keeps a ship upright?"

# How often a program that uses threads must end well: an abort came in up to 14 of 15 runs.
RUNS = int(os.environ.get("GRIT_TEST_EXITS", "3"))


def in_thread(function: Callable[[], Any], *, daemon: bool = False) -> Any:
    """The function's result, computed in a thread that never computed before."""
    results: list[Any] = []

    def work() -> None:
        try:
            results.append(function())
        except BaseException as error:
            results.append(error)

    thread = threading.Thread(target=work, daemon=daemon)
    thread.start()
    thread.join(60)
    assert results, "the thread hangs"
    if isinstance(results[0], BaseException):
        raise results[0]
    return results[0]


# What is lazy at load is first computed by the first thread that uses it, where it has no stream. Each changes what
# a model holds beside its parameters.
ROPE = {
    "llama3": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 256},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256},
    "longrope": {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4,
                 "original_max_position_embeddings": 256},
    "linear": {"rope_type": "linear", "factor": 2.0},
}  # fmt: skip


@pytest.mark.parametrize("mode", ["unified", "embedding", "generative"])
@pytest.mark.parametrize("scaling", [None, *ROPE])
def test_loaded_here_and_first_used_in_another_thread(
    model_copy: Callable[..., Path], mode: str, scaling: str | None
) -> None:
    folder = model_copy(model_type="llama", rope_scaling=scaling and ROPE[scaling])
    if mode != "generative":
        weight = np.random.default_rng(0).normal(size=(5, 32)).astype(np.float32)
        arrays = {"weight": mx.array(weight), "bias": mx.array(weight[:, 0])}
        mx.save_safetensors(str(folder / "projection.safetensors"), arrays)
    model, same = GritLM(folder, mode=mode), GritLM(folder, mode=mode)
    if mode != "generative":
        np.testing.assert_array_equal(in_thread(lambda: model.encode(["a text", "b"])), same.encode(["a text", "b"]))
    if mode != "embedding":
        assert in_thread(lambda: model.generate(PROMPT, max_tokens=5)) == same.generate(PROMPT, max_tokens=5)


@pytest.mark.parametrize("dtype", ["auto", "stored", "float16", "bfloat16"])
def test_every_dtype_and_an_adapter_are_computed_at_load(
    tiny_model: Path, tiny_mixtral: Path, tmp_path: Path, dtype: str
) -> None:
    lora = {"lora_parameters": {"rank": 2, "scale": 1.0, "dropout": 0.0, "keys": ["self_attn.q_proj"]}}
    (tmp_path / "adapter_config.json").write_text(json.dumps({"num_layers": 2, "fine_tune_type": "lora", **lora}))
    arrays: dict[str, mx.array] = {}
    for layer in range(2):
        name = f"model.layers.{layer}.self_attn.q_proj.lora_"
        arrays |= {name + "a": mx.ones((32, 2)) * 0.1, name + "b": mx.ones((2, 32)) * 0.1}
    mx.save_safetensors(str(tmp_path / "adapters.safetensors"), arrays)
    model = GritLM(tiny_model, dtype=dtype, adapter_path=tmp_path)
    assert in_thread(lambda: model.encode("x")).shape == (32,)
    mixture = GritLM(tiny_mixtral)  # on a CPU its products are float32's
    assert in_thread(lambda: mixture.generate(PROMPT, max_tokens=3))


def test_quantised_weights_are_computed_at_load(tiny_model: Path, tmp_path: Path) -> None:
    from mlx_lm import convert

    convert(str(tiny_model), str(tmp_path / "q"), quantize=True, q_group_size=32)
    for dtype in ("auto", "stored"):
        model = GritLM(tmp_path / "q", dtype=dtype)
        assert in_thread(partial(model.encode, "x")).shape == (32,)


def test_every_array_that_a_model_can_reach_is_found() -> None:
    class Plain:
        def __init__(self) -> None:
            self.table = mx.ones(3)

    class Odd(mx_module()):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self._private = mx.zeros(2)
            self.listed = [mx.zeros(1), {"deep": (mx.zeros(1),)}]
            self.plain = Plain()
            self.me = self

    assert len(threads.arrays_of(Odd())) == 4


def mx_module() -> Any:
    import mlx.nn as nn

    return nn.Module


def test_loaded_in_one_thread_and_used_in_others(tiny_model: Path) -> None:
    here = GritLM(tiny_model)
    there = in_thread(lambda: GritLM(tiny_model))
    expected = here.encode(["one", "two"])
    for run in (lambda f: f(), in_thread, lambda f: in_thread(f, daemon=True)):
        np.testing.assert_array_equal(run(lambda: there.encode(["one", "two"])), expected)
        assert run(lambda: there.generate(PROMPT, max_tokens=6)) == here.generate(PROMPT, max_tokens=6)
        array = run(lambda: there.encode(["one"], convert_to_numpy=False, output_dtype="float16"))
        np.testing.assert_allclose(np.array(array.astype(mx.float32)), expected[:1], atol=1e-3)


def test_all_ways_to_use_a_model_in_a_pool(tiny_model: Path) -> None:
    model = GritLM(tiny_model)
    texts = [f"text {i} " * (i + 1) for i in range(12)]
    chat = [{"role": "user", "content": PROMPT}]
    expected = model.encode(texts)
    answer = model.generate(PROMPT, max_tokens=12)
    seeded = model.generate(PROMPT, max_tokens=12, temperature=1.0, seed=3)
    _, document = model.encode("a document", get_cache=True)
    continued = model.generate("\n<|user|>\nWhy?\n<|assistant|>\n", max_tokens=6, cache=document)
    batch = model.generate_batch(["Why?", "How?"], max_tokens=6)

    def use(i: int) -> None:
        np.testing.assert_allclose(model.encode(texts[i]), expected[i], atol=1e-6)
        np.testing.assert_allclose(np.stack(list(model.encode_iter(texts))), expected, atol=1e-6)
        assert model.generate(chat, max_tokens=12) == answer
        assert model.generate(PROMPT, max_tokens=12, temperature=1.0, seed=3) == seeded
        cache = PromptCache()
        assert model.generate(PROMPT, max_tokens=12, cache=cache) == answer
        assert model.generate(PROMPT, max_tokens=12, cache=cache) == answer and cache.reused
        assert model.generate_batch(["Why?", "How?"], max_tokens=6) == batch
        _, own = model.encode("a document", get_cache=True)
        for one in (own, document):
            assert model.generate("\n<|user|>\nWhy?\n<|assistant|>\n", max_tokens=6, cache=one) == continued

    with ThreadPoolExecutor(6) as pool:
        done = [pool.submit(use, i) for i in range(12)]
        use(0)  # and the main thread meanwhile
    for one in done:
        one.result()


def test_several_models_at_once(tiny_model: Path, tiny_mixtral: Path) -> None:
    models = [GritLM(tiny_model), GritLM(tiny_mixtral), GritLM(tiny_model, mode="generative")]
    expected = [model.generate(PROMPT, max_tokens=10) for model in models]
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda i: models[i % 3].generate(PROMPT, max_tokens=10), range(12)))
    assert answers == expected * 4


def test_a_stream_may_be_taken_by_changing_threads(tiny_model: Path) -> None:
    """As by a web framework, which takes each piece in another thread of its pool."""
    model = GritLM(tiny_model)
    expected = model.generate(PROMPT, max_tokens=20)
    for begun_here in (True, False):
        stream = model.stream(PROMPT, max_tokens=20)
        pieces = [next(stream)] if begun_here else []
        while (piece := in_thread(partial(next, stream, None))) is not None:
            pieces.append(piece)
        assert "".join(pieces) == expected
    # Given up half-way, and closed by a thread that never saw it.
    stream = in_thread(lambda: model.stream(PROMPT, max_tokens=20))
    in_thread(lambda: next(stream))
    in_thread(stream.close)
    assert model.generate(PROMPT, max_tokens=20) == expected


def test_streams_side_by_side_do_not_disturb_each_other(tiny_model: Path) -> None:
    model = GritLM(tiny_model)
    options: dict[str, Any] = {"max_tokens": 12, "temperature": 1.2}
    expected = [model.generate(PROMPT, seed=seed, **options) for seed in range(3)]
    streams = [model.stream(PROMPT, seed=seed, **options) for seed in range(3)]
    pieces = [""] * 3
    for _ in range(30):
        for i, stream in enumerate(streams):
            pieces[i] += next(stream, "")
    assert pieces == expected


def test_callbacks_and_iterables_stay_in_the_callers_thread(tiny_model: Path) -> None:
    """A database's cursor, or a page that is drawn, belongs to the thread that made it."""
    model = GritLM(tiny_model)
    seen: set[int] = set()

    def texts() -> Any:
        for i in range(5):
            seen.add(threading.get_ident())
            yield f"text {i}"

    def use() -> int:
        model.encode(list(texts()), progress=lambda *_: seen.add(threading.get_ident()))
        list(model.encode_iter(texts()))
        return threading.get_ident()

    assert in_thread(use) in seen and len(seen) == 1


def test_an_error_in_a_thread_reaches_its_caller(tiny_model: Path) -> None:
    from grit_mlx.errors import TextError

    model = GritLM(tiny_model)
    with pytest.raises(TextError, match="Text 1 is empty"):
        in_thread(lambda: model.encode(["a", ""]))
    assert in_thread(lambda: model.encode("a")).shape == (32,)


def test_threads_leave_no_native_threads_behind(program: Program) -> None:
    """mlx keeps one for each stream of each thread that ever computed."""
    program(
        """
        import threading
        from pathlib import Path
        from grit_mlx import GritLM

        model = GritLM(MODEL)

        def use():
            model.encode("x")
            model.generate("Why?", max_tokens=2)

        def count(times):
            for _ in range(times):
                thread = threading.Thread(target=use)
                thread.start()
                thread.join()
            return len(list(Path("/proc/self/task").iterdir())) if Path("/proc/self/task").exists() else 0

        before = count(2)
        assert count(20) < before + 10, before
        """
    )


PATTERNS = {
    "threads": """
        import threading
        threads = [threading.Thread(target=use) for _ in range(4)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        """,
    "threads that nobody waits for": """
        import threading
        [threading.Thread(target=use).start() for _ in range(4)]
        """,
    "daemons that still compute": """
        import threading, time

        def forever():
            while True:
                use()

        [threading.Thread(target=forever, daemon=True).start() for _ in range(3)]
        time.sleep(0.3)
        """,
    "a pool": """
        from concurrent.futures import ThreadPoolExecutor
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: use(), range(8)))
        """,
    "a pool that nobody ends": """
        from concurrent.futures import ThreadPoolExecutor
        pool = ThreadPoolExecutor(4)
        futures = [pool.submit(use) for _ in range(8)]
        futures[0].result()
        """,
    "multiprocessing's pool of threads": """
        from multiprocessing.pool import ThreadPool
        pool = ThreadPool(3)
        pool.map(lambda _: use(), range(6))
        """,
    "asyncio": """
        import asyncio

        async def main():
            await asyncio.gather(*[asyncio.to_thread(use) for _ in range(4)])
            await asyncio.get_running_loop().run_in_executor(None, use)

        asyncio.run(main())
        """,
    "a loop in a thread": """
        import asyncio, threading
        loop = asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, daemon=True).start()

        async def work():
            use()

        asyncio.run_coroutine_threadsafe(work(), loop).result()
        """,
    "a timer": """
        import threading
        threading.Timer(0.05, use).start()
        """,
    "a stream given up": """
        stream = model.stream("Why?", max_tokens=50)
        next(stream)
        """,
    "a stream given up in a thread": """
        import threading
        kept = []

        def begin():
            kept.append(model.stream("Why?", max_tokens=50))
            next(kept[0])

        thread = threading.Thread(target=begin)
        thread.start()
        thread.join()
        """,
    "an exception": """
        import sys, threading
        threading.Thread(target=use).start()
        sys.exit(0)
        """,
    "at exit": """
        import atexit, threading
        atexit.register(use)
        threading.Thread(target=use).start()
        """,
    "loaded in a thread": """
        import threading
        made = []
        thread = threading.Thread(target=lambda: made.append(GritLM(MODEL)))
        thread.start()
        thread.join()
        made[0].encode("x")
        """,
    "no thread": "use()",
}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_ends_with_code_0_every_time(program: Program, pattern: str) -> None:
    source = """
        from grit_mlx import GritLM
        model = GritLM(MODEL)

        def use():
            model.encode(["a text", "b"])
            model.generate("Why?", max_tokens=3)
            return list(model.stream("Why?", max_tokens=3, temperature=1.0))
        """
    for _ in range(RUNS):
        program(source + PATTERNS[pattern])


@pytest.mark.skipif(importlib.util.find_spec("joblib") is None, reason="needs joblib")
def test_joblibs_threads(program: Program) -> None:
    for _ in range(RUNS):
        program(
            """
            from joblib import Parallel, delayed
            from grit_mlx import GritLM
            model = GritLM(MODEL)
            vectors = Parallel(n_jobs=3, prefer="threads")(delayed(model.encode)(f"text {i}") for i in range(9))
            assert len(vectors) == 9
            """
        )


@pytest.mark.skipif(importlib.util.find_spec("starlette") is None, reason="needs starlette")
def test_a_web_framework(program: Program) -> None:
    for _ in range(RUNS):
        program(
            """
            from concurrent.futures import ThreadPoolExecutor
            from starlette.applications import Starlette
            from starlette.responses import JSONResponse, StreamingResponse
            from starlette.routing import Route
            from starlette.testclient import TestClient
            from grit_mlx import GritLM

            model = GritLM(MODEL)
            expected = model.generate("Why?", max_tokens=30)

            def embed(request):  # in the pool
                return JSONResponse(model.encode(request.query_params["text"]).tolist())

            async def answer(request):  # begun in the loop, taken in the pool
                return StreamingResponse(model.stream("Why?", max_tokens=30), media_type="text/plain")

            async def direct(request):  # in the loop
                return JSONResponse(model.encode("b").tolist())

            app = Starlette(routes=[Route("/embed", embed), Route("/answer", answer), Route("/direct", direct)])
            with TestClient(app) as client, ThreadPoolExecutor(4) as pool:
                urls = ["/embed?text=a", "/answer", "/direct"] * 4
                answers = list(pool.map(client.get, urls))
                assert all(one.status_code == 200 for one in answers)
                assert all(one.text == expected for one in answers[1::3])
                assert all(len(one.json()) == 32 for one in answers[::3])
                with client.stream("GET", "/answer") as half:  # a client that goes away
                    next(half.iter_text())
            """
        )


# Processes

FORK = "import multiprocessing; processes = multiprocessing.get_context({how!r})\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.parametrize(
    "use",
    ["model.encode('x')", "model.generate('x', max_tokens=2)", "GritLM(MODEL)", "model.generate_batch(['x', 'y'])",
     "list(model.encode_iter(['x']))", "next(model.stream('x'))"],
)  # fmt: skip
def test_a_forked_process_says_spawn(program: Program, use: str) -> None:
    result = program(
        f"""
        import multiprocessing
        from grit_mlx import GritLM, GritError

        def work(queue):
            try:
                {use}
            except GritError as error:
                queue.put(str(error))

        model = GritLM(MODEL)
        model.encode("x")
        model.generate("x", max_tokens=2)
        processes = multiprocessing.get_context("fork")
        queue = processes.Queue()
        child = processes.Process(target=work, args=(queue,))
        child.start()
        print(queue.get(timeout=30))
        child.join()
        assert child.exitcode == 0
        model.encode("x")  # the parent goes on
        """
    )
    assert "spawn" in result.stdout and "forked" in result.stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_pool_of_forked_processes_gets_the_error_too(program: Program) -> None:
    """The error has to travel between processes: one that cannot be pickled hangs the pool."""
    program(
        """
        import multiprocessing
        from grit_mlx import GritLM, GritError

        model = GritLM(MODEL)

        def work(text):
            return model.encode(text)

        with multiprocessing.get_context("fork").Pool(2) as pool:
            try:
                pool.map(work, ["a", "b"])
            except GritError as error:
                assert "spawn" in str(error)
            else:
                raise SystemExit(1)
        """
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_fork_before_anything_was_computed_is_fine(program: Program) -> None:
    program(
        """
        import os
        from grit_mlx import GritLM

        child = os.fork()
        model = GritLM(MODEL)
        assert model.encode("x").shape == (32,)
        model.generate("x", max_tokens=2)
        if child:
            assert os.waitpid(child, 0)[1] == 0
        """
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_process_that_does_something_else_is_left_alone(program: Program) -> None:
    program(
        """
        import os, sys
        from grit_mlx import GritLM

        model = GritLM(MODEL)
        model.generate("x", max_tokens=2)
        child = os.fork()
        if not child:
            sys.exit(0)
        assert os.waitpid(child, 0)[1] == 0
        """
    )


def test_spawned_processes(program: Program) -> None:
    program(
        """
        import multiprocessing
        from grit_mlx import GritLM

        def work(text):
            return GritLM(MODEL).encode(text).shape

        if __name__ == "__main__":
            GritLM(MODEL).encode("x")
            with multiprocessing.get_context("spawn").Pool(2) as pool:
                assert pool.map(work, ["a", "b"]) == [(32,), (32,)]
        """
    )


def test_a_model_is_not_pickled_but_loaded(tiny_model: Path) -> None:
    import copy
    import pickle

    from grit_mlx.errors import GritError

    model = GritLM(tiny_model)
    for attempt in (lambda: pickle.dumps(model), lambda: copy.deepcopy(model)):
        with pytest.raises(GritError, match="load it in each process"):
            attempt()


# Limits

IMPORTS = (
    "from grit_mlx import GritLM",
    "import grit_mlx.training.trainer",
    "import grit_mlx.rag",
    "import grit_mlx.convert.conversion",
    "import grit_mlx.model.generation",
    "import grit_mlx, mlx_lm",
)


@pytest.mark.parametrize("line", IMPORTS)
@pytest.mark.parametrize("limits", [(256, 1024), (1024, 1024), (1024, 524288), (4096, 4096), (8192, 8192)])
def test_importing_leaves_the_limit_of_open_files_alone(program: Program, line: str, limits: tuple[int, int]) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and limits[1] > hard:
        pytest.skip("the limit here is lower")
    program(
        f"""
        import resource
        resource.setrlimit(resource.RLIMIT_NOFILE, {limits})
        {line}
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert (soft, hard) == {limits}
        """
    )


def test_the_command_line_leaves_the_limit_alone(tiny_model: Path) -> None:
    def lower() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (512, 1024))

    command = [sys.executable, "-m", "grit_mlx.cli", "generate", "hi", "--max-tokens", "1", "--model", str(tiny_model)]
    if importlib.util.find_spec("grit_mlx.cli.__main__") is None:
        command[1:3] = ["-c", "import sys; from grit_mlx.cli.main import main; sys.argv[0] = 'grit'; main()"]
    result = subprocess.run(command, preexec_fn=lower, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
