"""What failed in a request, as text for people: grouped by error, the largest group first."""

from collections import defaultdict
from collections.abc import Sequence

from servicex_server.database.ended_files import FailedFile
from servicex_server.model import Request

_SHOWN = 20


def failure_report(request: Request, failed: Sequence[FailedFile]) -> str:
    """Return the report on the failed files of a request."""
    head = [
        f"Request   {request.title or '(no title)'}  ({request.id})",
        f"Status    {request.state.value}",
        f"Files     {request.files} in all, {request.completed} done, {request.failed} failed",
    ]
    if request.failure:
        head.append(f"Failure   {request.failure}")
    groups: dict[tuple[str, str, str], list[FailedFile]] = defaultdict(list)
    for report in failed:
        error = report.error
        key = (error.kind, error.message, error.hint) if error else ("", "", "")
        groups[key].append(report)
    lines = ["\n".join(head)]
    for (kind, message, hint), reports in sorted(groups.items(), key=lambda g: -len(g[1])):
        block = [f"{len(reports)} x {kind}: {message}"]
        if hint:
            block.append(f"    what to do: {hint}")
        block += [f"    {report.path}" for report in reports[:_SHOWN]]
        if len(reports) > _SHOWN:
            block.append(f"    … and {len(reports) - _SHOWN} more")
        if tail := reports[0].log_tail.strip():
            block.append("    printed by the first of them:")
            block += [f"    | {line}" for line in tail.splitlines()[-30:]]
        lines.append("\n".join(block))
    if not failed:
        lines.append("No file has failed.")
    return "\n\n".join(lines) + "\n"
