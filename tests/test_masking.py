"""No secret leaves the process as it is, wherever it stands; and nothing else is touched."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path

import pytest
from hydra.types import RunMode
from hypothesis import assume, given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from sr_runner import masking
from sr_runner.config.compose import Masking
from sr_runner.config.schema import as_yaml
from sr_runner.errors import RequestError
from sr_runner.masking import MASK, digested, is_secret, masked, masked_lines, masked_output, masked_text
from sr_runner.tracking import MlflowTracker, RunRecord, sender_process

ROOT = Path(__file__).parents[1]
SECRET = "hunter2/correct+horse"

KEYS = (
    "password", "passwd", "pwd", "passphrase", "secret", "token", "credential", "credentials", "api_key", "apikey",
    "access_key", "account_key", "AccountKey", "private_key", "sas", "sig", "signature", "X-Amz-Signature",
    "X-Amz-Credential", "X-Amz-Security-Token", "X-Goog-Signature", "connection_string", "cookie", "bearer",
    "authorization", "auth", "model.hub_token", "db.password2", "clientSecret", "AWS_SECRET_ACCESS_KEY", "apitoken",
    "sas_url", "userpwd", "pass", "PGPASS", "SSHPASS", "db_pass", "passcode", "creds", "jwt", "signing_key", "psk",
    "otp", "hub_token_v2", "auth_header", "GITHUB_PAT", "encryption_key", "S3_KEY", "APIKey2", "OAuth2Token",
    "api_keys", "proxy-authorization", "session_cookie", "access_token_2", "connStr", "githubToken", "JWT",
)  # fmt: skip
ORDINARY = (
    "tokenizer", "author", "keep_last", "signal", "sigma", "key", "num_tokens", "token_mixer", "keys", "compass",
    "model.num_filters", "passes", "signed", "sass", "authors", "monkey", "keyboard", "assignment", "design",
    "secretary", "num_keys", "tokens", "author_key", "sort_key", "public_key", "params_key", "bypass", "pattern",
    "path", "auth_method", "token_count", "passive", "cookiecutter", "patch", "optimizer", "seasaw", "lowpass", "sign",
)  # fmt: skip

# Where in a text a secret can stand, and which characters it can have there.
WORD = st.text("abcdefghijklmnopqrstuvwxyzABCXYZ0123456789_-.~+/=!$*()@:", min_size=4, max_size=24)
POSITIONS: dict[str, Callable[[str, str], str]] = {
    "an override": lambda key, secret: f"{key}={secret}",
    "a quoted value": lambda key, secret: f"{key}='{secret}' and more",
    "a sentence": lambda key, secret: f"refused: {key}={secret} is not what was expected",
    "an assignment": lambda key, secret: f"{key} = {secret}",
    "a flow mapping": lambda key, secret: f"options={{anon: true, {key}: '{secret}', nested: {{{key}: {secret}}}}}",
    "JSON": lambda key, secret: json.dumps({"a": 1, key: secret, "b": [{key: secret}]}),
    "a dictionary": lambda key, secret: f"failed with { ({'a': 1, key: secret})!r} at last",
    "YAML": lambda key, secret: f"store:\n  {key}: {secret}\n  other: 1\n  list:\n  - {key}: {secret}\n",
    "a connection string": lambda key, secret: f"Protocol=https;AccountName=me;{key}={secret}",
    "a query": lambda key, secret: f"GET https://host/file?a=b&{key}={secret}&c=d failed",
    "JSON in JSON": lambda key, secret: json.dumps(
        {"a": json.dumps({"b": json.dumps({"c": 1, key: secret}, indent=1)})}
    ),
    "a variable": lambda key, secret: f"env {key.upper().replace('.', '_')}={secret} sr-run",
    "an argument": lambda key, secret: f"['sr-run', '--{key}={secret}', '-m']",
    "a header": lambda key, secret: f"> X-{re.sub('[_.]', '-', key)}: {secret}",
    "TOML": lambda key, secret: f'"{key}" = "{secret}"\nother = 1',
    "an option": lambda key, secret: f"ran their-tool --{key} {secret}/0 --steps 3",
    "a list of words": lambda key, secret: repr(["their-tool", f"--{key}", secret, "--steps"]),
    "an annotated variable": lambda key, secret: f"{key}: str | None = '{secret}'",
    "an item": lambda key, secret: f'os.environ["{key}"] = "{secret}"',
    "text over lines": lambda key, secret: f'{key} = """\n{secret}\n"""\nother = 1',
    "argparse": lambda key, secret: f'parser.add_argument("--{key}", type=str, default="{secret}")',
    "a call": lambda key, secret: f"client.set_{key}('{secret}', 3)",
    "XML": lambda key, secret: f"<a><{key}>{secret}</{key}></a>",
    "netrc": lambda key, secret: f"machine h login me password {secret}",
    "a Dockerfile": lambda key, secret: f"ENV {re.sub('[.-]', '_', key).upper()} {secret}\n",
    "curl": lambda key, secret: f"curl -u me:{secret}x https://host",
    "a host": lambda key, secret: f"at me:{re.sub('[/@:]', '', secret)}x@host:5432/db",
    "a host without a port": lambda key, secret: f"at me:{re.sub('[/@:]', '', secret)}0@host/db",
    "an assignment of Go": lambda key, secret: f"{key} := '{secret}'",
    "a default": lambda key, secret: f'os.environ.setdefault("{key}", "{secret}")',
    "Kubernetes": lambda key, secret: f"  - name: {key}\n    value: {secret}\n",
    "a list of variables": lambda key, secret: json.dumps([{"name": key, "value": secret}]),
    "attributes of XML": lambda key, secret: f'<add key="{key}" value="{secret}"/>',
    "setx": lambda key, secret: f"setx {re.sub('[.-]', '_', key).upper()} {secret}",
    "a line of JSON": lambda key, secret: f'  "a": 1,\n  "{key}": "{secret}",\n  "b": 2',
    "properties": lambda key, secret: f"{key}:{secret}{'x' * 16}",
    "properties with spaces": lambda key, secret: f"{key} : {secret}{'x' * 16}",
    "in brackets": lambda key, secret: f'{key} = (\n    "{secret}"\n)',
    "two words": lambda key, secret: f'{key}=("me", "{secret}")',
    "a login": lambda key, secret: f'login("{secret}")',
    "user info": lambda key, secret: f"(url 'http://me:{secret.replace('/', '')}x@host:5000/path')",
}


@pytest.fixture(autouse=True)
def nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masking, "_known", frozenset())


def test_a_secret_key_is_known() -> None:
    assert not [key for key in KEYS if not (is_secret(key) and is_secret(f"group.{key}"))]


@pytest.mark.parametrize("key", ORDINARY)
def test_an_ordinary_key_is_left_alone(key: str) -> None:
    assert not is_secret(key)
    assert masked({key: "value"}) == {key: "value"} and masked(f"{key}=value") == f"{key}=value"
    assert masked_text(f"{key}=value, {{{key}: value}}") == f"{key}=value, {{{key}: value}}"


@pytest.mark.parametrize("place", POSITIONS)
def test_a_secret_is_masked_under_every_key_in_every_place(place: str) -> None:
    for key in KEYS:
        shown = masked_text(POSITIONS[place](key, SECRET))
        assert MASK in shown and "hunter2" not in shown and "horse" not in shown, (key, shown)


@given(place=st.sampled_from(sorted(POSITIONS)), key=st.sampled_from(KEYS), secret=WORD)
def test_any_secret_is_masked(place: str, key: str, secret: str) -> None:
    text = POSITIONS[place](key, secret)
    assume(secret not in POSITIONS[place](key, "#") and secret.lower() not in ("true", "false", "null", "none"))
    assume(not (place in ("XML", "a call") and secret.isalpha()))  # a word, as in get_token("start")
    assume(not masking._NO_SECRET.fullmatch(secret.lstrip("=:")))  # `password =000` gives a small number
    assume(MASK not in secret and secret not in MASK and not (place == "an option" and secret.startswith("-")))
    assert secret not in masked_text(text).replace(MASK, "")


@given(
    st.lists(
        st.sampled_from(["token", "a", ":", " ", "\n", "'", '"', "=", "{", "}", "|", "1", "Cookie: ", "x-key"])
    ).map("".join)
)
def test_masks_by_the_line_keep_the_number_of_lines(text: str) -> None:
    assert masked_lines(text).count("\n") == text.count("\n")


@pytest.mark.parametrize(
    "code",
    [
        "self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))", "log_model(model, signature=signature, example=x)",
        "token = os.environ['HF_TOKEN']", "sig = signal.SIGTERM", "pat = re.compile('a+')", "{token: count}",
        "def load(path, token=None, *, auth: Auth = DEFAULT):", "credentials = load_credentials(path)",
    ],
)  # fmt: skip
def test_code_that_names_no_secret_is_left_alone(code: str) -> None:
    assert masked_lines(f"def f():\n    {code}\n", is_code=True) == f"def f():\n    {code}\n"


@pytest.mark.parametrize(
    "code",
    [
        "token = 'S3CRET-1'", "token: str = 'S3CRET-1'", "connect(password=f'S3CRET-1')", '{"token": "S3CRET-1"}',
        'os.environ["HF_TOKEN"] = "S3CRET-1"', "SECRET = \"\"\"\n  S3CRET-1\n\"\"\"", "open('http://me:S3CRET-1@host/x')",
        "set_password('S3CRET-1')", 'add("--token", default="S3CRET-1")',
        "call('Authorization: Bearer S3CRET-1-abcdef')", "get(url, auth=('me', 'S3CRET-1'))", "API_KEYS = ['S3CRET-1']",
        "TOKEN = (\n    'S3CRET-1'\n)", "PASSWORDS = {'me': 'S3CRET-1'}", '  "token": "S3CRET-1",',
        'os.environ.setdefault("HF_TOKEN", "S3CRET-1")',
    ],
)  # fmt: skip
def test_a_text_in_code_is_masked_under_a_secret_key(code: str) -> None:
    shown = masked_lines(code, is_code=True)
    assert "S3CRET" not in shown and MASK in shown and shown.count("\n") == code.count("\n")


AWKWARD = st.lists(st.sampled_from(["'", '"', "\\", " ", ",", ";", ":", "{", "}", "[", "=", "@", "&", "\n", "é"])).map(
    "".join
)


@given(
    place=st.sampled_from(["JSON", "JSON in JSON", "a dictionary"]), key=st.sampled_from(KEYS), parts=st.lists(AWKWARD)
)
def test_quoted_secrets_may_hold_any_character(place: str, key: str, parts: list[str]) -> None:
    assert "hUnTeR" not in masked_text(POSITIONS[place](key, "hUnTeR" + "hUnTeR".join(["", *parts, ""])))


@given(
    separators=st.one_of(st.lists(st.sampled_from(" @'\":=")), st.lists(st.sampled_from("/@'\":=?#&"))),
    where=st.sampled_from(["http://me:{}@host/x", "(url 'postgresql+x://me:{}@host:5/x') again", '"s3://me:{}@host"']),
)
def test_a_password_in_a_url_may_hold_quotes_spaces_and_slashes(separators: list[str], where: str) -> None:
    shown = masked_text(where.format("hUnTeR" + "hUnTeR".join(["", *separators, ""])))
    assert "hUnTeR" not in shown and shown.count("host") == 1


@pytest.mark.parametrize(
    "secret",
    [
        f"ghp_{'a1' * 18}", f"gho_{'a1' * 18}", f"github_pat_{'a1B_' * 20}", f"glpat-{'a-1_' * 5}", f"hf_{'aB' * 17}",
        "AKIA" + "A1" * 8, "ASIA" + "A1" * 8, f"AIza{'a-1' * 12}", "xoxb-1234-5678-abcdef", f"sk-{'a1' * 24}",
        f"sk-proj-{'a_1' * 20}", f"sk_live_{'a1' * 12}", f"npm_{'a1' * 18}", f"pypi-{'a-1' * 20}",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk",
        "-----BEGIN PRIVATE KEY-----\nMIIE\nvQ==\n-----END PRIVATE KEY-----",
        "-----BEGIN OPENSSH PRIVATE KEY-----\\nb3Bl\\n-----END OPENSSH PRIVATE KEY-----",
    ],
)  # fmt: skip
def test_what_its_issuer_marks_as_a_secret_is_masked_wherever_it_stands(secret: str) -> None:
    assert masked_text(f"refused <{secret}>, x={secret} {{'a': '{secret}'}}").count(secret[:9]) == 0
    assert masked({"plain": [secret]}) == {"plain": [MASK]}


SLOW = (
    "://a:@",
    "token=",
    "token=*****;",
    "a-b:",
    "-eyJ",
    " token:\n",
    "\\",
    "cookie: a=1;",
    "://u:p@ ",
    "'",
    "--token ",
    "--token '",
    "%3a%2f%2f",
    " token:\n\n",
    "token:\n\n",
    "token: |\n",
    'token="""',
    "token('",
    "<token>",
    "ENV TOKEN ",
    "login a ",
    "a:b@",
    "curl -u a:",
    "token: a",
    '--token",',
    "token:\n a: ",
    "name: token value: ",
    '("token", "',
    "signature: a(",
    "login('",
    "token=('",
    "token :",
    ' "token": ',
    "token=a(",
)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "junk", ["token={", "://a:", '{token:\\"', *(pytest.param(junk, marks=pytest.mark.slow) for junk in SLOW)]
)
def test_the_time_is_linear_in_the_length_of_hostile_text(junk: str) -> None:
    """One that is quadratic does not end within the time limit."""
    masked_text(junk * (1_000_000 // len(junk)))


@pytest.mark.parametrize("path", sorted([*ROOT.glob("docs/*.md"), *ROOT.glob("*.md")]), ids=lambda path: path.name)
def test_our_own_prose_is_left_alone(path: Path) -> None:
    prose = path.read_text().replace("//user:password@", "//")
    assert masked_text(prose).splitlines() == prose.splitlines()


PROSE = [
    *ORDINARY, "password", "token", "/etc/passwd", "the secret", "no", "such:", "a=b", "http://host:5000/a@b", "run:",
    "sqlite:////x/mlflow.db", "(1.5 s)", "me@host.org", "s3://bucket/x", "edsr-x4-3f9a12c40b1e/a0001-99aa", "50%,",
    "'quoted'", "bearer of", "/home/u/secrets=1/x:", "secretary:", "(auth=none,", "tokens per second: 5", "num_keys=3",
    "monkey:", "tokenizer=bpe", "hf_hub_download", "sk-learn", "git@github.com:a/b", "https://host/@scope",
    "(auth=null)",
]  # fmt: skip


@given(st.lists(st.sampled_from(PROSE)))
def test_prose_is_left_alone(words: list[str]) -> None:
    prose = "It said " + " ".join(words)
    assert masked_text(prose) == prose


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/etc/passwd: no such run", "/etc/passwd: no such run"),
        ("token: expected a string", "token: expected a string"),
        ("model.password: there is no key model.password", "model.password: there is no key model.password"),
        ("if token == 3: x != y", "if token == 3: x != y"),
        ("password=${oc.env:DB_PASSWORD} auth=true token=null", "password=${oc.env:DB_PASSWORD} auth=true token=null"),
        ("http://u:p@S3CRET@h/x", "http://*****@h/x"),
        ("http://u:p/w@h/x", "http://*****@h/x"),
        ("https://token@host", "https://*****@host"),
        ("postgresql+psycopg2://u:p%40q@db/mlflow", "postgresql+psycopg2://*****@db/mlflow"),
        ("failed: (url 'http://a:b@h/') again", "failed: (url 'http://*****@h/') again"),
        ("postgresql://db/x?user=u&password=p&sslmode=on", "postgresql://db/x?user=u&password=*****&sslmode=on"),
        ("http://host:5000/a@b and mail@example.org", "http://host:5000/a@b and mail@example.org"),
        ("https://maps/x?key=AIzaSy&b=1", "https://maps/x?key=*****&b=1"),
        ("https://f/x?a=1&code=AIzaSy&b=1 error code=5", "https://f/x?a=1&code=*****&b=1 error code=5"),
        ("x?odbc_connect=DRIVER%3Dx%3BPWD%3Dhunter2%3B&y=1", "x?odbc_connect=DRIVER%3Dx%3BPWD%3D*****&y=1"),
        ("{'Authorization': 'Bearer abc.def'}", "{'Authorization': *****}"),
        ("sent Authorization: Basic dXNlcjpw", "sent Authorization: Basic *****"),
        ("  auth:\n    user: me\n    phrase: a b\n  steps: 3", "  auth: *****\n  steps: 3"),
        ("  - auth:\n      user: me\n    steps: 3\n  - 4", "  - auth: *****\n    steps: 3\n  - 4"),
        ("Cookie: a=1; b=2; c", "Cookie: *****"),
        ("-H 'cookie: a=1; b=2' -x", "-H 'cookie: *****' -x"),
        ("X-API-Key: v", "X-API-Key: *****"),
        ("http://u:p@S3 CRET@h/x", "http://*****@h/x"),
        ("http://u:#S3CRET@h/x", "http://*****@h/x"),
        ("http://u:/S3CRET@h/x", "http://*****@h/x"),
        ('"http:\\/\\/u:S3CRET@h\\/x"', '"http:\\/\\/*****@h\\/x"'),
        ("?next=http%3A%2F%2Fu%3AS3CRET%40h%2Fx&a=b", "?next=http%3A%2F%2F*****%40h%2Fx&a=b"),
        ("  token: |\n    one\n\n    two\n\n  steps: 3", "  token: *****\n\n  steps: 3"),
        ("token: |\n  one\n\n  two\nsteps: 3", "token: *****\nsteps: 3"),
        ("auth:\n  user: me\n  phrase: a b\nsteps: 3", "auth: *****\nsteps: 3"),
        ("token:\nsteps: 3", "token:\nsteps: 3"),
        ("Password:\n\n  what opens it", "Password:\n\n  what opens it"),
        ("pat=1, 12 cookies: 12; otp: 1", "pat=1, 12 cookies: 12; otp: 1"),
        ("with --token and --password the tool", "with --token and --password the tool"),
        ("expected --token, or --api-key.", "expected --token, or --api-key."),
        ("repo:tag@sha256:4f62e9ef and 10:30@host:80", "repo:tag@sha256:4f62e9ef and 10:30@host:80"),
        ("docker run -u 1000:1000 x", "docker run -u 1000:1000 x"),
        ("lr:1e-3@step:100, rsync a:b@c:22", "lr:1e-3@step:100, rsync a:b@c:22"),
        ("get_token('bos') <token>EOS</token> ARG pass word", "get_token('bos') <token>EOS</token> ARG pass word"),
        ("is_secret(key), password(length)", "is_secret(key), password(length)"),
        ("auth={a: {b: [1]}, c: x} y", "auth=***** y"),
        ("log(signature=infer(x, y), a=1)", "log(signature=infer(x, y), a=1)"),
        ("signature:\n  inputs: x\nrun: 1", "signature:\n  inputs: x\nrun: 1"),
        ("[--token TOKEN] [--api-key API_KEY]", "[--token TOKEN] [--api-key API_KEY]"),
        ("name: TOKEN, and the value: 3", "name: TOKEN, and the value: 3"),
        ("login(user)", "login(user)"),
        ("ssh://git@github.com/a/b and me:staff@host/path", "ssh://git@github.com/a/b and me:staff@host/path"),
        ("- token: a b\n  steps: 3\n- steps: 4", "- token: *****\n  steps: 3\n- steps: 4"),
    ],
)
def test_text(text: str, shown: str) -> None:
    assert masked_text(text).replace("auth:*****", "auth: *****") == shown
    assert masked_text(masked_text(text)) == masked_text(text)


def test_all_below_a_secret_key_is_masked_and_nothing_that_gives_none_away() -> None:
    tree = {"auth": {"user": "me", "on": True, "list": [1234, 1, None]}, "token": "${oc.env:TOKEN}", "secret": ""}
    hidden = {"auth": {"user": MASK, "on": True, "list": [MASK, 1, None]}, "token": "${oc.env:TOKEN}", "secret": ""}
    assert masked(tree) == hidden


def test_the_word_behind_an_option_is_masked_in_a_list() -> None:
    assert masked({"argv": ["--token", SECRET, "--steps", "3"]}) == {"argv": ["--token", MASK, "--steps", "3"]}
    assert masked_text(f"<{SECRET}>") == f"<{MASK}>"


def test_an_override_is_masked_to_its_end() -> None:
    assert masked("model.password=three words, all") == f"model.password={MASK}"
    assert masked("model.a=1") == "model.a=1" and masked("-m") == "-m"


@pytest.mark.parametrize(
    "tree",
    [{"model": {"token": SECRET}}, {"uri": f"http://me:{SECRET.replace('/', '%2F')}@host"}, {"u": f"/x?sig={SECRET}"}],
)
def test_what_was_seen_as_a_secret_is_masked_wherever_it_turns_up(tree: dict[str, object]) -> None:
    masked(tree)
    assert masked_text(f"<{SECRET}> was refused") == f"<{MASK}> was refused"
    assert masked({"plain": [f"x{SECRET}y"]}) == {"plain": [f"x{MASK}y"]}
    assert SECRET not in masked_text(json.dumps(SECRET)) + masked_text(repr(SECRET))


def test_short_values_plain_words_and_files_are_not_searched_for(tmp_path: Path) -> None:
    masked({"token": "mean", "password": "12345", "auth": "digestion", "credentials": str(tmp_path)})
    text = f"the mean of 12345 in {tmp_path}, for better digestion"
    assert masked_text(text) == text


def test_a_secret_stands_in_facts_as_its_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"model.password": SECRET, "model.size": 3, "data.url": f"http://me:{SECRET}@host/x?sig={SECRET}"}
    shown = digested(facts)
    assert SECRET not in json.dumps(shown) and "hunter2" not in json.dumps(shown)
    assert shown["model.size"] == 3 and shown["data.url"].endswith(shown["data.url"].partition("?sig=")[2])
    assert digested(facts) == shown and digested({**facts, "model.password": "another"}) != shown
    masking.learn({"token": SECRET})
    assert digested(facts) == shown, "what was seen before changes an identity"
    monkeypatch.setenv("SOME_TOKEN", "sesame-open-1")
    assert "sesame" not in str(digested({"model.path": "sesame-open-1"}))


@pytest.fixture
def restored_logging() -> Iterator[None]:
    factory, hook = logging.getLogRecordFactory(), sys.excepthook
    yield
    logging.setLogRecordFactory(factory)
    sys.excepthook = hook


@pytest.mark.usefixtures("restored_logging")
def test_what_is_printed_or_logged_by_anyone_is_masked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THEIR_API_KEY", SECRET)
    log, stream = logging.getLogger("somebody.else"), StringIO()
    handler = logging.StreamHandler(stream)
    log.addHandler(handler)
    with masked_output():
        print(f"password={SECRET}")
        print(SECRET, file=sys.stderr)
        log.warning("failed: %s", {"token": SECRET})
        try:
            raise ValueError(f"cannot open {SECRET}")
        except ValueError:
            log.exception("it failed")
            sys.excepthook(*sys.exc_info())
    log.removeHandler(handler)
    printed = capsys.readouterr()
    assert SECRET not in printed.out + printed.err + stream.getvalue()
    assert "password=" in printed.out and printed.err.count("ValueError: cannot open") >= 1
    assert stream.getvalue().count("ValueError: cannot open") == 1


def test_configs_are_written_without_secrets(tmp_path: Path) -> None:
    config = OmegaConf.create(
        {"model": {"password": "two words", "url": f"http://me:{SECRET}@h"}, "same": "${model.url}"}
    )
    (tmp_path / "0" / ".hydra").mkdir(parents=True)
    records = [tmp_path / "multirun.yaml", tmp_path / "0" / ".hydra" / "config.yaml"]
    for record in records:
        record.write_text(OmegaConf.to_yaml(config))
    hydra = {"mode": RunMode.MULTIRUN, "sweep": {"dir": str(tmp_path)}, "output_subdir": ".hydra"}
    hydra |= {"runtime": {"output_dir": str(tmp_path / "0")}}
    Masking().on_job_start(config=OmegaConf.merge(config, {"hydra": hydra}))
    for text in (as_yaml(config), *(record.read_text() for record in records)):
        assert MASK in text and SECRET not in text and "two words" not in text
        assert OmegaConf.create(text).keys() == config.keys()


def test_the_tracker_writes_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender_process, "sender_command", lambda *_: ["/nobody"])
    uri = f"http://me:{SECRET}@host?api_key={SECRET}"
    for key in ("experiment", "run_name"):
        with pytest.raises(RequestError, match=rf"^tracker.{key}=token=\*\*\*\*\*: expected a name without a secret"):
            MlflowTracker(outputs=tmp_path, **{key: f"token={SECRET}"})
    tracker = MlflowTracker(uri=uri, outputs=tmp_path)
    record = RunRecord(
        run_dir=tmp_path / "run", attempt="a/1", run_name=f"token={SECRET}",
        params={"model.token": SECRET, "b": f"api_key={SECRET}"},
        tags={"cookie": SECRET}, dataset={"name": "x", "source": f"http://me:{SECRET}@host", "digest": "0"},
    )  # fmt: skip
    tracker.start(record)
    state = json.dumps(tracker.state())
    tracker.finish("FAILED", {"sr_run.error": f"token={SECRET}"}, wait=0)
    written = "".join(path.read_text() for path in (tmp_path / "run").iterdir())
    assert '"event": "finish"' in written and SECRET not in written + state + str(tracker.ui_hint())


def test_the_command_line_of_the_sender_holds_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def start(command: list[str], **others: object) -> None:
        started.append(command)
        raise OSError

    monkeypatch.setattr(sender_process.subprocess, "Popen", start)
    tracker = MlflowTracker(uri=f"http://me:{SECRET}@host", outputs=tmp_path)
    tracker.start(RunRecord(run_dir=tmp_path / "run", attempt="a/1", run_name="a", params={}))
    assert started and SECRET not in str(started)
