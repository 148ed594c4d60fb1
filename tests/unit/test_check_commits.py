import subprocess
from pathlib import Path

import pytest

from tools.check_commits import faults, main, message_subject


@pytest.mark.parametrize(
    "subject",
    [
        "Reject presigned URLs of deleted requests",
        "Pass credentials to workers",
        "Address review comments",
        "Process: handle SIGTERM",
        "Embed the style sheet",
        "A" * 72,
    ],
)
def test_faults_accepts_imperative_subjects(subject: str) -> None:
    assert list(faults(subject)) == []


@pytest.mark.parametrize(
    ("subject", "fault"),
    [
        ("", "empty"),
        ("A" * 73, "73 characters are too many; at most 72"),
        ("Add a test.", "full stop"),
        ("add a test", "upper-case"),
        ("Added a test", "imperative"),
        ("Adds a test", "imperative"),
        ("Fixes: a test", "imperative"),
        ("Adding a test", "imperative"),
    ],
)
def test_faults_names_the_fault(subject: str, fault: str) -> None:
    (found,) = faults(subject)
    assert fault in found


def test_message_subject_skips_comments_and_blank_lines() -> None:
    assert message_subject("# Lines with # are comments\n\nAdd x\n\nWhy.\n") == "Add x"
    assert message_subject("# nothing\n") == ""


def test_message_file_decides_the_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = tmp_path / "COMMIT_EDITMSG"
    for text, code in [("Add x\n", 0), ("Added x\n", 1), ("Merge branch 'x'\n", 0)]:
        message.write_text(text, encoding="utf-8")
        assert main(["--message-file", str(message)]) == code
    assert "this commit: 'Added x': begin with an imperative" in capsys.readouterr().out


def git(*arguments: str) -> None:
    who = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    subprocess.run(["git", *who, *arguments], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE"):
        monkeypatch.delenv(name, raising=False)
    git("init", "--quiet", "--initial-branch", "main")
    git("commit", "--quiet", "--allow-empty", "-m", "Added long ago.")
    return tmp_path


def test_default_without_origin_main_is_the_last_commit(repository: Path) -> None:
    assert main([]) == 1
    git("commit", "--quiet", "--allow-empty", "-m", "Add more")
    assert main([]) == 0
    assert main(["HEAD"]) == 1


def test_default_is_all_commits_since_origin_main(repository: Path) -> None:
    git("update-ref", "refs/remotes/origin/main", "HEAD")
    assert main([]) == 0
    git("commit", "--quiet", "--allow-empty", "-m", "Adds more")
    git("commit", "--quiet", "--allow-empty", "-m", "Add more")
    assert main([]) == 1


def test_merge_commits_are_skipped(repository: Path) -> None:
    git("switch", "--quiet", "--create", "side")
    git("commit", "--quiet", "--allow-empty", "-m", "Add more")
    git("switch", "--quiet", "main")
    git("merge", "--quiet", "--no-ff", "-m", "merged things.", "side")
    assert main(["HEAD^1..HEAD"]) == 0


def test_unknown_range_exits_with_2(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nowhere..HEAD"]) == 2
    assert "nowhere" in capsys.readouterr().err
