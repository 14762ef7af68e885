"""TLS for a node's port and for connections to nodes, configured by PEM files.

A port with TLS accepts nothing else, so it cannot be downgraded. Nodes present certificates in both directions. Clients
check the node's certificate, and present their own if the node requires one. The certificates of a link are part of its
handshake (nodeproc.net.handshake), so a man in the middle with a certificate of his own is detected.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from msgspec import Struct

from nodeproc.errors import ConfigError

LEAST_VERSION: Final = ssl.TLSVersion.TLSv1_3
_SOURCE = re.compile(r" \(_ssl\.c:\d+\)")


class TlsFiles(Struct, frozen=True, forbid_unknown_fields=True):
    """The `tls` part of a node's configuration. Paths are relative to the working directory.

    cert: this node's certificate, followed by the intermediate ones.
    key: its private key, without a passphrase.
    ca: certificates of the trusted authorities, for nodes and clients.
    clients: whether a client needs a certificate too.
    check_names: a node's certificate must be valid for the host that was dialled.
    """

    cert: str
    key: str
    ca: str
    clients: Literal["any", "certificate"] = "any"
    check_names: bool = True


class TlsProblem(ConfigError):
    """A file cannot be used; `key` is the field of TlsFiles that names it."""

    def __init__(self, key: str, text: str) -> None:
        super().__init__(text)
        self.key = key


@dataclass(frozen=True, slots=True)
class NodeTls:
    """The TLS contexts with which a node accepts and dials connections."""

    accepting: ssl.SSLContext
    dialling: ssl.SSLContext
    own: bytes
    """This node's certificate, DER."""


def node_tls(files: TlsFiles) -> NodeTls:
    """Read the files of a node.

    Raises:
        TlsProblem: a file is missing, is not PEM, or does not match the others.
    """
    accepting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    accepting.minimum_version = LEAST_VERSION
    # With CERT_OPTIONAL a client needs no certificate. A node without one is refused after PEER_HELLO.
    accepting.verify_mode = ssl.CERT_REQUIRED if files.clients == "certificate" else ssl.CERT_OPTIONAL
    _trust(accepting, files.ca)
    own = _show(accepting, files.cert, files.key)
    dialling = client_tls(files.ca, files.cert, files.key, check_names=files.check_names)
    return NodeTls(accepting, dialling, own)


def client_tls(ca: str, cert: str = "", key: str = "", *, check_names: bool = True) -> ssl.SSLContext:
    """Return the TLS context with which a client connects to nodes.

    Args:
        ca: certificates of the trusted authorities.
        cert, key: the client's own certificate and key, if the nodes require one.
        check_names: the node's certificate must be valid for the host that was dialled.

    Raises:
        TlsProblem: as node_tls.
    """
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls.minimum_version = LEAST_VERSION
    tls.check_hostname = check_names
    _trust(tls, ca)
    if cert or key:
        if not key:
            raise TlsProblem("key", "none is given, and the certificate needs one")
        if not cert:
            raise TlsProblem("cert", "none is given, and the key needs one")
        _show(tls, cert, key)
    return tls


def _trust(tls: ssl.SSLContext, ca: str) -> None:
    text = _read("ca", ca)
    try:
        tls.load_verify_locations(cadata=text)
    except (ssl.SSLError, ValueError):
        raise TlsProblem("ca", f"{ca}: no certificate in it, allowed PEM certificates of authorities") from None


def _show(tls: ssl.SSLContext, cert: str, key: str) -> bytes:
    """Load certificate and key into the context. Return the certificate, DER."""
    text = _read("cert", cert)
    begin, end = text.find(_BEGIN), text.find(_END)
    if begin < 0 or end < begin:
        raise TlsProblem("cert", f"{cert}: no certificate in it, allowed PEM")
    try:
        own = ssl.PEM_cert_to_DER_cert(text[begin : end + len(_END)])
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=own)
    except (ssl.SSLError, ValueError):
        raise TlsProblem("cert", f"{cert}: a damaged certificate") from None
    _read("key", key)
    try:
        tls.load_cert_chain(cert, key, password=_no_passphrase)
    except _Encrypted:
        raise TlsProblem("key", f"{key}: it has a passphrase, allowed keys without one") from None
    except ssl.SSLError as error:
        if error.reason in ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH"):
            raise TlsProblem("key", f"{key}: it is not the key of {cert}") from None
        raise TlsProblem("key", f"{key}: no private key for {cert} in it, allowed PEM ({describe(error)})") from None
    return own


_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"


class _Encrypted(Exception):
    pass


def _no_passphrase() -> str:
    raise _Encrypted


def _read(key: str, path: str) -> str:
    try:
        return Path(path).read_text("ascii", "replace")
    except OSError as error:
        raise TlsProblem(key, f"{path}: {error.strerror}") from None


def shown_certificate(transport: asyncio.BaseTransport) -> bytes:
    """Return the certificate that the other end has presented, DER; empty without one, or without TLS."""
    channel = transport.get_extra_info("ssl_object")
    return (channel.getpeercert(binary_form=True) or b"") if channel is not None else b""


def channel_of(acceptor: bytes, dialler: bytes) -> str:
    """Return the hash of both certificates of a link, which both ends must compute alike."""
    return hashlib.sha256(hashlib.sha256(acceptor).digest() + hashlib.sha256(dialler).digest()).hexdigest()


def describe(error: ssl.SSLError) -> str:
    """Return the description of an error, without its place in the source of OpenSSL."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {error.verify_message}"
    return _SOURCE.sub("", error.strerror or str(error))
