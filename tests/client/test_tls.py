"""Publishing over TLS: trust, the deadline, forks, and redirects between http and https."""

import datetime
import ipaddress
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from allim.client import ClientError, NotConfirmed
from allim.client.answers import redirected
from allim.client.network import tls
from tests.client.publishing import Kind, both, publishing
from tests.client.scripted import ACCEPTED, answer, scripted, trickle
from tests.client.test_forks import run

pytestmark = pytest.mark.anyio

FORKED = """
import os, sys
from allim.client import Publisher

publisher = Publisher(sys.argv[1], "k", timeout_s=50)
publisher.publish("a", "t", "parent")
pid = os.fork()
if pid == 0:
    publisher.publish("a", "t", "child")
    publisher.close()
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
publisher.publish("a", "t", "parent")
"""


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a certificate for 127.0.0.1 and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "allim tests")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    file = tmp_path_factory.mktemp("tls") / "certificate.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file.write_bytes(made.public_bytes(serialization.Encoding.PEM) + private)
    return file


@pytest.fixture
def served(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


@pytest.fixture
def trusted(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    tls.cache_clear()
    yield
    tls.cache_clear()


@both
async def test_a_certificate_that_is_not_trusted_gets_no_key(kind: Kind, served: ssl.SSLContext) -> None:
    with scripted(ACCEPTED, tls=served) as server:
        async with publishing(kind, server.url) as publish:
            with pytest.raises(NotConfirmed, match="certificate verify failed") as caught:
                await publish("a", "t", 1, timeout_s=10)

    assert server.asked == []
    assert not caught.value.may_be_stored


@pytest.mark.usefixtures("trusted")
@both
async def test_a_redirect_from_https_to_http_is_refused(kind: Kind, served: ssl.SSLContext) -> None:
    with scripted(ACCEPTED) as plain, scripted(answer(307, location=f"{plain.url}/"), ACCEPTED, tls=served) as server:
        async with publishing(kind, server.url) as publish:
            with pytest.raises(ClientError, match="another origin, and credentials are not sent there"):
                await publish("a", "t", 1)
            await publish("a", "t", 1)

    assert len(server.asked) == 2
    assert plain.asked == []


@pytest.mark.usefixtures("trusted")
@both
async def test_an_answer_that_trickles_costs_the_deadline(kind: Kind, served: ssl.SSLContext) -> None:
    with scripted(trickle(b"HTTP/1.1 202 Accepted\r\n" + b"x: y\r\n" * 1000), tls=served) as server:
        async with publishing(kind, server.url) as publish:
            with pytest.raises(NotConfirmed, match="in 1 s: "):
                await publish("a", "t", 1, timeout_s=1)


@pytest.mark.usefixtures("trusted")
def test_a_child_leaves_its_parents_session_usable(served: ssl.SSLContext) -> None:
    with scripted(ACCEPTED, tls=served) as server:
        run(FORKED, server.url)

    assert [asked.connection for asked in server.asked] == [1, 2, 1]


@pytest.mark.parametrize(
    ("begin", "end", "follows"),
    [
        ("http://example.org/a", "https://example.org/b", True),
        ("https://example.org/a", "/b", True),
        ("https://example.org/a", "https://example.org:443/b", True),
        ("https://example.org/a", "http://example.org/b", False),
        ("https://example.org/a", "https://www.example.org/b", False),
        ("https://example.org/a", "https://example.org:8443/b", False),
        ("http://example.org:8000/a", "https://example.org:8443/b", False),
    ],
)
def test_where_credentials_go(begin: str, end: str, follows: bool) -> None:
    with httpx.Client(
        transport=httpx.MockTransport(lambda _: httpx.Response(308, headers={"location": end}))
    ) as http:
        response = http.post(begin, headers={"authorization": "Bearer k"}, content=b"body")

    if not follows:
        with pytest.raises(ClientError, match="another origin"):
            redirected(response, 0)
    else:
        request = redirected(response, 0)
        assert request is not None
        assert (request.method, request.headers["authorization"], request.read()) == ("POST", "Bearer k", b"body")
