from __future__ import annotations

import math
from typing import Any

import pytest

from shared.errors import Unusable
from shared.settings import Described, Settings, described, unknown

NUMBERS = [one for one in described() if isinstance(one.default, int | float)]
CHOSEN = [one for one in described() if one.choices]
BOUNDED_ABOVE = [one for one in NUMBERS if one.most != math.inf]


def named(one: Described) -> str:
    return one.name


def parsed(one: Described, raw: object) -> Any:
    return getattr(Settings.from_environment({one.env: str(raw)}), one.name)


def test_every_setting_has_a_description() -> None:
    for one in described():
        assert one.unit
        assert one.why.endswith(".")
    assert len({one.env for one in described()}) == len(list(described()))


def test_an_empty_environment_gives_the_defaults() -> None:
    assert Settings.from_environment({}) == Settings()
    assert Settings.from_environment({one.env: " " for one in described()}) == Settings()


@pytest.mark.parametrize("one", list(described()), ids=named)
def test_every_default_is_itself_allowed(one: Described) -> None:
    if one.default != "":
        assert parsed(one, one.default) == one.default


@pytest.mark.parametrize("one", NUMBERS, ids=named)
def test_every_number_has_a_bound_that_holds(one: Described) -> None:
    assert one.least is not None
    assert parsed(one, one.least) == one.least
    below = one.least - (1 if isinstance(one.default, int) else 0.01)
    with pytest.raises(
        Unusable,
        match=rf"{one.env}.*at least {int(one.least) if one.least == int(one.least) else one.least}.*{one.unit}",
    ):
        parsed(one, below)


@pytest.mark.parametrize("one", BOUNDED_ABOVE, ids=named)
def test_an_upper_bound_holds(one: Described) -> None:
    assert parsed(one, one.most) == one.most
    with pytest.raises(
        Unusable, match=f"{one.env}.*at most {int(one.most) if one.most == int(one.most) else one.most}"
    ):
        parsed(one, one.most + 1)


@pytest.mark.parametrize("one", NUMBERS, ids=named)
def test_a_malformed_number_is_refused_with_the_setting_s_name(one: Described) -> None:
    for raw in ("x", "1s", "--1", "nan", "inf", "1e999", "0x10", "9" * 400, "9" * 5000):
        with pytest.raises(Unusable, match=one.env):
            parsed(one, raw)


@pytest.mark.parametrize("one", [one for one in NUMBERS if isinstance(one.default, int)], ids=named)
def test_a_whole_number_has_no_fraction(one: Described) -> None:
    with pytest.raises(Unusable, match=f"{one.env}.*whole number"):
        parsed(one, f"{one.default}.5")


def test_settings_named_by_other_programs_keep_their_names() -> None:
    settings = Settings.from_environment({"OPENAI_API_KEY": "key", "OPENAI_BASE_URL": "http://x/v1"})
    assert (settings.openai_api_key, settings.openai_base_url) == ("key", "http://x/v1")


@pytest.mark.parametrize("one", CHOSEN, ids=named)
def test_a_choice_is_one_of_few(one: Described) -> None:
    for choice in one.choices:
        assert parsed(one, choice) == parsed(one, choice.upper()) == choice
    with pytest.raises(Unusable, match=f"{one.env}='maybe' must be {one.choices[0]}.* or {one.choices[-1]}"):
        parsed(one, "maybe")


def test_the_choices_are_in_the_reasons() -> None:
    assert {one.name for one in CHOSEN} >= {"log_level", "log_format", "provider_on_cancel", "console"}
    for one in CHOSEN:
        assert all(choice in f"{one.why} {one.unit}" for choice in one.choices), one.name


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("MIDSTREAM_LEASE_SECOND", "MIDSTREAM_LEASE_SECONDS"),
        ("MIDSTREAM_PROT", "MIDSTREAM_PORT"),
        ("MIDSTREAM_REDIS", "MIDSTREAM_REDIS_URL"),
        ("midstream_port", "MIDSTREAM_PORT"),
        ("MIDSTREAM_METRIC_PORT", "MIDSTREAM_METRICS_PORT"),
        ("MIDSTREAM_OPENAI_BASE_URL", "OPENAI_BASE_URL"),
        ("OPENAI_API_BASE", "OPENAI_BASE_URL"),
        ("MIDSTREAM_XYZZY", "`midstream settings`"),
    ],
)
def test_a_variable_that_is_no_setting_is_told_with_the_nearest(variable: str, meant: str) -> None:
    warnings = unknown({variable: "1", "MIDSTREAM_PORT": "8000"})
    assert list(warnings) == [variable]
    assert meant in warnings[variable]


def test_what_is_a_setting_or_somebody_else_s_is_not_told() -> None:
    assert unknown({one.env: "x" for one in described()}) == {}
    others = {
        "MIDSTREAM_URL": "http://x",
        "MIDSTREAM_GATEWAY_SERVICE_HOST": "10.0.0.1",  # by Kubernetes, for a service
        "MIDSTREAM_GATEWAY_PORT": "tcp://10.0.0.1:8000",
        "MIDSTREAM_GATEWAY_PORT_8000_TCP_ADDR": "10.0.0.1",
        "OPENAI_ORG_ID": "org",
        "PATH": "/bin",
    }
    assert unknown(others) == {}
    assert unknown({"OPENAI_API_BASE": "x", "OPENAI_BASE_URL": "http://x/v1"}) == {}
    assert len(unknown({f"MIDSTREAM_X{number}": "" for number in range(500)})) == 20, "the log is not flooded"


def test_the_text_of_the_settings_has_no_secret() -> None:
    secrets: dict[str, Any] = {
        setting.name: f"hunter2-{setting.name}" for setting in described() if setting.unit in ("secret", "URL")
    }
    assert {"redis_url", "openai_api_key", "token_keys", "api_keys"} <= secrets.keys()
    assert "hunter2" not in repr(Settings(**secrets))
