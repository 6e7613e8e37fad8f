"""Settings come from four places and are looked at as a whole: each from the strongest place, everything wrong at once."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import random
import re
import shlex
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import resmon
from resmon.errors import ConfigurationError
from resmon.monitor.tuning import resolved as resolved_by_watch
from resmon.settings import Resolved, Settings, resolve
from resmon.settings.origins import KUBERNETES, VARIABLES, Origin

PACKAGE = Path(resmon.__file__).parent

WORD = st.from_regex(r"[A-Za-z0-9_.*-][A-Za-z0-9_.* '\"\\-]{0,8}[A-Za-z0-9_.*-]", fullmatch=True)
LIST = st.lists(WORD, max_size=3).map(tuple)
# Right values of every setting.
RIGHT: dict[str, st.SearchStrategy[Any]] = {
    "run": WORD,
    "model_name": WORD,
    "directory": WORD,
    "listen": st.builds("{}:{}".format, st.sampled_from(["127.0.0.1", "[::1]", "host"]), st.integers(0, 65535)),
    "web_config": WORD,
    "served_names": st.lists(st.sampled_from(["resmon.example.com", "box", "a_b-c.d"]), max_size=3).map(tuple),
    "agent": st.sampled_from(["auto", "sidecar", "off"]),
    "start_step": st.integers(0, 1 << 53),
    "include": LIST,
    "exclude": LIST,
    "budget": st.integers(2 << 20, 1 << 60),
    "other_ranks": st.sampled_from(["same", "own"]),
    "on_nonfinite": st.sampled_from(["record", "skip_step", "raise"]),
    "sample": st.integers(16, 8192),
    "max_series": st.integers(100, 1 << 40),
    "targets": st.lists(
        st.builds("{}{}{}".format, st.sampled_from(["accuracy", "val/loss 2"]), st.sampled_from([">=", " <= "]), st.floats(-9, 9)),
        max_size=3,
    ).map(tuple),
    "stall_after": st.floats(0, 1e9),
    "on_incident": LIST,
    "on_incident_timeout": st.floats(0.001, 1e9),
    "detectors": st.dictionaries(
        st.sampled_from(["dead_branch", "loss_divergence"]),
        st.dictionaries(st.just("ratio"), st.floats(1e-9, 1))
        | st.fixed_dictionaries({"sites": st.dictionaries(WORD, st.just({}))}),
        max_size=2,
    ),
    "alertmanager": st.lists(
        st.builds(
            "{}://{}:{}{}".format,
            st.sampled_from(["http", "https"]),
            st.sampled_from(["127.0.0.1", "[::1]", "host"]),
            st.integers(1, 65535),
            st.sampled_from(["", "/alertmanager"]),
        ),
        max_size=2,
    ).map(tuple),
    "otlp": st.sampled_from(["http://127.0.0.1:4318", "https://collector.example/prefix", "environment"]),
    "otlp_interval": st.floats(1, 1e9),
    "opentelemetry": st.booleans(),
    "prometheus": st.sampled_from(["http://127.0.0.1:9090", "https://prometheus.example/prefix"]),
    "own_detectors": st.lists(st.sampled_from(["mine:Loud", "a.b_2.c:D"]), max_size=2).map(tuple),
}
PATHS = ("directory", "web_config")
# A wrong value, as text, of every setting for which a text can be wrong.
WRONG = {
    "run": "",
    "listen": "localhost",
    "served_names": "http://resmon.example.com",
    "agent": "of",
    "start_step": "-1",
    "budget": "512 MiB",
    "other_ranks": "both",
    "on_nonfinite": "ignore",
    "sample": "15",
    "max_series": "99",
    "targets": "accuracy",
    "stall_after": "-1",
    "on_incident": "echo 'without end",
    "on_incident_timeout": "0",
    "detectors": "[1]",
    "alertmanager": "http://host:9093,https://me:secret@host",
    "otlp": "collector:4318",
    "otlp_interval": "0.5",
    "opentelemetry": "perhaps",
    "prometheus": "host:9090",
    "own_detectors": "mine.Loud",
}
# From the weakest to the strongest.
PLACES = ("file", "environment", "argument")

Written = dict[str, dict[str, Any]]  # place -> setting -> value


def written(values: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[Written]:
    return st.fixed_dictionaries(dict.fromkeys(PLACES, values))


@contextlib.contextmanager
def folder(toml: str | bytes | None = None, **environment: str) -> Iterator[Path]:
    """In a folder of one's own, with that resmon.toml and none but these RESMON_* variables."""
    others = {name: value for name, value in os.environ.items() if not name.upper().startswith("RESMON_")}
    with (
        tempfile.TemporaryDirectory() as path,
        contextlib.chdir(path),
        mock.patch.dict(os.environ, others | environment, clear=True),
    ):
        if toml is not None:
            Path("resmon.toml").write_bytes(toml if isinstance(toml, bytes) else toml.encode())
        yield Path.cwd()


def as_toml(values: Mapping[str, Any]) -> str:
    return "".join(f"{name} = {_as_toml(value)}\n" for name, value in values.items())


def _as_toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_as_toml(each)}" for key, each in value.items()) + "}"
    return json.dumps(value)  # of these JSON is TOML


def as_environment(values: Mapping[str, Any]) -> dict[str, str]:
    def text(name: str, value: Any) -> str:
        if isinstance(value, tuple):
            return (shlex.join if name == "on_incident" else ", ".join)(value)
        return json.dumps(value) if isinstance(value, dict) else str(value)

    return {f"RESMON_{name.upper()}": text(name, value) for name, value in values.items()}


def resolved(given: Written) -> Resolved:
    with folder(as_toml(given["file"]), **as_environment(given["environment"])):
        return resolve(given["argument"])


def messages(toml: str | bytes | None = None, arguments: Mapping[str, Any] | None = None, **environment: str) -> list[str]:
    """What is wrong, with paths as in that folder. That the settings are refused for it, with every word, is seen here."""
    with folder(toml, **environment) as path:
        nits = [str(nit) for nit in resolve(arguments or {}).nits]
        if nits:
            with pytest.raises(ConfigurationError) as refused:
                Settings.of(**(arguments or {}))
            assert all(f"  {nit}\n" in str(refused.value) for nit in nits)
        else:
            Settings.of(**(arguments or {}))
        return [nit.replace(f"{path}{os.sep}", "") for nit in nits]


def test_every_setting_is_tried_here() -> None:
    assert set(RIGHT) == set(Settings.model_fields)
    assert all(field.description for field in Settings.model_fields.values())


@given(written(st.fixed_dictionaries({}, optional=RIGHT)))
def test_each_setting_comes_from_the_strongest_place_that_has_it(given: Written) -> None:
    found = resolved(given)
    assert found.nits == ()
    with folder():
        default = Settings()
    for name in RIGHT:
        places = [place for place in PLACES if name in given[place]]
        assert found.origins[name].kind == (places[-1] if places else "default")
        value = given[places[-1]][name] if places else getattr(default, name)
        assert getattr(found.settings, name) == (Path(value) if name in PATHS and value is not None else value)


@given(
    written(st.fixed_dictionaries({}, optional=RIGHT)),
    written(st.fixed_dictionaries({}, optional={name: st.just(value) for name, value in WRONG.items()})),
)
def test_every_wrong_value_is_named_where_it_stands_and_nothing_else_is(given: Written, wrong: Written) -> None:
    """Also one that a stronger place overrides. What is right keeps its order of places."""
    found = resolved({place: given[place] | wrong[place] for place in PLACES})
    spelt = {(place, name.upper() if place == "environment" else name) for place in PLACES for name in wrong[place]}
    assert sorted((nit.origin.kind, nit.origin.name.removeprefix("RESMON_")) for nit in found.nits) == sorted(spelt)
    right = resolved({place: {n: v for n, v in given[place].items() if n not in wrong[place]} for place in PLACES})
    assert found.settings == right.settings
    assert {n: o.kind for n, o in found.origins.items()} == {n: o.kind for n, o in right.origins.items()}


STATEMENTS = st.one_of(
    st.sampled_from([("", None), ("# run = 1", None), ("  ", None), ("\t# [table]", None)]),
    st.sampled_from(
        [
            ("run = '''a\nsample = 3\n[table]\n'''", "run"),
            ('model_name = """\n\\"""\n"""  # a comment', "model_name"),
            ("include = [\n  'a', # ]\n\n  '''b\n]''',\n]", "include"),
            ("'sample' = 20", "sample"),
            ('"max\\u005fseries" = 1_000', "max_series"),
            ("budget = 0x200000", "budget"),
        ]
    ),
)


@given(st.lists(STATEMENTS, unique=True), st.sampled_from(["\n", "\r\n"]))
def test_a_key_of_the_file_is_told_with_its_line(statements: list[tuple[str, str | None]], newline: str) -> None:
    line, expected = 1, {}
    for text, key in statements:
        if key is not None:
            expected[key] = line
        line += text.count("\n") + 1
    toml = "\n".join([*(text for text, _ in statements), "[table]", "run = 1", "[table.sample]", "budget = 3"])
    with folder(toml.replace("\n", newline)) as path:
        found = resolve({})
    assert {name: origin.line for name, origin in found.origins.items() if origin.kind == "file"} == expected
    assert [nit.origin for nit in found.nits] == [Origin("file", "table", str(path / "resmon.toml"), line)]


@pytest.mark.parametrize(
    ("toml", "arguments", "environment", "expected"),
    [
        ("# c\n\nbugdet = 3", {}, {}, ["resmon.toml, line 3, bugdet: there is no such setting; the nearest is budget"]),
        ("max-series = 300", {}, {}, ["resmon.toml, line 1, max-series: there is no such setting; the nearest is max_series"]),
        ("Run = 'a'\nrun = 'b'", {}, {}, ["resmon.toml, line 1, Run: there is no such setting; the nearest is run"]),
        (None, {"bugdet": 3}, {}, ["argument bugdet: there is no such setting; the nearest is budget"]),
        (None, {"zzz": None}, {}, ["argument zzz: there is no such setting"]),
        (None, {}, {"RESMON_BUGDET": "3"}, ["RESMON_BUGDET: there is no such setting; the nearest is RESMON_BUDGET"]),
        (None, {}, {"resmon_bugdet": ""}, ["resmon_bugdet: there is no such setting; the nearest is RESMON_BUDGET"]),
        (None, {}, {"RESMON_ZZZ": "3"}, ["RESMON_ZZZ: there is no such setting"]),
        (None, {}, {"RESMON_": "3"}, ["RESMON_: there is no such setting"]),
        (None, {}, {"RESMON_RUNTIME": "a"}, ["RESMON_RUNTIME: there is no such setting; the nearest is RESMON_RUNTIME_DIR"]),
        (None, {}, {"RESMON_RUN": "a", "Resmon_Run": "a"}, ["Resmon_Run: RESMON_RUN sets the same; unset one of the two"]),
        ("[agent]\nlisten = 1", {}, {}, ["resmon.toml, line 1, agent: this is a table; settings stand at the top of the file"]),
        ("a.b = 1", {}, {}, ["resmon.toml, line 1, a: this is a table"]),
        ("[[run]]", {}, {}, ["resmon.toml, line 1, run: should be a valid string (got [{}])"]),
        ("run = 3", {}, {}, ["resmon.toml, line 1, run: should be a valid string (got 3)"]),
        ("include = ['a', 3]", {}, {}, ["resmon.toml, line 1, include: item 2 should be a valid string (got 3)"]),
        ("run = digits", {}, {}, ["resmon.toml, line 1: this is no TOML: Invalid value (at line 1, column 7)"]),
        ("# c\nrun = '''\n'''\n\nsample = 20\ninclude = [\nbudget = 3", {}, {}, ["resmon.toml, line 6: this is no TOML: "]),
        ("a.b = 1\na.c = 2\n[x]\nb = 1\n[y]\nb = 1\n[x]\n", {}, {}, ["resmon.toml, line 7: this is no TOML: "]),
        ("include = [", {}, {}, ["resmon.toml, line 1: this is no TOML: "]),
        (f"budget = {'1' * 5000}", {}, {}, ["resmon.toml, line 1: this is no TOML: Exceeds the limit"]),
        (f"include = {'[' * 5000}", {}, {}, ["resmon.toml, line 1: this is no TOML: "]),
        (b"run = 'a'\nmodel_name = '\xff'", {}, {}, ["resmon.toml, line 2: this is not UTF-8"]),
        ('"\\u001b[31m" = 1', {}, {}, ["resmon.toml, line 1, \\x1b[31m: there is no such setting"]),
        (None, {"run": "\x1b" * 90}, {}, []),
        (None, {"listen": "\x1b" * 90}, {}, ["argument listen: must be HOST:PORT, such as 127.0.0.1:9699 (got '\\x1b\\x1b"]),
        (None, {"listen": "host:65536"}, {}, ["argument listen: must be HOST:PORT"]),
        (None, {"listen": "http://127.0.0.1:9699"}, {}, ["argument listen: must be HOST:PORT"]),
        (None, {}, {"RESMON_AGENT": ""}, ["RESMON_AGENT: should be 'auto', 'sidecar' or 'off' (got '')"]),
        ("directory = 'a'\ndirectory = 'b'", {}, {}, ["resmon.toml, line 2: this is no TOML: Cannot overwrite a value (at "]),
        (None, {}, {"RESMON_DIRECTORY": ""}, ["RESMON_DIRECTORY: must be a path, and is empty; leave it out"]),
        ('directory = "a\\u0000b"', {}, {}, ["resmon.toml, line 1, directory: must be a path, which holds no null character"]),
        (None, {"start_step": 1 << 60}, {}, ["argument start_step: should be less than or equal to 9007199254740992"]),
        (
            "run = x",
            {"sample": 1},
            {"RESMON_X": ""},
            ["resmon.toml, line 1: this is no TOML", "RESMON_X: there is", "argument sample: sho"],
        ),
    ],
)
def test_what_is_wrong_is_told(
    toml: str | bytes | None, arguments: dict[str, Any], environment: dict[str, str], expected: list[str]
) -> None:
    found = messages(toml, arguments, **environment)
    assert len(found) == len(expected)
    assert all(one.startswith(start) for one, start in zip(found, expected, strict=True)), found
    assert all(len(one) < 250 for one in found)


@pytest.mark.parametrize(
    "target",
    ["accuracy", "accuracy > 0.9", "accuracy >= ", ">= 0.9", " >= 1", "accuracy >= high", "a >= 1e999", "a <= nan", "a = 1"],
)
def test_a_target_is_a_name_and_a_number(target: str) -> None:
    (nit,) = messages(arguments={"targets": ["loss <= 0.1", target]})
    assert f"{target!r} must be NAME >= NUMBER or NAME <= NUMBER, such as accuracy >= 0.95" in nit


def test_several_in_one_string_are_separated_by_commas() -> None:
    with folder("include = 'a, b.*'\nexclude = ''", RESMON_TARGETS="accuracy >= 0.95,val/loss<=1e-2,"):
        settings = Settings.of(exclude=None)
    assert settings.include == ("a", "b.*")
    assert settings.exclude == ()
    assert settings.targets == ("accuracy >= 0.95", "val/loss<=1e-2")


def test_a_file_that_cannot_be_read_is_told() -> None:
    with folder() as path:
        Path("resmon.toml").mkdir()
        (nit,) = resolve({}).nits
        assert str(nit) == f"{path / 'resmon.toml'}: this cannot be read (Is a directory); mend or remove it"
        Path("resmon.toml").rmdir()
        Path("resmon.toml").symlink_to("resmon.toml")
        assert "this cannot be read (Too many levels of symbolic links)" in str(resolve({}).nits[0])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_told() -> None:
    with folder("run = 'a'"):
        Path("resmon.toml").chmod(0)
        assert "this cannot be read (Permission denied)" in str(resolve({}).nits[0])


def test_a_folder_that_is_gone_has_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert Settings.of(run="a").run == "a"


# A pod beside a Service "resmon" with the port 9699 and a Service "resmon-agent" with the named port "metrics".
POD = {
    "RESMON_SERVICE_HOST": "10.0.0.11",
    "RESMON_SERVICE_PORT": "9699",
    "RESMON_PORT": "tcp://10.0.0.11:9699",
    "RESMON_PORT_9699_TCP": "tcp://10.0.0.11:9699",
    "RESMON_PORT_9699_TCP_PROTO": "tcp",
    "RESMON_PORT_9699_TCP_PORT": "9699",
    "RESMON_PORT_9699_TCP_ADDR": "10.0.0.11",
    "RESMON_AGENT_SERVICE_HOST": "10.0.0.12",
    "RESMON_AGENT_SERVICE_PORT": "9699",
    "RESMON_AGENT_SERVICE_PORT_METRICS": "9699",
    "RESMON_AGENT_PORT": "tcp://10.0.0.12:9699",
    "RESMON_AGENT_PORT_9699_TCP_ADDR": "10.0.0.12",
}


def test_what_kubernetes_sets_is_no_setting_and_no_error() -> None:
    assert messages(**POD, RESMON_RUNTIME_DIR="somewhere") == []
    assert messages(RESMON_PORT="9699") == ["RESMON_PORT: there is no such setting"]
    names = as_environment(dict.fromkeys(Settings.model_fields, "tcp://a"))
    assert not [name for name, value in names.items() if KUBERNETES.fullmatch(f"{name}={value}")]


TUNED = """
[detectors.dead_branch]
ratio = 1e-6
fal = 3

[detectors.dead_branch.sites]
"h.0.*".enabled = []
"h.1.*" = 3

[detectors.deadbranch]
"""


def test_what_is_wrong_within_a_table_is_told_with_its_own_line_and_the_nearest_name() -> None:
    environment = {"RESMON_DETECTORS": '{"dead_branch": {"windows": 0}}'}
    with folder(TUNED, **environment) as path:
        nits = [str(nit).replace(f"{path}{os.sep}", "") for nit in resolved_by_watch({"detectors": {"loss_divergnce": {}}}).nits]
    assert nits == [
        "resmon.toml, line 10, detectors.deadbranch: there is no such detector; the nearest is dead_branch",
        "resmon.toml, line 4, detectors.dead_branch.fal: there is no such option; the nearest is fall",
        "resmon.toml, line 7, detectors.dead_branch.sites.h.0.*.enabled: should be a valid boolean (got [])",
        "resmon.toml, line 8, detectors.dead_branch.sites.h.1.*: must be a table of options (got 3)",
        "RESMON_DETECTORS: dead_branch.windows: should be greater than or equal to 1 (got 0)",
        "argument detectors: loss_divergnce: there is no such detector; the nearest is loss_divergence",
    ]


def test_which_options_an_own_detector_has_is_not_known_here() -> None:
    with folder("own_detectors = 'mine:Loud'\n[detectors.loud]\nfactor = 3\n[detectors.dead_branch]\nfactor = 3"):
        assert [nit.origin.name for nit in resolved_by_watch({}).nits] == ["detectors.dead_branch.factor"]


@pytest.mark.parametrize(
    ("value", "why"),
    [("{", "must be a table, in a variable or a text as JSON"), ("3", "should be a valid dictionary"), ("[" * 9000, "must be a")],
)
def test_a_variable_that_holds_no_table_is_told(value: str, why: str) -> None:
    (nit,) = messages(RESMON_DETECTORS=value)
    assert nit.startswith(f"RESMON_DETECTORS: {why}")


def test_a_table_holds_what_a_flight_can_hold() -> None:
    (nit,) = messages("[detectors.mine]\nsince = 1979-05-27")
    assert "resmon.toml, line 1, detectors: must hold numbers, texts, truths and tables" in nit


def test_every_variable_that_the_code_names_is_known() -> None:
    """So that none is read or recommended that would be refused."""
    texts = {
        node.value
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and path.name != "origins.py"
    }
    named = set(re.findall(r"RESMON_[A-Z_]+", " ".join(texts)))
    assert "RESMON_RUNTIME_DIR" in named
    assert named <= {*VARIABLES, *as_environment(Settings.model_fields)}


def test_bad_settings_touch_nothing_of_a_training() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.relu(self.linear(x))

    model = Block()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step() -> None:
        optimizer.zero_grad()
        model(torch.ones(2, 4)).sum().backward()
        optimizer.step()

    def state() -> tuple[object, ...]:
        hooks = [getattr(m, name) for m in model.modules() for name in vars(m) if name.endswith("_hooks")]
        files = sorted((path, path.stat().st_size) for path in Path.cwd().rglob("*"))
        randoms = torch.get_rng_state().tolist(), random.getstate()
        return [len(each) for each in hooks], len(optimizer._optimizer_step_pre_hooks), files, dict(os.environ), randoms

    with folder("sampel = 3\n[detectors.dead_branch]\nratoi = 1"):
        before = state()
        with pytest.raises(ConfigurationError, match=r"(?s)sampel.*line 3, detectors\.dead_branch\.ratoi"):
            resmon.watch(model, optimizer, run="bad", agent="off")
        assert state() == before
        Path("resmon.toml").unlink()
        with resmon.watch(model, optimizer, run="good", agent="off"):
            step()
            with pytest.raises(ConfigurationError, match="argument sampel"):
                resmon.watch(model, optimizer, run="bad", agent="off", sampel=3)
            step()  # the monitor from before goes on
        assert len(resmon.load("runs/good").steps()) == 2
        assert [path.name for path in Path("runs").iterdir()] == ["good"]


@pytest.mark.parametrize("command", ["cat >> said.json", "page | tee log", "a; b", "a && b", "page 2>&1", "sleep 1 &"])
def test_a_command_that_is_meant_for_a_shell_is_refused_with_what_to_write(command: str) -> None:
    with folder(), pytest.raises(ConfigurationError, match=r"there is none around the command: write sh -c"):
        Settings.of(on_incident=command)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("sh -c 'cat >> said.json; page'", ("sh", "-c", "cat >> said.json; page")),
        ("curl 'http://pager/?run=1&now=2'", ("curl", "http://pager/?run=1&now=2")),
        ("grep '|'", ("grep", "|")),
        (["grep", "|"], ("grep", "|")),
    ],
)
def test_what_is_quoted_or_a_list_is_no_shells(command: str | list[str], words: tuple[str, ...]) -> None:
    with folder():
        assert Settings.of(on_incident=command).on_incident == words
