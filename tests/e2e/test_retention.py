"""What the store holds, and which results are kept, for users and operators of a real service."""

import json

from tests.command_line import invoke
from tests.support import Server

LIST = "/servicex/transformation"


def test_storage_command_shows_what_is_stored(server: Server) -> None:
    """Its table and its JSON have the bytes by user and by age, and what is evicted next."""
    request = server.run()
    code, shown = invoke("storage", "--url", server.url)
    assert code == 0, shown
    lines = shown.splitlines()
    assert lines[0].startswith("Results take ")
    assert lines[1] == "Results that were not used for 30 days are evicted."
    assert any(line.split()[:1] == ["local"] for line in lines)
    _, printed = invoke("storage", "--url", server.url, "--json")
    found = json.loads(printed)
    assert found["bytes"] == sum(one["bytes"] for one in found["ages"])
    assert found["users"] == [{"user": "local", "bytes": found["bytes"]}]
    assert (found["capacity"], found["problem"]) == (None, None)
    made = sum(path.stat().st_size for path in server.stored(request["request_id"]))
    assert 0 < made <= found["bytes"]


def test_results_are_pinned_by_the_api_and_on_the_page(server: Server) -> None:
    """The page says until when results are kept, and that pinned ones stay."""
    request_id = server.run()["request_id"]
    page = f"/requests/{request_id}"

    def shown() -> str:
        text: str = server.get(page, headers={"Accept": "text/html"}).text
        return " ".join(text.split())

    assert "unless they are used" in shown()
    assert server.client.put(f"{LIST}/{request_id}/pin").status_code == 200
    assert server.get(f"{LIST}/{request_id}").json()["pinned"] is True
    assert "pinned: they are kept" in shown()
    assert server.client.delete(f"{LIST}/{request_id}/pin").status_code == 200
    assert server.get(f"{LIST}/{request_id}").json()["pinned"] is False
    missing = server.client.put(f"{LIST}/{'0' * 36}/pin")
    assert missing.status_code == 404
    for deed, pinned in (("pin", True), ("unpin", False)):
        answer = server.client.post(f"{page}/{deed}", headers={"Origin": server.url})
        assert answer.status_code == 303, answer.text
        assert server.get(f"{LIST}/{request_id}").json()["pinned"] is pinned


def test_forecast_says_what_results_take_on_a_day(server: Server) -> None:
    """A service that is younger than two days cannot know it; a text that is no day is an error."""
    code, told = invoke("storage", "plan", "--until", "2099-12-31", "--url", server.url)
    assert code == 0, told
    assert told.rstrip().endswith("The growth is known after two days.")
    code, told = invoke("storage", "plan", "--until", "soon", "--url", server.url)
    assert code == 2
    assert "--until" in told
