"""Redirects, TLS, proxies, credentials: what the environment may decide, and what no server may."""

import base64
import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import create_connection, socket
from typing import Any

import pytest

from download.misbehaving import Misbehaving, Reply, misbehaving
from topwork.download.cache import Cache, Cached
from topwork.download.lock import Known
from topwork.download.transfer import Policy, download
from topwork.download.transport import shown, token_variable
from topwork.errors import WeightsError

QUICK = Policy(tries=2, timeout_s=2, backoff_s=0.005)


@pytest.fixture
def get(cache: Cache) -> Callable[..., Cached]:
    """Download a URL quickly; messages go to `get.messages`."""
    messages: list[str] = []

    def run(url: str, **kwargs: Any) -> Cached:
        return download(
            shown(url),
            url,
            cache,
            Known(shown(url)).verify,
            policy=QUICK,
            notify=messages.append,
            **kwargs,
        )

    run.messages = messages  # type: ignore[attr-defined]
    return run


def moved(location: str, status: int = 302) -> Reply:
    return Reply(status=status, headers={"Location": location})


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed(
    get: Callable[..., Cached], server: Misbehaving, content: bytes, status: int
) -> None:
    server.plan |= {
        "/a": moved("/b", status),
        "/b": moved(f"{server.url}/c", status),
        "/c": [Reply(content, cut=9999), Reply(content)],
    }
    assert get(f"{server.url}/a").path.read_bytes() == content
    assert [request.path for request in server.seen] == ["/a", "/b", "/c"] * 2
    assert server.ranges()[-1] == "bytes=9999-", "resumed through the redirects"


def test_redirect_loop(get: Callable[..., Cached], server: Misbehaving) -> None:
    server.plan |= {"/a": moved("/b"), "/b": moved("/a")}
    with pytest.raises(
        WeightsError,
        match=(
            rf"{server.url}/a: the redirects run in a circle: {server.url}/a -> {server.url}/b ->"
            rf" {server.url}/a"
        ),
    ):
        get(f"{server.url}/a")


def test_too_many_redirects(get: Callable[..., Cached], server: Misbehaving) -> None:
    server.plan |= {f"/{n}": moved(f"/{n + 1}") for n in range(30)}
    with pytest.raises(WeightsError, match=r"/0: more than 10 redirects: .* -> .*/11\."):
        get(f"{server.url}/0")
    assert len(server.seen) == 11


def test_redirect_from_https_to_http_is_refused(
    get: Callable[..., Cached],
    server: Misbehaving,
    secure_server: Misbehaving,
    certificate: Path,
    content: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    server.plan["/w"] = Reply(content)
    secure_server.plan["/w"] = moved(f"{server.url}/w?X-Amz-Signature=abc&part=1")
    with pytest.raises(
        WeightsError,
        match=(
            rf"{secure_server.url}/w: redirected from https to http.* ->"
            rf" {server.url}/w\?X-Amz-Signature=\*\*\*&part=1\. Refused"
        ),
    ):
        get(f"{secure_server.url}/w")
    assert server.seen == []
    server.plan["/up"] = moved(f"{secure_server.url}/up")
    secure_server.plan["/up"] = Reply(content)
    assert get(f"{server.url}/up").path.read_bytes() == content, "the other way is fine"


def test_redirect_to_a_file_is_refused(get: Callable[..., Cached], server: Misbehaving) -> None:
    server.plan["/w"] = moved("file:///etc/passwd")
    with pytest.raises(WeightsError, match=r"redirected to file://, expected https.*Refused"):
        get(f"{server.url}/w")


@pytest.mark.parametrize(
    "location",
    ["http://[", "https:///w", "http://127.0.0.1:x/w"],
    ids=["bracket", "no host", "port"],
)
def test_redirect_to_nowhere(
    get: Callable[..., Cached], server: Misbehaving, location: str
) -> None:
    server.plan["/w"] = moved(location)
    with pytest.raises(
        WeightsError, match=rf"{server.url}/w: redirected to .*, which is no address; expected one"
    ):
        get(f"{server.url}/w")


def test_unknown_ca(get: Callable[..., Cached], secure_server: Misbehaving, content: bytes) -> None:
    secure_server.plan["/w"] = Reply(content)
    with pytest.raises(
        WeightsError,
        match=(
            rf"{secure_server.url}/w: the server's certificate isn't trusted \(self.signed"
            r" certificate.*SSL_CERT_FILE=ca\.pem"
        ),
    ):
        get(f"{secure_server.url}/w")
    assert secure_server.seen == []


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_ca_bundle_of_the_environment(
    get: Callable[..., Cached],
    secure_server: Misbehaving,
    certificate: Path,
    content: bytes,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
) -> None:
    secure_server.plan["/w"] = [Reply(content, cut=200_000), Reply(content)]
    monkeypatch.setenv(variable, str(certificate))
    assert get(f"{secure_server.url}/w").path.read_bytes() == content


def test_wrong_host_name(
    get: Callable[..., Cached],
    secure_server: Misbehaving,
    certificate: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with pytest.raises(WeightsError, match=r"certificate isn't trusted \(Hostname mismatch"):
        get(secure_server.url.replace("127.0.0.1", "localhost") + "/w")


@pytest.mark.parametrize("text", [None, "no certificate"], ids=["missing", "not PEM"])
def test_bad_ca_bundle(
    get: Callable[..., Cached], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None
) -> None:
    bundle = tmp_path / "ca.pem"
    if text is not None:
        bundle.write_text(text)
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    with pytest.raises(
        WeightsError,
        match=r"ca\.pem: (no such CA bundle|not readable as a CA bundle).*SSL_CERT_FILE",
    ):
        get("https://127.0.0.1/w")


def test_plain_http_on_a_tls_address(get: Callable[..., Cached], server: Misbehaving) -> None:
    with pytest.raises(
        WeightsError, match=r"no TLS connection \(.*expected a server that speaks https"
    ):
        get(server.url.replace("http://", "https://") + "/w")


def test_credentials_from_the_environment(
    get: Callable[..., Cached], server: Misbehaving, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.plan["/w"] = [Reply(content, cut=1000), Reply(content)]
    monkeypatch.setenv("TOPWORK_TOKEN_127_0_0_1", "s3cret")
    get(f"{server.url}/w")
    assert [request.headers["authorization"] for request in server.seen] == ["Bearer s3cret"] * 2
    assert get.messages  # type: ignore[attr-defined]
    assert "s3cret" not in "".join(get.messages)  # type: ignore[attr-defined]
    monkeypatch.setenv("TOPWORK_TOKEN_127_0_0_1", "me:s3cret")
    server.plan["/x"] = Reply(status=403)
    with pytest.raises(WeightsError, match="the server answers 403") as caught:
        get(f"{server.url}/x")
    assert (
        base64.b64decode(server.seen[-1].headers["authorization"].removeprefix("Basic "))
        == b"me:s3cret"
    )
    assert "s3cret" not in str(caught.value)


def test_credentials_stay_with_their_host(
    get: Callable[..., Cached], server: Misbehaving, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = server.url.rpartition(":")[2]
    server.plan |= {"/a": moved(f"http://localhost:{port}/b"), "/b": Reply(content)}
    monkeypatch.setenv("TOPWORK_TOKEN_127_0_0_1", "s3cret")
    get(f"{server.url}/a")
    assert ["authorization" in request.headers for request in server.seen] == [True, False]


def test_a_token_stays_with_its_host(cache: Cache, server: Misbehaving, content: bytes) -> None:
    """A hub sends its users on to the address of a store, whose keeper mustn't see the token."""
    port = server.url.rpartition(":")[2]
    server.plan |= {
        "/a": moved("/a2"),
        "/a2": moved(f"http://localhost:{port}/b"),
        "/b": Reply(content),
    }
    url = f"{server.url}/a"
    download(url, url, cache, Known(url).verify, token="hf_s3cret", policy=QUICK)
    assert [request.headers.get("authorization") for request in server.seen] == [
        "Bearer hf_s3cret",
        "Bearer hf_s3cret",
        None,
    ]


@pytest.mark.parametrize(
    "secret", ["s3cr\net", "s3cr\x7fet", "s3crét"], ids=["two lines", "control sign", "accent"]
)
def test_credentials_that_cant_stand_in_a_header(
    get: Callable[..., Cached], server: Misbehaving, monkeypatch: pytest.MonkeyPatch, secret: str
) -> None:
    monkeypatch.setenv("TOPWORK_TOKEN_127_0_0_1", secret)
    with pytest.raises(
        WeightsError, match=r"/w: the credentials for 127\.0\.0\.1 hold .*TOPWORK_TOKEN_127_0_0_1"
    ) as caught:
        get(f"{server.url}/w")
    assert "s3cr" not in str(caught.value)
    assert server.seen == []


def test_a_line_break_at_the_end_of_credentials_is_no_part_of_them(
    get: Callable[..., Cached], server: Misbehaving, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.plan["/w"] = Reply(content)
    monkeypatch.setenv("TOPWORK_TOKEN_127_0_0_1", "s3cret\n")
    get(f"{server.url}/w")
    assert server.seen[0].headers["authorization"] == "Bearer s3cret"


def test_credentials_are_not_sent_in_the_clear(
    get: Callable[..., Cached], server: Misbehaving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain http to another machine: a proxy on loopback sees what would go over the wire."""
    monkeypatch.setenv("TOPWORK_TOKEN_WEIGHTS_EXAMPLE", "s3cret")
    with proxy() as (address, asked):
        monkeypatch.setenv("HTTP_PROXY", address)
        with pytest.raises(WeightsError, match="answers 404"):
            get("http://weights.example/w")
    assert asked[0][0] == "http://weights.example/w"
    assert "authorization" not in asked[0][1]


def test_credentials_in_the_address_are_refused(get: Callable[..., Cached]) -> None:
    with pytest.raises(
        WeightsError,
        match=(
            r"https://example\.org/w: the address holds a user or"
            r" password.*TOPWORK_TOKEN_EXAMPLE_ORG"
        ),
    ) as caught:
        get("https://me:s3cret@example.org/w")
    assert "s3cret" not in str(caught.value)


def test_names_of_variables_and_masked_addresses() -> None:
    assert token_variable("weights.my-host.org") == "TOPWORK_TOKEN_WEIGHTS_MY_HOST_ORG"
    assert (
        shown("https://me:pw@h.org:1/a?rev=3&access_token=abc&X-Amz-Signature=f#x")
        == "https://h.org:1/a?rev=3&access_token=***&X-Amz-Signature=***"
    )


@contextmanager
def proxy() -> Iterator[tuple[str, list[tuple[str, dict[str, str]]]]]:
    """A proxy that passes on plain requests and CONNECT tunnels to loopback; any other host is
    404.
    """
    asked: list[tuple[str, dict[str, str]]] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            asked.append((self.path, {k.lower(): v for k, v in self.headers.items()}))
            host = self.path.split("/")[2]
            if not host.startswith("127."):
                self.send_error(404)
                return
            connection = http.client.HTTPConnection(host)
            connection.request("GET", "/" + self.path.split("/", 3)[3])
            response = connection.getresponse()
            body = response.read()
            self.send_response(response.status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            connection.close()

        def do_CONNECT(self) -> None:
            asked.append((self.path, {k.lower(): v for k, v in self.headers.items()}))
            if self.path.startswith("locked."):
                self.send_error(407)
                return
            host, _, port = self.path.rpartition(":")
            with create_connection((host, int(port))) as upstream:
                self.send_response(200)
                self.end_headers()
                back = threading.Thread(target=pump, args=(upstream, self.connection))
                back.start()
                pump(self.connection, upstream)
                back.join()
            self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def pump(source: socket, target: socket) -> None:
    try:
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(1)
    except OSError:
        pass


def test_http_proxy(
    get: Callable[..., Cached], server: Misbehaving, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.plan |= {"/a": Reply(content), "/b": Reply(content)}
    with proxy() as (address, asked):
        monkeypatch.setenv("HTTP_PROXY", address.replace("http://", "http://me:p%40w@"))
        assert get(f"{server.url}/a").path.read_bytes() == content
        assert asked[0][0] == f"{server.url}/a"
        assert (
            base64.b64decode(asked[0][1]["proxy-authorization"].removeprefix("Basic ")) == b"me:p@w"
        )
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        get(f"{server.url}/b")
    assert len(asked) == 1


def test_https_through_a_proxy(
    get: Callable[..., Cached],
    secure_server: Misbehaving,
    certificate: Path,
    content: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    secure_server.plan["/w"] = Reply(content)
    with proxy() as (address, asked):
        monkeypatch.setenv("HTTPS_PROXY", address)
        with pytest.raises(WeightsError, match="certificate isn't trusted"):
            get(f"{secure_server.url}/w")
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert get(f"{secure_server.url}/w").path.read_bytes() == content
    assert asked[-1][0] == secure_server.url.removeprefix("https://")


def test_proxy_that_wants_credentials(
    get: Callable[..., Cached], monkeypatch: pytest.MonkeyPatch
) -> None:
    with proxy() as (address, asked):
        monkeypatch.setenv("HTTPS_PROXY", address)
        with pytest.raises(
            WeightsError,
            match=(
                r"https://locked\.example/w: the proxy answers"
                r" 407.*HTTPS_PROXY=http://USER:PASSWORD@HOST:PORT"
            ),
        ):
            get("https://locked.example/w")
    assert len(asked) == 1, "no use in trying again"


def test_cut_in_the_handshake(get: Callable[..., Cached]) -> None:
    """A server that hangs up before TLS begins may be there a moment later."""
    with socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()

        def hang_up() -> None:
            for _ in range(QUICK.tries):
                connection, _ = listening.accept()
                connection.recv(1 << 16)
                connection.close()

        thread = threading.Thread(target=hang_up, daemon=True)
        thread.start()
        url = f"https://127.0.0.1:{listening.getsockname()[1]}/w"
        with pytest.raises(
            WeightsError,
            match=rf"{url}: .*(cut|reset|EOF).*, after {QUICK.tries} tries without progress",
        ):
            get(url)
        thread.join()


def test_proxy_that_isnt_there(get: Callable[..., Cached], monkeypatch: pytest.MonkeyPatch) -> None:
    with misbehaving() as closed:
        address = closed.url
    monkeypatch.setenv("HTTPS_PROXY", address)
    with pytest.raises(
        WeightsError, match=r"https://example\.org/w: the proxy doesn't answer: .*refused"
    ):
        get("https://example.org/w")
