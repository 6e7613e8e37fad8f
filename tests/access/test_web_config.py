"""The web configuration file, as exporters read it and as the agent does."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from resmon.access.tls import CIPHERS, CIPHERS_13, CLIENTS, CURVES, VERSIONS
from resmon.access.web_config import HEADERS, Rate, load
from resmon.errors import ConfigurationError
from tests.certificates import Authority
from tests.programs import program

HASH = "$2y$10$mDwo.lAisC94iLAyP81MCesa29IzH37oigHC/42V2pdJlUprsJPze"
FILES = "tls_server_config:\n  cert_file: server.pem\n  key_file: server.key\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    authority = Authority(tmp_path_factory.mktemp("web"))
    authority.sign("server", "IP:127.0.0.1")
    authority.sign("other", "IP:127.0.0.1")
    return authority.folder


def written(folder: Path, text: str) -> Path:
    path = folder / "web.yml"
    path.write_text(text)
    return path


def promtool_takes(path: Path) -> bool:
    result = subprocess.run([program("promtool"), "check", "web-config", str(path)], capture_output=True, timeout=30, check=False)
    return result.returncode == 0


# What both take. Paths are relative to the file.
GOOD = [
    FILES,
    FILES + "  min_version: TLS13\n",
    FILES
    + "  max_version: TLS12\n  cipher_suites: [TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256]\n  prefer_server_cipher_suites: false\n",
    FILES + "  curve_preferences: [CurveP384]\n",
    FILES + "  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: ca.pem\n",
    FILES + "  client_auth_type: VerifyClientCertIfGiven\n  client_ca_file: ca.pem\n",
    f"basic_auth_users:\n  alice: {HASH}\n  bob: {HASH}\n",
    "http_server_config:\n  http2: false\n  headers:\n    Strict-Transport-Security: max-age=31536000\n    X-Frame-Options: deny\n",
    "http_server_config: {http2: true}\n",
]
# What neither takes, and what is said of it here.
BAD = [
    ("tls_server_config:\n  cert_file: server.pem\n", ["line 1, tls_server_config: lacks key_file"]),
    (
        "tls_server_config:\n  cert_file: none.pem\n  key_file: server.key\n",
        ["line 2, tls_server_config.cert_file: ", "cannot be read: No such"],
    ),
    ("tls_server_config:\n  cert_file: server.pem\n  key_file: other.key\n", ["line 2, ", "do not fit together"]),
    ("tls_server_config:\n  cert_file: server.key\n  key_file: server.key\n", ["line 2, ", "not in PEM form"]),
    (FILES + "  client_auth_type: Whoever\n", ["line 4, ", "'Whoever' is not known; there are NoClientCert"]),
    (FILES + "  client_ca_file: ca.pem\n", ["line 4, ", "of no use without client_auth_type: RequireAndVerifyClientCert"]),
    (
        FILES + "  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: none.pem\n",
        ["line 5, ", "none.pem cannot be read"],
    ),
    (FILES + "  min_version: TLS14\n", ["line 4, ", "must be TLS12 or TLS13 (got 'TLS14')"]),
    (FILES + "  cipher_suites: [TLS_NULL]\n", ["line 4, ", "is no cipher suite of Go's"]),
    (FILES + "  curve_preferences: [P256]\n", ["line 4, ", "'P256' is not known; the nearest is CurveP256"]),
    (FILES + "  certfile: x\n", ["line 4, tls_server_config.certfile: there is no such key; the nearest is cert_file"]),
    ("basic_auth_users: {alice: secret}\n", ["line 1, basic_auth_users.alice: must be a bcrypt hash"]),
    ("basic_auth: {alice: secret}\n", ["line 1, basic_auth: there is no such key; the nearest is basic_auth_users"]),
    ("http_server_config: {headers: {X-Powered-By: me}}\n", ["line 1, ", "there is no such key; "]),
    ("http_server_config: {headers: {X-Frame-Options: never}}\n", ["must be deny or sameorigin (got 'never')"]),
    ("a: {b\n", ["is no YAML"]),
]
# What exporters take and would weaken the agent, or cannot be had as it is written.
STRICTER = [
    (FILES + "  client_auth_type: RequireAnyClientCert\n", "lets in whoever shows any certificate at all"),
    (FILES + "  client_auth_type: RequestClientCert\n", "lets in whoever shows any certificate at all"),
    (FILES + "  client_auth_type: RequireAndVerifyClientCert\n", "needs client_ca_file"),
    (FILES + "  min_version: TLS10\n", "versions before 1.2 are broken"),
    (FILES + "  curve_preferences: [X25519, CurveP256]\n", "can hold one here"),
    (f"basic_auth_users: {{alice: {HASH.replace('10', '16')}}}\n", "has a cost of 16; take one from 10 to 15"),
]


@pytest.mark.parametrize("text", GOOD)
def test_what_exporters_take(text: str, folder: Path) -> None:
    path = written(folder, text)
    load(path)
    assert promtool_takes(path)


@pytest.mark.parametrize(("text", "said"), BAD, ids=range(len(BAD)))
def test_what_exporters_refuse(text: str, said: list[str], folder: Path) -> None:
    path = written(folder, text)
    with pytest.raises(ConfigurationError) as refused:
        load(path)
    assert all(each in str(refused.value) for each in said), str(refused.value)
    assert "secret" not in str(refused.value)  # it may be somebody's password
    assert not promtool_takes(path)


@pytest.mark.parametrize(("text", "said"), STRICTER, ids=range(len(STRICTER)))
def test_what_would_let_in_too_many_is_refused_here(text: str, said: str, folder: Path) -> None:
    path = written(folder, text)
    with pytest.raises(ConfigurationError, match=said):
        load(path)
    assert promtool_takes(path)


# Newer than the exporters that are installed here.
@pytest.mark.parametrize(
    ("text", "said"),
    [
        (FILES + "  client_allowed_sans: [box]\n", "needs client_auth_type: RequireAndVerifyClientCert"),
        (FILES + "  cert: |\n    x\n", "cert_file: stands beside cert"),
        (FILES + "  min_version: TLS13\n  max_version: TLS12\n", "min_version: is above max_version"),
        (FILES + "  cipher_suites: [TLS_RSA_WITH_AES_128_CBC_SHA]\n", "has no forward secrecy"),
        ("rate_limit: {interval: soon, burst: 3}\n", "must be a duration such as 100ms"),
        ("rate_limit: {interval: 1s}\n", "must be a number of requests"),
        ("rate_limit: {interval: 1s, burst: 0}\n", "with 0 none is answered"),
        (f"basic_auth_users: {{'a:b': {HASH}}}\n", "a name holds no colon"),
        ("basic_auth_users: [alice]\n", "must hold keys with values"),
        (f"basic_auth_users: {{alice: {HASH.replace('2y', '2x')}}}\n", "must be a bcrypt hash"),
        ('http_server_config: {headers: {Content-Security-Policy: "a\\r\\nb: c"}}\n', "must be one line of plain characters"),
        ("http_server_config: {http2: 1}\n", "must be true or false"),
        ('tls_server_config: {cert_file: [a], key_file: "a\\0b"}\n', "must be a text(?s:.*)no null character"),
        ("a: 1\n---\nb: 2\n", "holds 2 documents"),
        ("", "is empty"),
    ],
)
def test_what_else_is_refused(text: str, said: str, folder: Path) -> None:
    with pytest.raises(ConfigurationError, match=said):
        load(written(folder, text))


def test_everything_wrong_is_named_at_once(folder: Path) -> None:
    text = "tls_server_config:\n  cert_file: x\n  key_fil: y\n  min_version: 3\nbasic_auth_users:\n  a: b\n"
    text += "rate_limit: {interval: 1, burst: x}\n"
    with pytest.raises(ConfigurationError) as refused:
        load(written(folder, text))
    lines = str(refused.value).splitlines()[1:]
    assert [line.partition("line ")[2].partition(",")[0] for line in lines] == ["1", "3", "4", "6", "7", "7"]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"none\.yml cannot be read: No such file"):
        load(tmp_path / "none.yml")


def test_what_a_file_says(folder: Path) -> None:
    text = (
        FILES
        + f"  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: ca.pem\n  client_allowed_sans: [box, '::0001']\n"
        f"  min_version: TLS13\nbasic_auth_users: {{alice: {HASH}}}\nrate_limit: {{interval: 1m0.5s, burst: 3}}\n"
        "http_server_config: {http2: true, headers: {X-XSS-Protection: '1', Content-Security-Policy: ''}}\n"
    )
    config = load(written(folder, text))
    assert config.context is not None
    assert config.context.minimum_version == ssl.TLSVersion.TLSv1_3
    assert config.context.verify_mode == ssl.CERT_REQUIRED
    assert config.tls is not None
    assert config.tls.allowed_names == {"box", "::1"}
    assert config.users == {"alice": HASH}
    assert config.rate == Rate(60.5, 3)
    assert config.headers == {"X-XSS-Protection": "1"}  # what is blank leaves ours
    assert config.notes == (f"{folder / 'web.yml'}: http2 is true, but HTTP/1.1 is all that is spoken here",)
    assert set(config.signatures) == {folder / name for name in ("web.yml", "server.pem", "server.key", "ca.pem")}
    assert HASH not in repr(config)


def test_a_certificate_may_stand_in_the_file_itself(folder: Path) -> None:
    def block(name: str) -> str:
        return "|\n" + "".join(f"    {line}\n" for line in (folder / name).read_text().splitlines())

    text = f"tls_server_config:\n  cert: {block('server.pem')}  key: {block('server.key')}"
    config = load(written(folder, text))
    assert config.context is not None
    assert "PRIVATE" not in repr(config)


def test_every_name_of_the_format_means_something_here(folder: Path) -> None:
    for suite in (*CIPHERS, *CIPHERS_13):
        config = load(written(folder, f"{FILES}  cipher_suites: [{suite}]\n"))
        assert config.context is not None
        old = {each["name"] for each in config.context.get_ciphers() if each["protocol"] != "TLSv1.3"}
        assert old == ({CIPHERS[suite]} if suite in CIPHERS else old)
        assert (config.context.minimum_version == ssl.TLSVersion.TLSv1_3) == (suite in CIPHERS_13)
    for curve in CURVES:
        load(written(folder, f"{FILES}  curve_preferences: [{curve}]\n"))
    assert set(VERSIONS) == {"TLS12", "TLS13"}
    assert set(CLIENTS) == {"NoClientCert", "VerifyClientCertIfGiven", "RequireAndVerifyClientCert"}
    assert len(HEADERS) == 5


TEXTS = st.text(max_size=30) | st.sampled_from(["server.pem", "server.key", "TLS12", HASH, "1s", "3", "true", "ca.pem"])
KEYS = st.sampled_from(
    "cert key client_ca cert_file key_file client_auth_type client_ca_file client_allowed_sans min_version cipher_suites http2 "
    "headers interval burst alice X-Frame-Options".split()
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
)
SECTIONS = st.sampled_from(["tls_server_config", "http_server_config", "basic_auth_users", "rate_limit", "other"])


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(content=st.dictionaries(SECTIONS, VALUES, max_size=4))
def test_whatever_stands_there_is_taken_or_refused(content: dict[str, object], folder: Path) -> None:
    import yaml

    path = folder / "any.yml"
    path.write_text(yaml.safe_dump(content, allow_unicode=True))
    try:
        load(path)
    except ConfigurationError as error:
        assert str(path) in str(error)  # noqa: PT017, it may also be right
