"""`python -m federation.certs make --server host --clients 5 -o certs/`: certificates for a trial, or for one's own cluster.

An authority (ca.pem, ca.key), the server's certificate (server.pem, server.key) for the names and addresses under which
clients reach it, and one for each client (client_0.pem, client_0.key, ...), made out to the name under which it comes. Keys
are readable by their owner alone. For an institution with an authority of its own, ask that one.
"""

from __future__ import annotations

import argparse
import datetime
import ipaddress
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from federation.command_line import Parser
from federation.errors import ConfigError
from federation.node.proxy import partition_client

DAYS = 365
MOST_DAYS = 36500
MOST_CLIENTS = 10_000
#: Characters of the name that a certificate is made out to (RFC 5280).
LONGEST_NAME = 64


class Authority:
    """Signs certificates. `days` from now they end; a negative number makes such as have ended already (for tests)."""

    def __init__(self, name: str = "federation trial authority", days: int = DAYS) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self._name = _named(name)
        self._days = days
        self.certificate = self._builder(name, self.key, self._name).add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True).sign(self.key, hashes.SHA256())

    def sign(self, name: str, hosts: Sequence[str] = (), days: int | None = None) -> tuple[bytes, bytes]:
        """A certificate made out to `name`, valid for `hosts` as well, and its key, both as PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        alternatives = [_alternative(host) for host in (hosts or [name])]
        builder = self._builder(name, key, self._name, days).add_extension(
            x509.SubjectAlternativeName(alternatives), critical=False)
        uses = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        certificate = builder.add_extension(x509.ExtendedKeyUsage(uses), critical=False).add_extension(
            x509.BasicConstraints(ca=False, path_length=None), critical=True).sign(self.key, hashes.SHA256())
        return certificate.public_bytes(serialization.Encoding.PEM), private(key)

    def _builder(self, name: str, key: ec.EllipticCurvePrivateKey, issuer: x509.Name,
                 days: int | None = None) -> x509.CertificateBuilder:
        days = self._days if days is None else days
        now = datetime.datetime.now(datetime.UTC)
        begin = now - datetime.timedelta(days=max(1, 2 - 2 * min(days, 0)))  # clocks of nodes differ
        return x509.CertificateBuilder(
            subject_name=_named(name), issuer_name=issuer, public_key=key.public_key(),
            serial_number=x509.random_serial_number(), not_valid_before=begin,
            not_valid_after=now + datetime.timedelta(days=days))


def private(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The key as PEM, without a password."""
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def make(folder: Path, servers: Sequence[str], clients: Sequence[str], days: int = DAYS) -> list[Path]:
    """Write everything into `folder`; what is there already is left alone (ConfigError). Returns the files.

    Clients find all of the server's names among the alternative ones, which may be longer than the first.
    """
    authority = Authority(days=days)
    contents = {"ca.pem": authority.certificate.public_bytes(serialization.Encoding.PEM), "ca.key": private(authority.key)}
    contents["server.pem"], contents["server.key"] = authority.sign(servers[0][:LONGEST_NAME], servers)
    for client in clients:
        contents[f"{client}.pem"], contents[f"{client}.key"] = authority.sign(client)
    present = [name for name in contents if (folder / name).exists()]
    if present:
        raise ConfigError(f"{folder} has {', '.join(present)} already: choose another folder, or remove them")
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if name.endswith(".key") else 0o644)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
    return [folder / name for name in contents]


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m federation.certs", allow_abbrev=False, description="Certificates for a trial.")
    command = parser.add_subparsers(dest="command", required=True, parser_class=Parser).add_parser(
        "make", allow_abbrev=False, help="make an authority, and certificates for a server and its clients")
    command.add_argument("--server", metavar="HOST", nargs="+", required=True,
                         help="names and addresses under which clients reach the server, such as node1 10.0.0.7")
    command.add_argument("--clients", metavar="N|NAME", nargs="+", default=[],
                         help="how many shares of the partition (client_0, client_1, ...), or names")
    command.add_argument("--days", type=int, default=DAYS, help="how long they are valid (default: %(default)s)")
    command.add_argument("-o", "--output", metavar="DIR", type=Path, default=Path("certs"), help="default: %(default)s")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    try:
        given = _parser().parse_args(arguments)
        names, problems = [], []
        for word in given.clients:
            if not word.isdecimal():
                names.append(word)
            elif len(word) > len(str(MOST_CLIENTS)) or int(word) > MOST_CLIENTS:
                problems.append(f"--clients: {word}; give at most {MOST_CLIENTS}, or names")
            else:
                names += map(partition_client, range(int(word)))
        if hosts := [host for host in given.server if not host or not host.isascii()]:
            problems.append(f"--server: {', '.join(map(repr, hosts))} cannot be in a certificate; give names in ASCII (xn--... for "
                            "others), or addresses")
        if bad := [name for name in names if not name.isascii() or not 0 < len(name) <= LONGEST_NAME or "/" in name
                   or name.startswith(".") or name in ("ca", "server")]:
            problems.append(f"--clients: {', '.join(map(repr, bad))} cannot name files here, and be in a certificate; give 1 to "
                            f"{LONGEST_NAME} characters of ASCII without '/' and without '.' in front, not ca or server")
        if not 1 <= given.days <= MOST_DAYS:
            problems.append(f"--days: {given.days}; give a number from 1 to {MOST_DAYS}")
        if problems:
            raise ConfigError(problems)
        files = make(given.output, given.server, names, given.days)
    except ConfigError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"-o: {given.output} cannot be written: {error.strerror}; give a folder that this user may create and write",
              file=sys.stderr)
        return 2
    print("\n".join(map(str, files)))
    here = given.output
    tls = f"tls: {{ca: {here}/ca.pem, cert: {here}/%s.pem, key: {here}/%s.key}}"
    host = f"[{given.server[0]}]" if ":" in given.server[0] else given.server[0]
    address = f'transport: {{address: "{host}:9000", '
    client = names[0] if names else "client_0"
    print(f"\nthe server:  {address}{tls % ('server', 'server')}}}\na client:    {address}{tls % (client, client)}}}\n"
          "keep ca.key and server.key to yourself; give each client ca.pem and its own two files")
    return 0


if __name__ == "__main__":
    sys.exit(main())
