"""The limit of a wait, by client and by environment variable."""

import math

import pytest

from virtualmle.data.errors import ServerError
from virtualmle.server.waits import OVERRIDE, UNKNOWN_CAP, wait_cap, wait_override


@pytest.mark.parametrize(
    ("client", "seconds"),
    [
        ("claude-code", 100),
        pytest.param("claude-ai", 45, id="Claude Desktop"),
        pytest.param("cursor-vscode", 45, id="Cursor"),
        ("codex-mcp-client", 240),
        ("Visual Studio Code", 240),
        pytest.param("virtualmle", math.inf, id="our agent loop"),
        ("some-new-client", UNKNOWN_CAP),
        pytest.param("", UNKNOWN_CAP, id="no-name"),
    ],
)
def test_the_limit_of_a_client_is_below_its_own_timeout(client: str, seconds: float) -> None:
    assert wait_cap(client) == seconds


def test_an_environment_variable_sets_one_limit_for_all_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OVERRIDE, "7.5")
    assert wait_cap("claude-code", wait_override()) == 7.5
    monkeypatch.setenv(OVERRIDE, "0")
    assert wait_cap("virtualmle", wait_override()) == 0
    monkeypatch.setenv(OVERRIDE, "inf")
    assert wait_cap("unknown", wait_override()) == math.inf
    monkeypatch.delenv(OVERRIDE)
    assert wait_override() is None


@pytest.mark.parametrize("text", ["soon", "-1", "nan"])
def test_a_limit_that_is_not_a_number_of_seconds_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(OVERRIDE, text)
    with pytest.raises(ServerError, match=OVERRIDE):
        wait_override()
