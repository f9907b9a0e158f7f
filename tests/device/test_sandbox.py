"""Hostile tasks: each gets its own outcome, and the pool lives on."""

from __future__ import annotations

import platform
import socket
import time
from pathlib import Path

import pytest

from shoal.device.container import (
    RunReply,
    RunRequest,
    TaskCode,
    VMPool,
    VMPoolConfig,
    probe_sandbox,
)
from shoal.wire.codes import ErrorCode

LEVEL = probe_sandbox()
needs_landlock = pytest.mark.skipif(LEVEL < 2, reason=f"kernel has no Landlock (level {LEVEL})")
needs_seccomp = pytest.mark.skipif(LEVEL < 3, reason=f"kernel has no seccomp (level {LEVEL})")


def write_task(folder: Path, body: str) -> TaskCode:
    folder.mkdir(parents=True, exist_ok=True)
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    (folder / "main.py").write_text(f"def run(ctx, batch):\n{lines}\n")
    return TaskCode(
        "hostile", 1, folder, outputs={"out": ("result", "json")}, memory_mb=64, output_kb=16
    )


def run_once(pool: VMPool, code: TaskCode, deadline_ms: int = 5000) -> RunReply:
    request = RunRequest(b"run", code, [], device=b"d" * 16)
    return pool.submit(request, deadline_ms=deadline_ms).result(timeout=30)


def run_at(level: int, folder: Path, body: str, deadline_ms: int = 5000) -> RunReply:
    """Run a hostile task, then see that the same pool still runs a good one."""
    with VMPool(VMPoolConfig(backend="process", size=1, sandbox_level=level)) as pool:
        reply = run_once(pool, write_task(folder / "bad", body), deadline_ms)
        good = write_task(folder / "good", "ctx.emit('out', 42)")
        after = run_once(pool, good)
        assert (after.outcome, [entry[:2] for entry in after.emits]) == (0, [("out", 42)])
        return reply


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        ("while True: pass", ErrorCode.DEADLINE),
        (
            "while True:\n    try:\n        while True: pass\n    except Exception: pass",
            ErrorCode.DEADLINE,
        ),
        # Even one that swallows everything is killed from outside.
        (
            "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
            ErrorCode.DEADLINE,
        ),
        ("import re; re.match(r'(a+)+$', 'a' * 40 + 'b')", ErrorCode.DEADLINE),
        ("import time; time.sleep(60)", ErrorCode.DEADLINE),
        ("x = bytearray(1 << 30); ctx.emit('out', len(x))", ErrorCode.MEMORY),
        ("x = []\nwhile True: x.append(bytearray(1 << 20))", ErrorCode.MEMORY),
        ("1 / 0", ErrorCode.EXCEPTION),
        ("raise SystemExit(0)", ErrorCode.EXCEPTION),
        ("raise KeyboardInterrupt", ErrorCode.EXCEPTION),
        ("class Mine(BaseException): pass\nraise Mine('mine')", ErrorCode.EXCEPTION),
        ("f = lambda f: f(f)\nf(f)", ErrorCode.EXCEPTION),
        ("import os; os._exit(0)", ErrorCode.VM_CRASHED),
        ("import ctypes; ctypes.string_at(0)", ErrorCode.VM_CRASHED),
        ("import no_such_module", ErrorCode.IMPORT_REFUSED),
        ("ctx.emit('out', 'x' * (1 << 20))", ErrorCode.OUTPUT_TOO_LARGE),
        ("ctx.emit('secret', 1)", ErrorCode.EXCEPTION),
        ("ctx.emit('out', float('nan'))", ErrorCode.ENGINE_ERROR),
        ("ctx.emit('out', {'deep': [1.0, float('inf')]})", ErrorCode.ENGINE_ERROR),
        ("ctx.emit('out', object())", ErrorCode.EXCEPTION),
        ("ctx.state['x'] = run", ErrorCode.EXCEPTION),
        ("print('garbage' * 1000, flush=True); raise ValueError('after')", ErrorCode.EXCEPTION),
        ("import sys; sys.stdin.read(); raise ValueError('no input')", ErrorCode.EXCEPTION),
    ],
)
def test_every_way_to_fail_has_its_code(body: str, outcome: ErrorCode, tmp_path: Path) -> None:
    reply = run_at(LEVEL, tmp_path, body, deadline_ms=700)
    assert ErrorCode(reply.outcome) is outcome, reply.message
    assert reply.message
    assert "\n" not in reply.message
    assert reply.emits == []
    assert reply.state is None


@needs_landlock
@pytest.mark.parametrize(
    "body",
    [
        "open('/etc/passwd').read()",
        "import os; os.listdir('/home')",
        "open('{outside}/new', 'w')",
        "open('{outside}/agent.db', 'rb').read()",
        "import os; os.remove('{outside}/agent.db')",
        "import os; os.rename('{outside}/agent.db', '{outside}/moved')",
        "open(__file__, 'a').write('changed')",
    ],
)
def test_files_outside_are_out_of_reach(body: str, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "agent.db").write_bytes(b"secret")
    reply = run_at(LEVEL, tmp_path, body.replace("{outside}", str(outside)))
    assert ErrorCode(reply.outcome) is ErrorCode.SANDBOX_VIOLATION, reply.message
    assert [path.name for path in outside.iterdir()] == ["agent.db"]


@needs_seccomp
@pytest.mark.parametrize(
    "body",
    [
        "import socket; socket.socket()",
        "import socket; socket.create_connection(('127.0.0.1', 9))",
        "import os; os.fork()",
        "while True:\n    import os; os.fork()",
        "import subprocess; subprocess.run(['true'])",
        "import os; os.execv('/bin/true', ['true'])",
        "import os; os.kill(os.getppid(), 9)",
        "import os; os.chmod(__file__, 0o777)",
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))",
        "import os; os.setuid(0)",
    ],
)
def test_forbidden_system_calls_fail(body: str, tmp_path: Path) -> None:
    reply = run_at(3, tmp_path, body)
    outcome = ErrorCode(reply.outcome)
    if "setrlimit" in body:  # the resource module says ValueError for EPERM
        assert outcome is ErrorCode.EXCEPTION, reply.message
    else:
        assert outcome is ErrorCode.SANDBOX_VIOLATION, reply.message


def test_level_zero_permits_what_the_sandbox_forbids(tmp_path: Path) -> None:
    """The negative control: without the sandbox the same tasks succeed."""
    outside = tmp_path / "outside"
    outside.mkdir()
    for body in (
        "ctx.emit('out', open('/etc/passwd').read()[:4])",
        f"open('{outside}/new', 'w').write('x'); ctx.emit('out', 1)",
        "import socket; socket.socket().close(); ctx.emit('out', 1)",
        "import os\npid = os.fork()\nif pid == 0: os._exit(0)\n"
        "os.waitpid(pid, 0); ctx.emit('out', 1)",
    ):
        reply = run_at(0, tmp_path, body)
        assert reply.outcome == 0, reply.message
    assert (outside / "new").exists()


@needs_landlock
def test_the_network_is_shut_from_level_two(tmp_path: Path) -> None:
    body = "import socket; socket.create_connection(('127.0.0.1', {port}), 2).close()"
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        body = body.format(port=listener.getsockname()[1])
        assert run_at(2, tmp_path, body).outcome == ErrorCode.SANDBOX_VIOLATION
        assert run_at(0, tmp_path, body).outcome == 0  # the negative control


@needs_landlock
def test_a_worker_of_root_has_no_powers_left(tmp_path: Path) -> None:
    body = (
        "lines = open('/proc/self/status').read().splitlines()\n"
        "ctx.emit('out', {l.split(':')[0]: l.split()[1] for l in lines if l[:3] in ('Cap', 'NoN')})"
    )
    reply = run_at(2, tmp_path, body)
    assert reply.outcome == 0, reply.message
    facts = reply.emits[0][1]
    assert {int(facts[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd")} == {0}
    assert facts["NoNewPrivs"] == "1"


@needs_seccomp
@pytest.mark.parametrize(
    ("number", "arguments"),
    [
        ("prlimit64", "0, 9, ctypes.byref(limit), 0"),
        ("memfd_create", "b'x', 0"),
        ("io_uring_setup", "8, ctypes.create_string_buffer(256)"),
        ("bpf", "0, 0, 0"),
        ("ptrace", "0, 0, 0, 0"),
        ("process_vm_readv", "1, 0, 0, 0, 0, 0"),
        ("unshare", "0x10000000"),
        ("keyctl", "0, 0, 0, 0, 0"),
        ("userfaultfd", "0"),
        ("x32_getpid", ""),
    ],
)
def test_bare_system_calls_are_refused(number: str, arguments: str, tmp_path: Path) -> None:
    if platform.machine() != "x86_64":
        pytest.skip("the numbers here are those of x86_64")
    numbers = {
        "prlimit64": 302,
        "memfd_create": 319,
        "io_uring_setup": 425,
        "bpf": 321,
        "ptrace": 101,
        "process_vm_readv": 310,
        "unshare": 272,
        "keyctl": 250,
        "userfaultfd": 323,
        "x32_getpid": 0x40000000 + 39,
    }
    body = (
        "import ctypes\n"
        "class Limit(ctypes.Structure): _fields_ = [('a', ctypes.c_ulong), ('b', ctypes.c_ulong)]\n"
        "limit = Limit(1 << 40, 1 << 40)\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        f"result = libc.syscall({', '.join(filter(None, [str(numbers[number]), arguments]))})\n"
        "ctx.emit('out', [result, ctypes.get_errno()])"
    )
    reply = run_at(3, tmp_path, body)
    assert reply.outcome == 0, reply.message
    assert reply.emits[0][1] == [-1, 1]  # EPERM


@pytest.mark.parametrize(
    "body",
    [
        "from threading import Thread\nimport time\n"
        "while True: Thread(target=time.sleep, args=(9,)).start()",
        "while True: ctx.emit('out', 'x' * 1000)",
        "while True: ctx.log('x' * 1000); ctx.state[len(ctx.state)] = 'x' * 1000",
        "x = []\nfor _ in range(10**6): x = [x]\nctx.emit('out', x)",
        "x = []; x.append(x); ctx.emit('out', x)",
        "open('big', 'wb').write(b'x' * (32 << 20))",
        "import sys; sys.setrecursionlimit(10**9)\nf = lambda n: f(n + 1)\nf(0)",
        "import os\nfor number in range(1, 32): os.kill(0, number)",
    ],
)
def test_bombs_go_off_inside(body: str, tmp_path: Path) -> None:
    reply = run_at(LEVEL, tmp_path, body, deadline_ms=1500)
    assert reply.outcome in {
        ErrorCode.DEADLINE,
        ErrorCode.MEMORY,
        ErrorCode.EXCEPTION,
        ErrorCode.SANDBOX_VIOLATION,
        ErrorCode.VM_CRASHED,
        ErrorCode.OUTPUT_TOO_LARGE,
    }, reply
    assert reply.message


@pytest.mark.parametrize(
    ("abi", "filters", "level"), [(7, True, 3), (4, False, 2), (0, True, 1), (0, False, 1)]
)
def test_what_the_kernel_lacks_lowers_the_level(
    abi: int, filters: bool, level: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shoal.device.container import landlock, seccomp

    monkeypatch.setattr(landlock, "abi", lambda: abi)
    monkeypatch.setattr(seccomp, "available", lambda: filters)
    assert probe_sandbox() == level


def test_scratch_is_writable_and_package_is_readable(tmp_path: Path) -> None:
    code = write_task(
        tmp_path / "task",
        "import os, pathlib\n"
        "pathlib.Path('mine').write_text('kept')\n"
        "here = pathlib.Path(__file__).parent\n"
        "ctx.emit('out', [pathlib.Path('mine').read_text(), (here / 'data.txt').read_text()])",
    )
    (tmp_path / "task" / "data.txt").write_text("shipped")
    with VMPool(VMPoolConfig(backend="process", size=1)) as pool:
        reply = run_once(pool, code)
    assert reply.outcome == 0, reply.message
    assert reply.emits[0][1] == ["kept", "shipped"]


def test_environment_is_clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENT_SECRET", "hunter2")
    reply = run_at(
        max(LEVEL, 1), tmp_path, "import os; ctx.log(dict(os.environ)); ctx.emit('out', 1)"
    )
    assert reply.outcome == 0
    assert "hunter2" not in str(reply.log)


def test_deadline_is_kept_within_bounds(tmp_path: Path) -> None:
    code = write_task(
        tmp_path, "import time\nif ctx.deadline_left() < 1000: \n    while True: pass"
    )
    with VMPool(VMPoolConfig(backend="process", size=1)) as pool:
        assert run_once(pool, code).outcome == 0  # warm
        start = time.monotonic()
        reply = run_once(pool, code, deadline_ms=200)
        elapsed = time.monotonic() - start
    assert reply.outcome == ErrorCode.DEADLINE
    # The task's own alarm stopped it: the worker was not killed and says the time it took.
    assert reply.wall_us >= 190_000
    assert elapsed < 5


def test_level_that_is_not_to_be_had_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shoal.core.errors import UnavailableError
    from shoal.device.container import process

    monkeypatch.setattr(process, "probe_sandbox", lambda: 1)
    with pytest.raises(UnavailableError, match="sandbox level 3"):
        VMPool(VMPoolConfig(backend="process", sandbox_level=3))
    code = TaskCode("t", 1, tmp_path, sandbox_level=3)
    with VMPool(VMPoolConfig(backend="process", size=1)) as pool:
        assert run_once(pool, code).outcome == ErrorCode.SANDBOX_VIOLATION
