"""Command-line flags that the chat client and the commands of operators share: TLS, tokens, addresses."""

from __future__ import annotations

import argparse
import os
import ssl
from pathlib import Path
from typing import Final

from nodeproc.client import Address
from nodeproc.tls import TlsProblem, client_tls

TOKEN_VARIABLE: Final = "CHAT_CLIENT_TOKEN"
"""Environment variable with the client token. A flag would be visible in the list of processes."""
ADMIN_VARIABLE: Final = "CHAT_ADMIN_TOKEN"
"""As TOKEN_VARIABLE, with the admin token."""


def add_tls_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tls-ca", metavar="FILE", help="use TLS; PEM file of the trusted authorities")
    parser.add_argument(
        "--tls-cert", metavar="FILE", help="PEM file of the client's certificate, if the nodes require one"
    )
    parser.add_argument("--tls-key", metavar="FILE", help="PEM file of its private key")
    parser.add_argument("--tls-any-name", action="store_true", help="accept a node's certificate for any host name")


def tls_of(options: argparse.Namespace, parser: argparse.ArgumentParser) -> ssl.SSLContext | None:
    """Return the TLS settings that the flags ask for; unusable files are reported like wrong flags."""
    if not options.tls_ca:
        if options.tls_cert or options.tls_key or options.tls_any_name:
            parser.error("--tls-cert, --tls-key and --tls-any-name: allowed with --tls-ca only")
        return None
    try:
        return client_tls(
            options.tls_ca, options.tls_cert or "", options.tls_key or "", check_names=not options.tls_any_name
        )
    except TlsProblem as problem:
        parser.error(f"--tls-{problem.key}: {problem}")


def add_token_flag(parser: argparse.ArgumentParser, kind: str = "client", variable: str = TOKEN_VARIABLE) -> None:
    parser.add_argument(
        f"--{kind}-token-file",
        metavar="FILE",
        help=f"file with the {kind} token, if the nodes require one (default: {variable})",
    )


def token_of(
    options: argparse.Namespace, parser: argparse.ArgumentParser, kind: str = "client", variable: str = TOKEN_VARIABLE
) -> str:
    """Return the token from the file that the flag names, else from the environment; "" for none."""
    path: str | None = getattr(options, f"{kind}_token_file")
    if not path:
        return os.environ.get(variable, "")
    try:
        return Path(path).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        parser.error(f"--{kind}-token-file {path}: {error}")


def address(text: str) -> Address:
    """Parse HOST:PORT, as the type of an argument.

    Raises:
        argparse.ArgumentTypeError: names what is allowed.
    """
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not 1 <= len(host) <= 256 or not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65535:
        raise argparse.ArgumentTypeError(f"found {text!r}, allowed HOST:PORT, such as 127.0.0.1:5001")
    return host, int(port)


def node_id(text: str) -> int:
    """Parse a node id, as the type of an argument. Raises: argparse.ArgumentTypeError."""
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) < 2**31:
        raise argparse.ArgumentTypeError(f"found {text!r}, allowed a node id, 1..{2**31 - 1}")
    return int(text)
