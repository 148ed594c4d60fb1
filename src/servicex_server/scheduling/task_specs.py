"""Task specifications: what a worker is given for one file."""

from dataclasses import replace

from servicex_server.database.tasks import Work
from servicex_server.model import Replica, TaskSpec
from servicex_server.replicas.health import StorageEndpoints
from servicex_server.scheduling.policy import DispatchPolicy
from servicex_server.storage.contract import ObjectStore

UPLOAD_SECONDS = 7 * 24 * 3600.0
"""How long an upload URL works: as long as S3 signatures may, for a task may wait."""


class TaskSpecs:
    """Makes task specifications, and orders the replicas in them by the health of endpoints."""

    def __init__(
        self, policy: DispatchPolicy, objects: ObjectStore, endpoints: StorageEndpoints
    ) -> None:
        self._policy = policy
        self._objects = objects
        self._endpoints = endpoints

    def of(self, work: Work, *, speculative: bool = False) -> TaskSpec:
        """Return the specification of a file, or of a speculative read of it."""
        policy = self._policy
        url = self._objects.upload_url(
            work.speculative_key if speculative else work.object_key, seconds=UPLOAD_SECONDS
        )
        limits = policy.limits
        return TaskSpec(
            request_id=work.request_id,
            file_id=work.file_id,
            attempt=work.attempt,
            replicas=work.file.replicas,
            language=work.language,
            selection=work.selection,
            format=work.format,
            object_name=work.object_name,
            upload_url=url,
            limits=limits if work.seconds is None else replace(limits, seconds=work.seconds),
            entries=work.entries,
            name=work.file.name,
            size=work.file.size,
            adler32=work.file.adler32,
            whole=policy.whole,
            credentials=policy.credentials,
            speculative=speculative,
            sandbox=policy.sandbox,
            joins=tuple(
                self._objects.download_url(key, seconds=UPLOAD_SECONDS) for key in work.joins
            ),
        )

    def latest(self, spec: TaskSpec) -> TaskSpec:
        """Return a specification with its replicas in the order that is best by now.

        A speculative read tries last the replica that the slow copy reads.
        """
        key = spec.name or spec.path
        ranked = self.in_order(spec.replicas, key, probe=not spec.speculative)
        if spec.speculative and ranked:
            slow = ranked[0].url
            ranked = tuple(sorted(ranked, key=lambda replica: replica.url == slow))
        return spec if ranked == spec.replicas else replace(spec, replicas=ranked)

    def in_order(
        self, replicas: tuple[Replica, ...], key: str, *, probe: bool
    ) -> tuple[Replica, ...]:
        """Return replicas in the order to try them, through a cache if there is one."""
        ranked = self._endpoints.ranked(replicas, probe=probe)
        return self._endpoints.by_cache(ranked, key, self._policy.caches, probe=probe)
