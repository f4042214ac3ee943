"""`launch/federation`: certificates, the page, and all of it on this machine, with and without kills."""

import json
import os
import re
import shlex
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
from ports import free_port

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "launch" / "federation"


def module(name: str) -> Any:
    spec = spec_from_file_location(f"federation_{name}", FOLDER / f"{name}.py")
    assert spec
    assert spec.loader
    made = module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


certificates = module("certificates")


@pytest.fixture
def made(tmp_path: Path) -> Path:
    certificates.make(tmp_path / "certificates", ["link.example.org", "10.0.0.1"], 2, 30, False)
    return tmp_path / "certificates"


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def serve(port: int) -> Iterator[Callable[[Path], str]]:
    """Return a function that serves TLS with a folder's certificate, and gives its address."""
    listening = socket.create_server(("127.0.0.1", port))

    def answer(context: ssl.SSLContext) -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            try:
                context.wrap_socket(connection, server_side=True).close()
            except OSError:
                connection.close()

    def start(folder: Path) -> str:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "server.pem", folder / "server.key")
        threading.Thread(target=answer, args=(context,), daemon=True).start()
        return f"127.0.0.1:{port}"

    yield start
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()


def check_site(folder: Path, superlink: str, site: int = 0) -> None:
    certificates.check_site(folder, site, superlink, 0)


def test_what_is_made_fits_together(made: Path, serve: Callable[[Path], str], port: int) -> None:
    certificates.check_link(made, 0)
    superlink = serve(made)
    check_site(made, superlink)
    check_site(made, f"localhost:{port}", site=1)
    for secret in (made / "server.key", made / "ca.key", made / "sites" / "0" / "key"):
        assert secret.stat().st_mode & 0o777 == 0o600
    assert (made / "sites" / "1" / "key.pub").read_text().startswith("ecdsa-sha2-nistp384 ")


def test_a_renewed_certificate_is_known_to_sites_that_have_the_old_authority(
    made: Path, serve: Callable[[Path], str]
) -> None:
    before, key = (made / "server.pem").read_bytes(), (made / "sites" / "0" / "key").read_bytes()
    certificates.make(made, ["link.example.org"], 3, 30, True)
    assert (made / "server.pem").read_bytes() != before
    assert (made / "sites" / "0" / "key").read_bytes() == key
    assert (made / "sites" / "2" / "key").exists()
    certificates.check_link(made, 0)
    check_site(made, serve(made))


def test_a_certificate_that_ends_soon_is_said(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    certificates.make(made, ["link.example.org"], 0, 5, True)
    certificates.check_link(made, 0)
    assert "server.pem expires on" in capsys.readouterr().err


def expired(folder: Path) -> None:
    class Past(datetime):
        @classmethod
        def now(cls, zone: Any = None) -> Any:
            return datetime.now(UTC) - timedelta(days=40)

    changed, certificates.datetime = certificates.datetime, Past
    try:
        certificates.make(folder, ["link.example.org"], 0, 30, True)
    finally:
        certificates.datetime = changed


def other_key(folder: Path) -> None:
    certificates.make(folder.parent / "other", ["link.example.org"], 0, 30, False)
    (folder.parent / "other" / "server.key").replace(folder / "server.key")


def other_authority(folder: Path) -> None:
    certificates.make(folder.parent / "other", ["link.example.org"], 0, 30, False)
    (folder.parent / "other" / "ca.crt").replace(folder / "ca.crt")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (expired, r"server\.pem has expired on \d{4}-\d\d-\d\d: make a new one with --renew"),
        (other_key, r"server\.key is not the key of .*server\.pem"),
        (other_authority, r"server\.pem was not signed by .*ca\.crt"),
        (lambda folder: (folder / "server.pem").write_text("x"), r"server\.pem is no certificate in PEM"),
        (lambda folder: (folder / "server.key").write_text("x"), r"server\.key is no private key"),
        (lambda folder: (folder / "ca.crt").unlink(), r"ca\.crt cannot be read \(No such file"),
    ],
)
def test_a_superlink_that_sites_would_not_know_does_not_start(
    spoil: Callable[[Path], Any], said: str, made: Path
) -> None:
    spoil(made)
    with pytest.raises(certificates.Mistake, match=said):
        certificates.check_link(made, 0)


def test_a_port_in_use_is_said(made: Path, port: int) -> None:
    with socket.create_server(("127.0.0.1", port)):
        for check in (
            lambda: certificates.check_link(made, port),
            lambda: certificates.check_site(made, 0, "127.0.0.1:1", port),
        ):
            with pytest.raises(certificates.Mistake, match=f"port {port} cannot be had .*PORT="):
                check()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (other_authority, r"does not go with .*ca\.crt \(unable to get local issuer|does not go with .*self.signed"),
        (lambda folder: (folder / "sites" / "0" / "key").write_text("x"), "is no private key: ask for"),
        (lambda folder: (folder / "sites" / "0" / "key").unlink(), "cannot be read"),
    ],
)  # fmt: skip
def test_a_site_with_the_wrong_files_does_not_start(
    spoil: Callable[[Path], Any], said: str, made: Path, serve: Callable[[Path], str]
) -> None:
    superlink = serve(made)
    spoil(made)
    with pytest.raises(certificates.Mistake, match=said):
        check_site(made, superlink)


def test_an_expired_superlink_is_said_at_the_site(made: Path, serve: Callable[[Path], str]) -> None:
    expired(made)
    with pytest.raises(certificates.Mistake, match="certificate has expired"):
        check_site(made, serve(made))


def test_a_host_that_the_certificate_does_not_name_is_said(
    made: Path, serve: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificates, "ITSELF", ())
    certificates.make(made, ["link.example.org"], 0, 30, True)
    with pytest.raises(certificates.Mistake, match=r"IP address mismatch.*every name of the SuperLink as --host"):
        check_site(made, serve(made))


def test_a_superlink_without_tls_and_one_that_is_not_there_yet(
    made: Path, port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    check_site(made, f"127.0.0.1:{port}")
    assert "no SuperLink answers" in capsys.readouterr().err
    with pytest.raises(certificates.Mistake, match="write HOST:PORT"):
        check_site(made, "link.example.org")
    with socket.create_server(("127.0.0.1", port)) as plain:

        def speak() -> None:
            connection, _ = plain.accept()
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=speak, daemon=True).start()
        with pytest.raises(certificates.Mistake, match="does not speak TLS"):
            check_site(made, f"127.0.0.1:{port}")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "has a ca.crt already"),
        ({"renew": True, "hosts": []}, "no --host"),
        ({"renew": True, "days": 0}, "--days is 0"),
        ({"renew": True, "gone": True}, "has no ca.key to sign"),
    ],
)
def test_what_cannot_be_made_is_said(options: dict[str, Any], said: str, made: Path) -> None:
    if options.get("gone"):
        (made / "ca.key").unlink()
    with pytest.raises(certificates.Mistake, match=said):
        certificates.make(
            made, options.get("hosts", ["link.example.org"]), 1, options.get("days", 30), options.get("renew", False)
        )


def test_a_mistake_is_one_sentence_and_exit_code_2(tmp_path: Path) -> None:
    command = [sys.executable, str(FOLDER / "certificates.py"), "check-link", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert re.fullmatch(r"certificates: .*server\.pem cannot be read .*\n", ended.stderr)


def test_the_page_names_files_and_options_that_exist() -> None:
    page = (FOLDER / "README.md").read_text()
    for target in re.findall(r"\]\(([^)#]+)", page):
        assert (FOLDER / target).exists(), target
    known = {script.name: script.read_text() for script in FOLDER.iterdir() if script.is_file()}
    for block in re.findall(r"```sh\n(.*?)```", page, re.S):
        for line in block.replace("\\\n", " ").split("\n"):
            line = line.split("#")[0]
            if (match := re.search(r"launch/federation/(\S+)", line)) is None:
                continue
            script = match[1]
            assert script in known
            options = re.findall(r"(--[a-z-]+)", line)
            variables = re.findall(r"\b([A-Z]+)=", line.split(script)[0])
            for name in (*options, *variables):
                assert name in known[script], f"{script} knows no {name}"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (['{"world": {"methd": "fedbn"}}'], "did you mean 'world.method'"),
        (["{}", "--certificates", "none"], r"there is no .*none/ca\.crt"),
    ],
)
def test_a_mistake_in_a_run_is_said_before_it_starts(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", *words])
    assert module("run").main() == 2
    assert re.search(f"^run: .*{said}.*\n$", capsys.readouterr().err)


class Flower:
    """Stands in for the commands of Flower: answers by what is asked."""

    def __init__(self, *statuses: tuple[str, str]) -> None:
        self.statuses, self.started = list(statuses), 0

    def __call__(self, command: list[str], **options: Any) -> Any:
        """Answer a command."""
        match command[1]:
            case "run":
                self.started += 1
                answer = {"success": True, "run-id": 7}
            case "list" if self.statuses[0][0] == "gone":
                self.statuses.pop(0)
                answer = {"success": False, "error-message": "Listing\n\nConnection to the SuperLink is unavailable."}
            case "list":
                status, details = self.statuses.pop(0)
                answer = {"success": True, "runs": [{"run-id": "7", "status": status, "status-details": details}]}
            case _:
                answer = {}
        return subprocess.CompletedProcess(command, 0, json.dumps(answer), "")


LOST = ("finished:failed", "No heartbeat received from the task")
DONE = ("finished:completed", "")
WRONG = ("finished:failed", "ServerApp failed with exception: round 2: 3 of 3 clients gave no usable update")


@pytest.mark.parametrize(
    ("statuses", "code", "started"),
    [
        ([DONE], 0, 1),
        ([("running", ""), DONE], 0, 1),
        ([("gone", ""), LOST, DONE], 0, 2),
        ([LOST, ("gone", ""), ("gone", ""), WRONG], 1, 2),
        ([WRONG], 1, 1),
    ],
)
def test_a_run_that_lost_its_superlink_is_started_again_and_no_other(
    statuses: list[tuple[str, str]],
    code: int,
    started: int,
    made: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, flower = module("run"), Flower(*statuses)
    monkeypatch.setattr(run, "PAUSE", 0.0)
    monkeypatch.setattr(subprocess, "run", flower)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(sys, "argv", ["run.py", "{}", "--certificates", str(made)])
    assert run.main() == code
    assert (flower.started, flower.statuses) == (started, [])
    said = capsys.readouterr().err
    assert said.count("Connection to the SuperLink is unavailable. It is asked again") == (("gone", "") in statuses)
    assert ("3 of 3 clients gave no usable update" in said) == (WRONG in statuses)


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.fault
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("options", ["", "--kill"])
def test_the_federation_on_this_machine_ends_with_the_simulated_model(options: str, tmp_path: Path) -> None:
    """TLS, keys, three sites with data of their own; the second form kills a SuperNode and the SuperLink."""
    command = f"sh {FOLDER}/try.sh {options}"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"KEEP": str(tmp_path), "PATH": path, "PYTHON": sys.executable}
    ended = subprocess.run(shlex.split(command), capture_output=True, text=True, timeout=1700, env=environment)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert "the run has ended with a model" in ended.stderr
    far = re.search(r"largest difference of an entry of the global model: (\S+)", ended.stdout)
    assert far
    assert float(far[1]) < 1e-6
    if options:
        assert "killed the SuperNode" in ended.stderr
        assert "goes on after its last round" in ended.stderr
        assert re.search(r"left out, by round and client: \[\(2, 1\)", ended.stdout)
