"""The policy of dispatch, from the settings."""

from dataclasses import dataclass

from servicex_server.model import Credential, Limits, SandboxChoice, Sharing
from servicex_server.scheduling.fair_share import Caps
from servicex_server.settings.service import Settings


@dataclass(frozen=True, slots=True)
class DispatchPolicy:
    """The policy of dispatch.

    Parameters
    ----------
    limits
        Limits of the work on one file.
    attempts
        Number of attempts on a file whose error is retryable.
    fatal_after
        Files with the same query error that end a request.
    caps
        Files in the engine at a time, for each user and each request.
    share
        Which users' results may be reused for the same work.
    credentials, caches, whole, speculative, sandbox
        The settings of these names in ``reading``, and ``Settings.task_sandbox``.
    """

    limits: Limits
    attempts: int
    fatal_after: int
    caps: Caps = Caps()  # noqa: RUF009  # it is frozen
    share: Sharing = Sharing.OWN
    credentials: tuple[Credential, ...] = ()
    caches: tuple[str, ...] = ()
    whole: bool = False
    speculative: bool = False
    sandbox: SandboxChoice = SandboxChoice.AUTO

    @classmethod
    def from_settings(cls, settings: Settings) -> "DispatchPolicy":
        """Return the policy that the settings describe."""
        return cls(
            limits=Limits(
                seconds=settings.limits.file_seconds,
                stall=settings.limits.stall_seconds,
                opening=settings.reading.open_seconds,
                silence=settings.reading.silence_seconds,
                upload=settings.storage.upload_seconds,
                memory=settings.limits.worker_memory,
                chunk=settings.reading.chunk_bytes,
                part=settings.reading.part_bytes,
                network=settings.network_policy,
                folders=settings.local_folders,
            ),
            attempts=settings.limits.attempts,
            fatal_after=settings.limits.fatal_after,
            caps=Caps(
                user=settings.limits.files_per_user_at_once,
                request=settings.limits.files_per_request_at_once,
            ),
            share=settings.storage.share_results,
            credentials=settings.reading.credentials,
            caches=settings.reading.caches,
            whole=settings.reading.whole_files,
            speculative=settings.reading.speculative_reads,
            sandbox=settings.task_sandbox,
        )
