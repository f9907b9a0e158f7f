"""The image repository: signed metadata that says which bytes each task version is.

It is a full TUF repository (https://theupdateframework.io) made with python-tuf's
Metadata API, so any TUF client can read it (Walle sheet 6.5):

- ``root``: three offline keys, two must sign;
- ``targets``: one offline key; names the director's keys and delegates every
  scenario's tasks to that scenario's release key;
- one role a scenario, below it *hash bins* (2^n small files), so that a device
  reads one bin instead of the list of everything; signed by the release key;
- ``snapshot`` and ``timestamp``: one online key, re-signed before they expire.

A task version is the target ``task/<name>/<version>`` with the custom fields
``floor`` and ``capabilities``. The floor of a task is the lowest version that a
device may still run; it only rises. The default scenario owns all task names;
another scenario ``x`` owns the names that begin with ``x.``, and what it owns the
default scenario's key cannot overrule.

Files are written leaves first and ``timestamp.json`` last: a crash in between
leaves files that nothing refers to, and the next change overwrites them.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    SuccinctRoles,
    TargetFile,
    Targets,
    Timestamp,
)

from shoal.cloud.imagefiles import read_roles, write_role
from shoal.cloud.imagekeys import ROOT_THRESHOLD, ImageKeys
from shoal.core.errors import ConflictError, InputError, NotFoundError
from shoal.wire.specs import check_task_name

__all__ = ["DEFAULT_SCENARIO", "DIRECTOR_TARGET", "ImageRepository", "target_path"]

#: The scenario that owns every task name no other scenario owns.
DEFAULT_SCENARIO = "default"

#: Target whose custom field ``keys`` lists the director's public keys (hex).
DIRECTOR_TARGET = "director/keys.json"

#: How long each role's signature is good. Offline roles are renewed by hand.
_LIFE = {
    "root": timedelta(days=730),
    "targets": timedelta(days=365),
    "scenario": timedelta(days=90),
    "snapshot": timedelta(days=7),
    "timestamp": timedelta(days=1),
}


def target_path(task: str, version: int) -> str:
    """Return the target path of a task version."""
    return f"task/{task}/{version}"


def _unsigned(signed: Targets | Snapshot | Timestamp) -> Metadata[Any]:
    """Wrap a role that has never been signed; signing makes it version 1."""
    signed.version = 0
    return Metadata(signed)


class ImageRepository:
    """The signed metadata of all task versions, in ``folder/metadata``.

    Parameters
    ----------
    folder : path-like
        Holds ``metadata/`` (served to devices) and ``keys/`` (online keys, 0600).
    offline_keys_dir : path-like
        Holds the root and targets keys; needed by :meth:`init`,
        :meth:`add_scenario`, :meth:`set_director_keys`, :meth:`renew_root` and
        :meth:`renew_targets` only, so it may be a medium that is taken away.
    bin_bits : int
        2**bin_bits hash bins a scenario: 4 suits some hundred versions, 8 to 10
        ten thousands. Fixed when a scenario is made.
    clock : callable, optional
        Microseconds since 1970 (UTC).
    """

    def __init__(
        self,
        folder: str | Path,
        offline_keys_dir: str | Path,
        *,
        bin_bits: int = 4,
        clock: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self.folder = Path(folder)
        self.metadata_folder = self.folder / "metadata"
        self._keys = ImageKeys(self.folder / "keys", Path(offline_keys_dir))
        self._bin_bits = bin_bits
        self._clock = clock
        self._lock = threading.RLock()
        self._roles: dict[str, Metadata[Any]] = {}
        if (self.metadata_folder / "timestamp.json").exists():
            self._roles = read_roles(self.metadata_folder)

    # -- making and loading ------------------------------------------------------------

    @property
    def initialised(self) -> bool:
        """Whether :meth:`init` has been done."""
        return "timestamp" in self._roles

    def init(self, director_keys: list[bytes] | None = None) -> None:
        """Make keys and the first metadata; does nothing if they exist.

        Parameters
        ----------
        director_keys : list of bytes, optional
            The director's raw public keys; see :meth:`set_director_keys`.
        """
        with self._lock:
            if self.initialised:
                if director_keys and self.director_keys() != director_keys:
                    self.set_director_keys(director_keys)
                return
            self.metadata_folder.mkdir(parents=True, exist_ok=True)
            self._keys.make()
            root = Root(version=1, expires=self._expiry("root"), consistent_snapshot=True)
            for signer in self._keys.roots():
                root.add_key(signer.public_key, "root")
            root.roles["root"].threshold = ROOT_THRESHOLD
            for role in ("targets", "snapshot", "timestamp"):
                root.add_key(self._keys.signer(role).public_key, role)
            targets = Targets(expires=self._expiry("targets"))
            targets.delegations = Delegations(keys={}, roles={})
            self._roles = {
                "root": Metadata(root),
                "targets": _unsigned(targets),
                "snapshot": _unsigned(Snapshot(expires=self._expiry("snapshot"))),
                "timestamp": _unsigned(Timestamp(expires=self._expiry("timestamp"))),
            }
            self._write_root()
            if director_keys:
                self._put_director_keys(director_keys)
            self._put_scenario(DEFAULT_SCENARIO)
            self._publish({"targets", DEFAULT_SCENARIO, *self._bins(DEFAULT_SCENARIO)})

    def _need(self) -> None:
        if not self.initialised:
            raise NotFoundError("the image repository has not been made", hint="call init() first")

    # -- reading -----------------------------------------------------------------------

    def root_bytes(self, version: int | None = None) -> bytes:
        """Return root metadata for devices to pin: the newest, or an older version."""
        with self._lock:
            self._need()
            number = version or self._roles["root"].signed.version
            path = self.metadata_folder / f"{number}.root.json"
            if not path.exists():
                raise NotFoundError(f"no root metadata of version {number}")
            return path.read_bytes()

    def director_keys(self) -> list[bytes]:
        """Return the director's public keys that devices accept (raw, 32 bytes each)."""
        with self._lock:
            self._need()
            entry = self._targets("targets").targets.get(DIRECTOR_TARGET)
            if entry is None:
                return []
            return [bytes.fromhex(text) for text in cast("dict[str, Any]", entry.custom)["keys"]]

    def target(self, task: str, version: int) -> TargetFile | None:
        """Return the entry of a task version, or ``None``."""
        with self._lock:
            self._need()
            path = target_path(task, version)
            return self._targets(self._bin_of(path)).targets.get(path)

    def floor(self, task: str) -> int:
        """Return the lowest version of a task that devices may run; 0 before the first."""
        floors = [entry.unrecognized_fields["custom"]["floor"] for entry in self._of_task(task)]
        return max(floors, default=0)

    def _of_task(self, task: str) -> list[TargetFile]:
        with self._lock:
            self._need()
            prefix = f"task/{task}/"
            return [
                entry
                for role in self._bins(self._scenario_of(task))
                for path, entry in self._targets(role).targets.items()
                if path.startswith(prefix)
            ]

    def _targets(self, role: str) -> Targets:
        return cast("Targets", self._roles[role].signed)

    def _scenario_of(self, task: str) -> str:
        head = task.partition(".")[0]
        delegations = self._targets("targets").delegations
        known = delegations.roles if delegations and delegations.roles else {}
        return (
            head
            if "." in task and head != DEFAULT_SCENARIO and head in known
            else (DEFAULT_SCENARIO)
        )

    def _succinct(self, scenario: str) -> SuccinctRoles:
        delegations = self._targets(scenario).delegations
        assert delegations is not None and delegations.succinct_roles is not None
        return delegations.succinct_roles

    def _bins(self, scenario: str) -> list[str]:
        return list(self._succinct(scenario).get_roles())

    def _bin_of(self, path: str) -> str:
        scenario = self._scenario_of(path.split("/")[1])
        return self._succinct(scenario).get_role_for_target(path)

    # -- changing ----------------------------------------------------------------------

    def add_target(
        self,
        task: str,
        version: int,
        sha256: str,
        length: int,
        floor: int = 0,
        *,
        capabilities: list[str] | None = None,
    ) -> None:
        """Sign that ``version`` of ``task`` is the file with this hash and length.

        Adding the same again does nothing.

        Parameters
        ----------
        task, version : str, int
            The task version.
        sha256 : str
            Lower-case hex, 64 characters.
        length : int
            Bytes.
        floor : int
            Lowest version of the task that devices may still run.
        capabilities : list of str, optional
            What a device must have.

        Raises
        ------
        ConflictError
            The version exists with other bytes, or the floor would fall.
        InputError
            A malformed name, version, hash or length.
        """
        check_task_name(task)
        if version < 1:
            raise InputError("must be at least 1", field="version", value=version)
        if len(sha256) != 64 or set(sha256) - set("0123456789abcdef"):
            raise InputError("expected 64 lower-case hex digits", field="sha256", value=sha256)
        if length < 0:
            raise InputError("must not be negative", field="length", value=length)
        with self._lock:
            self._need()
            present = self.target(task, version)
            if present is not None and (
                present.hashes != {"sha256": sha256} or present.length != length
            ):
                raise ConflictError(f"{task} {version} is signed already, with other bytes")
            before = self.floor(task)
            if 0 < floor < before:
                raise ConflictError(f"the floor of {task} is {before}; it only rises")
            changed: set[str] = set()
            if present is None:
                path = target_path(task, version)
                role = self._bin_of(path)
                self._targets(role).targets[path] = TargetFile(
                    length,
                    {"sha256": sha256},
                    path,
                    {"custom": {"floor": before, "capabilities": sorted(capabilities or [])}},
                )
                changed.add(role)
            if floor > before:
                changed |= self._raise_floor(task, floor)
            if changed:
                self._publish(changed)

    def set_floor(self, task: str, floor: int) -> None:
        """Raise the lowest version of ``task`` that devices may run.

        Raises
        ------
        NotFoundError
            No version of the task is signed.
        ConflictError
            The floor would fall.
        """
        with self._lock:
            self._need()
            if not self._of_task(task):
                raise NotFoundError(f"no version of {task} is signed")
            before = self.floor(task)
            if floor < before:
                raise ConflictError(f"the floor of {task} is {before}; it only rises")
            if floor > before:
                self._publish(self._raise_floor(task, floor))

    def _raise_floor(self, task: str, floor: int) -> set[str]:
        changed = set()
        for entry in self._of_task(task):
            entry.unrecognized_fields["custom"]["floor"] = floor
            changed.add(self._bin_of(entry.path))
        return changed

    def add_scenario(self, name: str) -> None:
        """Delegate the task names ``<name>.*`` to a release key of their own (offline).

        Does nothing if the scenario exists.
        """
        check_task_name(name)
        if name in {"root", "targets", "snapshot", "timestamp"} or "." in name:
            raise InputError("is not a name for a scenario", field="scenario", value=name)
        with self._lock:
            self._need()
            if name == DEFAULT_SCENARIO or name in self._roles:
                return
            for role in self._bins(DEFAULT_SCENARIO):
                for path in self._targets(role).targets:
                    if path.startswith(f"task/{name}."):
                        raise ConflictError(
                            f"{path} is signed by the default scenario already",
                            hint="choose a scenario name that is no prefix of a task in use",
                        )
            self._put_scenario(name)
            self._publish({"targets", name, *self._bins(name)})

    def scenarios(self) -> list[str]:
        """Return the names of the scenarios."""
        with self._lock:
            self._need()
            delegations = self._targets("targets").delegations
            assert delegations is not None
            return sorted(delegations.roles or {})

    def _put_scenario(self, name: str) -> None:
        signer = self._keys.make_release(name)
        targets = self._targets("targets")
        assert targets.delegations is not None and targets.delegations.roles is not None
        default = name == DEFAULT_SCENARIO
        role = DelegatedRole(
            name,
            [],
            1,
            terminating=not default,
            paths=["task/*/*" if default else f"task/{name}.*/*"],
        )
        others = dict(targets.delegations.roles)
        # Devices ask in this order: whoever owns a prefix comes before the default.
        targets.delegations.roles = {**others, name: role} if default else {name: role, **others}
        targets.add_key(signer.public_key, name)
        scenario = Targets(expires=self._expiry("scenario"))
        scenario.delegations = Delegations(
            keys={}, succinct_roles=SuccinctRoles([], 1, self._bin_bits, f"{name}-bin")
        )
        scenario.add_key(signer.public_key)
        self._roles[name] = _unsigned(scenario)
        for bin_name in self._bins(name):
            self._roles[bin_name] = _unsigned(Targets(expires=self._expiry("scenario")))

    def set_director_keys(self, keys: list[bytes]) -> None:
        """Say which director keys devices accept (needs the offline targets key).

        Two keys during a rotation; devices learn of a change when they refresh.
        """
        with self._lock:
            self._need()
            self._put_director_keys(keys)
            self._publish({"targets"})

    def _put_director_keys(self, keys: list[bytes]) -> None:
        if not keys or any(len(key) != 32 for key in keys):
            raise InputError("expected raw ed25519 public keys", field="keys", value=len(keys))
        listed = {"keys": [key.hex() for key in keys]}
        content = json.dumps(listed, sort_keys=True).encode()
        entry = TargetFile.from_data(DIRECTOR_TARGET, content, ["sha256"])
        entry.unrecognized_fields["custom"] = listed
        self._targets("targets").targets[DIRECTOR_TARGET] = entry

    def renew_root(self, *, replace: int | None = None) -> int:
        """Sign a new root with a new expiry (offline), and return its version.

        Parameters
        ----------
        replace : int, optional
            Number (1 to 3) of a root key to replace: after its loss or theft. The
            new root is signed by the threshold of the old keys and of the new.
        """
        with self._lock:
            self._need()
            self._keys.roots()  # all that is needed is at hand before anything changes
            root = cast("Root", self._roles["root"].signed)
            if replace is not None:
                fresh = self._keys.replace_root(replace).public_key
                keyids = root.roles["root"].keyids
                root.revoke_key(keyids[replace - 1], "root")
                root.add_key(fresh, "root")
                keyids.insert(replace - 1, keyids.pop(keyids.index(fresh.keyid)))
            root.version += 1
            root.expires = self._expiry("root")
            self._write_root()
            return root.version

    def renew_targets(self) -> None:
        """Sign the top-level targets again with a new expiry (offline)."""
        with self._lock:
            self._need()
            self._publish({"targets"})

    def refresh(self, now: int | None = None) -> list[str]:
        """Sign again every online role that has less than half its life left.

        Parameters
        ----------
        now : int, optional
            Microseconds since 1970 (UTC).

        Returns
        -------
        list of str
            The roles that were signed; usually none.
        """
        with self._lock:
            self._need()
            at = self._moment(now)
            due = {
                name
                for name, metadata in self._roles.items()
                if name not in {"root", "targets"}
                and metadata.signed.expires - at < _LIFE.get(name, _LIFE["scenario"]) / 2
            }
            if not due:
                return []
            self._publish(due - {"snapshot", "timestamp"}, snapshot="snapshot" in due, now=now)
            return sorted(due)

    def expiring(self, now: int | None = None, days: int = 60) -> list[str]:
        """Return the offline roles that expire within ``days`` and need a person."""
        with self._lock:
            self._need()
            limit = self._moment(now) + timedelta(days=days)
            return [
                name for name in ("root", "targets") if self._roles[name].signed.expires < limit
            ]

    # -- signing and writing -------------------------------------------------------------

    def _moment(self, now: int | None = None) -> datetime:
        at = self._clock() if now is None else now
        return datetime.fromtimestamp(at // 1_000_000, UTC)

    def _expiry(self, role: str, now: int | None = None) -> datetime:
        return self._moment(now) + _LIFE[role]

    def _write_root(self) -> None:
        metadata = self._roles["root"]
        metadata.signatures.clear()
        for signer in self._keys.roots():
            metadata.sign(signer, append=True)
        write_role(self.metadata_folder, "root", metadata)

    def _publish(self, roles: set[str], *, snapshot: bool = True, now: int | None = None) -> None:
        """Sign ``roles``, then what refers to them; the timestamp is the commit."""
        try:
            listing = cast("Snapshot", self._roles["snapshot"].signed)
            for role in sorted(roles):
                self._sign(role, "targets" if role == "targets" else "scenario", now)
                listing.meta[f"{role}.json"] = MetaFile(self._roles[role].signed.version)
            timestamp = cast("Timestamp", self._roles["timestamp"].signed)
            if roles or snapshot:
                data = self._sign("snapshot", "snapshot", now)
                timestamp.snapshot_meta = MetaFile.from_data(listing.version, data, ["sha256"])
            self._sign("timestamp", "timestamp", now)
        except BaseException:
            # What is in memory is half changed: go back to what the disk commits to.
            if (self.metadata_folder / "timestamp.json").exists():
                self._roles = read_roles(self.metadata_folder)
            else:
                self._roles = {}
            raise

    def _sign(self, role: str, life: str, now: int | None) -> bytes:
        metadata = self._roles[role]
        metadata.signed.version += 1
        metadata.signed.expires = self._expiry(life, now)
        metadata.sign(self._keys.signer(role))
        return write_role(self.metadata_folder, role, metadata)
