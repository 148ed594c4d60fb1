"""Text report on the failures of a request, grouped by error, the largest group first."""

from collections.abc import Sequence

from servicex_server.database.failure_groups import grouped
from servicex_server.database.finished_files import FailedFile
from servicex_server.errors import ErrorRecord
from servicex_server.model import Request

_SHOWN = 20

_UNKNOWN = ErrorRecord("", "service", "")
"""The error of a file that failed without one; older versions may have stored such files."""


def failure_report(request: Request, failed: Sequence[FailedFile], delivered_log: str) -> str:
    """Return a report on the failed files of a request, with the log of a delivered file."""
    head = [
        f"Request   {request.title or '(no title)'}  ({request.id})",
        f"Status    {request.state.value}",
        f"Files     {request.files} in all, {request.completed} done, {request.failed} failed",
    ]
    if request.failure:
        head.append(f"Failure   {request.failure}")
    groups = grouped((one.error or _UNKNOWN, one.path, 1, one) for one in failed)
    lines = ["\n".join(head)]
    for group in groups:
        error, reports = group.shown, group.members
        block = [f"{group.count} x {error.kind}: {error.message}"]
        if error.hint:
            block.append(f"    what to do: {error.hint}")
        block += [f"    {report.path}" for report in reports[:_SHOWN]]
        if len(reports) > _SHOWN:
            block.append(f"    … and {len(reports) - _SHOWN} more")
        if tail := reports[0].log_tail.strip():
            block.append("    printed by the first of them:")
            block += [f"    | {line}" for line in tail.splitlines()[-30:]]
        lines.append("\n".join(block))
    if not failed:
        lines.append("No file has failed.")
    if delivered_log:
        block = ["Log of the first delivered file that has one:"]
        block += [f"    | {line}" for line in delivered_log.splitlines()]
        lines.append("\n".join(block))
    return "\n\n".join(lines) + "\n"
