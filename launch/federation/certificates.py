"""The certificates and keys of a federation: makes them, and says in one sentence what is wrong with them.

    python certificates.py make FOLDER --host link.example.org --sites 3 [--days 365] [--renew]
    python certificates.py check-link FOLDER --port 8000
    python certificates.py check-site FOLDER --site 0 --superlink link.example.org:8000

`make` writes, in FOLDER:

    ca.crt           goes to every site: with it, a site knows the SuperLink
    server.pem/.key  stay with the SuperLink
    ca.key           signs the next server certificate (--renew); best kept on no machine that is on the network
    sites/K/key      goes to site K alone: with it, the SuperLink knows the site; key.pub stays with the SuperLink

`check-link` also says whether the port is free; `check-site` also asks the SuperLink for its certificate, if it
answers. A mistake ends with exit code 2. Needs the package cryptography, which Flower brings.
"""

import argparse
import ipaddress
import os
import socket
import ssl
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
)
from cryptography.x509.oid import NameOID

WAIT = 5.0
"""Seconds to wait for a SuperLink's certificate."""
SOON = timedelta(days=14)
ITSELF = ("127.0.0.1", "localhost")
"""How the SuperLink's own machine reaches it, to let sites in and to start runs."""


class Mistake(Exception):
    """What is wrong, in one sentence."""


def make(folder: Path, hosts: list[str], sites: int, days: int, renew: bool) -> None:
    """Write what the federation lacks; with `renew` a new server certificate, signed by the same authority."""
    if (folder / "ca.crt").exists() and not renew:
        raise Mistake(f"{folder} has a ca.crt already: choose another folder, or --renew the server's certificate.")
    if renew and not (folder / "ca.key").exists():
        raise Mistake(f"{folder} has no ca.key to sign a new certificate with: make them all in another folder.")
    if not hosts:
        raise Mistake("no --host: write the names and addresses under which the sites reach the SuperLink.")
    if days < 1:
        raise Mistake(f"--days is {days}: it must be 1 or more.")
    if renew:
        authority_key = _private(folder / "ca.key")
        authority = _certificate(folder / "ca.crt")
    else:
        authority_key = ec.generate_private_key(ec.SECP384R1())
        authority = _signed("syncnorm federation", authority_key.public_key(), None, authority_key, days, [])
        _write_key(folder / "ca.key", authority_key)
        _write(folder / "ca.crt", authority.public_bytes(Encoding.PEM))
    key = ec.generate_private_key(ec.SECP384R1())
    every = list(dict.fromkeys([*hosts, *ITSELF]))
    server = _signed(hosts[0], key.public_key(), authority, authority_key, days, every)
    _write_key(folder / "server.key", key)
    _write(folder / "server.pem", server.public_bytes(Encoding.PEM))
    for site in range(sites):
        where = folder / "sites" / str(site)
        if not (where / "key").exists():
            own = ec.generate_private_key(ec.SECP384R1())
            _write_key(where / "key", own, PrivateFormat.OpenSSH)
            _write(where / "key.pub", own.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) + b"\n")


def check_link(folder: Path, port: int) -> None:
    """Raise `Mistake` if a SuperLink could not start with this folder on this port."""
    certificate = _current(folder / "server.pem", "make a new one with --renew")
    if _private(folder / "server.key").public_key() != certificate.public_key():
        raise Mistake(f"{folder}/server.key is not the key of {folder}/server.pem: make a new pair with --renew.")
    try:
        certificate.verify_directly_issued_by(_current(folder / "ca.crt", "make all of them anew"))
    except (ValueError, InvalidSignature):
        raise Mistake(f"{folder}/server.pem was not signed by {folder}/ca.crt: take both from one `make`.") from None
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _bind(probe, port)


def check_site(folder: Path, site: int, superlink: str, port: int) -> None:
    """Raise `Mistake` if a SuperNode could not start with this folder, or would not know the SuperLink."""
    _current(folder / "ca.crt", "ask for the new one")
    key = folder / "sites" / str(site) / "key"
    try:
        load_ssh_private_key(_read(key), None)
    except ValueError:
        raise Mistake(f"{key} is no private key: ask for the one of site {site}.") from None
    host, _, number = superlink.rpartition(":")
    if not host or not number.isdigit():
        raise Mistake(f"the SuperLink is '{superlink}': write HOST:PORT, such as link.example.org:8000.")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _bind(probe, port)
    context = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    try:
        with (
            socket.create_connection((host, int(number)), WAIT) as plain,
            context.wrap_socket(plain, server_hostname=host),
        ):
            pass
    except ssl.SSLCertVerificationError as error:
        raise Mistake(
            f"the certificate of {superlink} does not go with {folder}/ca.crt ({error.verify_message}): take both "
            "from one `make`, with every name of the SuperLink as --host."
        ) from None
    except ssl.SSLError as error:
        raise Mistake(
            f"{superlink} does not speak TLS ({error.reason}): start the SuperLink by superlink.sh."
        ) from None
    except OSError:
        print(f"site {site}: no SuperLink answers at {superlink} yet; the SuperNode waits for it", file=sys.stderr)


def _bind(probe: socket.socket, port: int) -> None:
    try:
        probe.bind(("127.0.0.1", port))
    except OSError as error:
        raise Mistake(f"port {port} cannot be had ({error.strerror}): choose another with PORT=.") from None


def _signed(
    name: str,
    key: ec.EllipticCurvePublicKey,
    issuer: x509.Certificate | None,
    by: ec.EllipticCurvePrivateKey,
    days: int,
    hosts: list[str],
) -> x509.Certificate:
    """Return a certificate for `key`; without an issuer, that of an authority."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now, authority = datetime.now(UTC), issuer is None
    usage = x509.KeyUsage(not authority, False, False, False, False, authority, authority, False, False)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))  # clocks differ
        .not_valid_after(now + timedelta(days=10 * days if authority else days))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=0 if authority else None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(by.public_key()), critical=False)
    )
    if hosts:
        made = made.add_extension(x509.SubjectAlternativeName([_name(host) for host in hosts]), critical=False)
    return made.sign(by, hashes.SHA384())


def _name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _current(path: Path, remedy: str) -> x509.Certificate:
    """Return a certificate that is valid now, and say so if that ends soon."""
    certificate, now = _certificate(path), datetime.now(UTC)
    end = certificate.not_valid_after_utc
    if end < now:
        raise Mistake(f"{path} has expired on {end:%Y-%m-%d}: {remedy}.")
    if certificate.not_valid_before_utc > now:
        raise Mistake(f"{path} is valid from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} on: check the clock.")
    if end - now < SOON:
        print(f"{path} expires on {end:%Y-%m-%d}: {remedy}", file=sys.stderr)
    return certificate


def _certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(_read(path))
    except ValueError:
        raise Mistake(f"{path} is no certificate in PEM.") from None


def _private(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = load_pem_private_key(_read(path), None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise Mistake(f"{path} is no private key that `make` has written.")
    return key


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Mistake(f"{path} cannot be read ({error.strerror}): `make` writes it.") from None


def _write_key(
    path: Path, key: ec.EllipticCurvePrivateKey, kind: PrivateFormat = PrivateFormat.TraditionalOpenSSL
) -> None:
    _write(path, key.private_bytes(Encoding.PEM, kind, NoEncryption()), 0o600)


def _write(path: Path, content: bytes, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def main() -> None:
    """Read the command line, and do what it says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["make", "check-link", "check-site"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--host", action="append", default=[])
    parser.add_argument("--sites", type=int, default=0)
    parser.add_argument("--days", type=int, default=365)
    parser.add_argument("--renew", action="store_true")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--site", type=int, default=0)
    parser.add_argument("--superlink", default="")
    given = parser.parse_args()
    try:
        if given.what == "make":
            make(given.folder, given.host, given.sites, given.days, given.renew)
        elif given.what == "check-link":
            check_link(given.folder, given.port)
        else:
            check_site(given.folder, given.site, given.superlink, given.port)
    except Mistake as mistake:
        print(f"certificates: {mistake}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
