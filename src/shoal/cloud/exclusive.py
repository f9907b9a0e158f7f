"""Exclusive files: bytes that one device alone may have, such as its personal model.

They lie in a blob store of their own, so no shared address reaches them. The
device gets the director's signature over its own files and short-lived addresses
(Walle, OSDI 2022, "exclusive files"; sheet A.5).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa

from shoal.cloud import store as tables
from shoal.cloud.blobs import BlobStore
from shoal.cloud.director import FILES_PATH, Director
from shoal.cloud.store import Store
from shoal.cloud.tokens import TokenClaims
from shoal.core.errors import InputError, NotFoundError
from shoal.wire.enrolment import ExclusiveGrant
from shoal.wire.notices import DesiredTask, FileRef

__all__ = ["ExclusiveFiles"]


class ExclusiveFiles:
    """Keeps and hands out the files of single devices.

    Parameters
    ----------
    store : Store
        Says which file belongs to whom.
    blobs : BlobStore
        Where the bytes lie; not the store of shared files.
    director : Director
        Signs the grants.
    epoch : callable
        The epoch in force for a cohort set.
    """

    def __init__(
        self,
        store: Store,
        blobs: BlobStore,
        director: Director,
        epoch: Callable[[int], int],
        *,
        clock: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._director = director
        self._epoch = epoch
        self._clock = clock

    def put(self, device: bytes, task: str, version: int, path: str, data: bytes) -> FileRef:
        """Give a device a file for one version of a task; the same path is replaced.

        Raises
        ------
        InputError
            The path is empty, absolute or climbs.
        NotFoundError
            No such device or version.
        """
        parts = path.split("/")
        if not path or len(path) > 512 or "\\" in path or {"", ".", ".."} & set(parts):
            raise InputError("must be a plain relative path", field="path", value=path)
        now = self._clock()
        with self._store.begin() as connection:
            known = sa.select(tables.device.c.id).where(tables.device.c.id == device)
            if connection.execute(known).first() is None:
                raise NotFoundError(f"no device {device.hex()}")
            self._package(connection, task, version)
            ref = self._blobs.put_bytes(data, path=f"{device.hex()}/{path}", scope="exclusive")
            connection.execute(
                self._store.upsert(
                    tables.exclusive_file,
                    ["device", "task", "version", "path"],
                    ["sha256", "size", "created_us"],
                ),
                {
                    "device": device,
                    "task": task,
                    "version": version,
                    "path": path,
                    "sha256": ref.sha256,
                    "size": ref.size,
                    "created_us": now,
                },
            )
        return ref

    @staticmethod
    def _package(connection: sa.Connection, task: str, version: int) -> Any:
        found = connection.execute(
            sa.select(tables.task_version.c.package_sha256, tables.task_version.c.size).where(
                tables.task_version.c.task == task, tables.task_version.c.version == version
            )
        ).one_or_none()
        if found is None:
            raise NotFoundError(f"no version {version} of task {task!r}")
        return found

    def grant(self, claims: TokenClaims, task: str, version: int) -> bytes:
        """Return the encoded :class:`ExclusiveGrant` of a device for one task version.

        Raises
        ------
        NotFoundError
            The device has no files of its own there.
        """
        table = tables.exclusive_file
        device = claims.device
        with self._store.read() as connection:
            rows = connection.execute(
                sa.select(table)
                .where(table.c.device == device, table.c.task == task)
                .where(table.c.version == version)
                .order_by(table.c.path)
            ).all()
            if not rows:
                raise NotFoundError(f"no exclusive files of {task} {version} for this device")
            package = self._package(connection, task, version)
        files = [
            FileRef(
                sha256=row.sha256,
                size=row.size,
                path=f"{device.hex()}/{row.path}",
                scope="exclusive",
            )
            for row in rows
        ]
        desired = DesiredTask(
            task=task,
            version=version,
            package=FileRef(sha256=package[0], size=package[1], path=f"{task}-{version}.shoal"),
            resources=files,
            exclusive=True,
        )
        grant = ExclusiveGrant(
            director=self._director.exclusive(
                device, claims.cohort, self._epoch(claims.cohort), desired
            ),
            urls={ref.sha256.hex(): f"{FILES_PATH}{ref.sha256.hex()}" for ref in files},
        )
        return msgspec.msgpack.encode(grant)

    def path(self, device: bytes, sha256: bytes) -> Path:
        """Return where an exclusive file of this device lies.

        Raises
        ------
        NotFoundError
            There is none, or it is another device's: the answer is the same.
        """
        table = tables.exclusive_file
        query = sa.select(table.c.sha256).where(table.c.device == device, table.c.sha256 == sha256)
        with self._store.read() as connection:
            if connection.execute(query).first() is None:
                raise NotFoundError(f"no file {sha256.hex()}")
        return self._blobs.path(sha256)
