"""A certificate authority of the tests, and servers' and clients' certificates from it."""

import datetime
import ipaddress
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

DAY = datetime.timedelta(days=1)


class PrivateCa:
    """Certificates in PEM files of a folder.

    Attributes:
        bundle: the authority's own.
    """

    def __init__(self, folder: Path, name: str = "popi test authority") -> None:
        folder.mkdir(exist_ok=True)
        self._folder, self._key, self._name = folder, ec.generate_private_key(ec.SECP256R1()), _name(name)
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        extensions = ((x509.BasicConstraints(ca=True, path_length=None), True), (usage, True))
        self._certificate = self._signed(self._name, self._key, DAY, extensions)
        self.bundle = folder / "ca.pem"
        self.bundle.write_bytes(self._certificate.public_bytes(serialization.Encoding.PEM))

    def issue(self, *names: str, common_name: str = "a server", valid: datetime.timedelta = DAY) -> Path:
        """A certificate and its key in one file; without names one that has no subjectAltName."""
        key = ec.generate_private_key(ec.SECP256R1())
        alternatives = [
            x509.IPAddress(ipaddress.ip_address(name)) if name[0].isdigit() else x509.DNSName(name) for name in names
        ]
        extensions = ((x509.SubjectAlternativeName(alternatives), False),) if alternatives else ()
        certificate = self._signed(_name(common_name), key, valid, extensions)
        pem = serialization.Encoding.PEM
        private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        path = self._folder / f"{len(list(self._folder.iterdir()))}.pem"
        path.write_bytes(private + certificate.public_bytes(pem))
        return path

    def server(self, *names: str, wants_client: bool = False, **more: object) -> ssl.SSLContext:
        """What a server shows."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.issue(*names, **more))  # type: ignore[arg-type]
        if wants_client:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self.bundle)
        return context

    def _signed(self, name: x509.Name, key: ec.EllipticCurvePrivateKey, valid: datetime.timedelta, extensions: object):
        now = datetime.datetime.now(datetime.UTC)
        builder = x509.CertificateBuilder(
            self._name, name, key.public_key(), x509.random_serial_number(), now - 9 * DAY, now + valid
        )
        for extension, critical in extensions:  # type: ignore[attr-defined]
            builder = builder.add_extension(extension, critical)
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = builder.add_extension(identifier, False)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        return builder.sign(self._key, hashes.SHA256())


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common)])
