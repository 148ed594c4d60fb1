import pytest

from tools.check_prose import ROOT, faults, main, pages


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("Who sends wrong tokens has to wait.", "Who"),
        ("The server answers 429. What was wrong is in the log.", "What"),
        ("It ends.\nWhat is left\nis removed.", "What"),
        ("- **Note.** Who signs in is known.", "Who"),
        ("| `/x` | What the service is. |", "What"),
        ("The name is none of this service.", "is none of"),
        ("The user is told\nto wait.", "is told"),
        ("The query is held\nagainst a file.", "held against"),
        ("It reads the requests of somebody.", "of somebody"),
        ("A dead door is slow.", "door"),
        ("All Doors are listed.", "Doors"),
        ("This site is well.", "is well"),
        ("A site that is weak comes later.", "is weak"),
        ("An endpoint that was shut is tried again.", "shut"),
        ("The service has it in mind.", "in mind"),
        ("The outcome is written down by the leader.", "written down by"),
        ("Text.\n\n<<<<<<< HEAD\nmore", "<<<<<<<"),
        ("```text\ncode\n```\nA door.", "door"),
    ],
)
def test_check_prose_reports_forbidden_phrases(text: str, phrase: str) -> None:
    ((line, found, instead),) = faults(text)
    assert found == phrase
    assert instead
    key = phrase.split(maxsplit=1)[0]
    assert key in text.splitlines()[line - 1]


@pytest.mark.parametrize(
    "text",
    [
        "A user who sends wrong tokens has to wait.",
        "Who may read results? Only the owner.",
        "What happens if a worker\ndies? Nothing.",
        "## What a worker needs",
        "| What | Who |\n|---|---|\n| a | b |",
        "The key `door` and ``What `x` is`` are in the API.",
        "```python\nWhat is none of this is told\n```",
        "~~~\nwell, weak, shut\n~~~",
        "It shuts down, and a shut-down worker is well-known. Reads work as well as before.",
        "<!-- a door -->See [the list](next-door.md).",
        "Indoors.",
    ],
)
def test_check_prose_accepts_plain_sentences(text: str) -> None:
    assert list(faults(text)) == []


def test_check_prose_checks_all_pages_of_the_project() -> None:
    found = {str(path.relative_to(ROOT)) for path in pages(ROOT)}
    assert {"README.md", "CONTRIBUTING.md", "SECURITY.md", "docs/index.md"} <= found
    assert not any(name.startswith(("src", ".venv")) for name in found)


def test_check_prose_prints_nothing_for_pages_without_faults(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([]) == 0
    page = ROOT / "docs" / "explanation" / "architecture.md"
    assert main([page]) == 0
    assert capsys.readouterr().out == ""


def test_check_prose_fails_with_place_and_replacement(
    tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path_factory.mktemp("docs") / "page.md"
    page.write_text("Fine.\n\nThis door.\n", encoding="utf-8")
    assert main([page]) == 1
    assert f"{page}:3: 'door': write \"storage endpoint\"" in capsys.readouterr().out
