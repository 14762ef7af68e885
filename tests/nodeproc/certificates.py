"""Certificates for tests, made on the spot by an authority that nobody else knows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import trustme
from cryptography.hazmat.primitives import serialization

from nodeproc.tls import TlsFiles


@dataclass(frozen=True)
class Papers:
    """One holder's PEM files."""

    cert: Path
    key: Path
    ca: Path

    @property
    def files(self) -> dict[str, str]:
        """As they stand in a node's configuration."""
        return {"cert": str(self.cert), "key": str(self.key), "ca": str(self.ca)}

    @property
    def of_node(self) -> TlsFiles:
        return TlsFiles(**self.files)  # type: ignore[arg-type]


class Authority:
    """Issues papers under one directory."""

    def __init__(self, root: Path, name: str = "ca") -> None:
        self._root = root
        self._authority = trustme.CA()
        self.ca = root / f"{name}.pem"
        self._authority.cert_pem.write_to_path(self.ca)

    def papers(self, name: str, *hosts: str) -> Papers:
        """Certificate and key for hosts; 127.0.0.1 where none is given."""
        issued = self._authority.issue_cert(*(hosts or ("127.0.0.1",)))
        papers = Papers(self._root / f"{name}.pem", self._root / f"{name}.key", self.ca)
        papers.cert.write_bytes(b"".join(each.bytes() for each in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(papers.key)
        return papers


def encrypt(key: Path) -> None:
    """Give a private key a passphrase."""
    private = serialization.load_pem_private_key(key.read_bytes(), None)
    encryption = serialization.BestAvailableEncryption(b"passphrase")
    key.write_bytes(
        private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption),
    )
