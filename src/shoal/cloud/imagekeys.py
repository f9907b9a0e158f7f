"""The keys of the image repository: which are offline, which online, who signs what.

Offline keys (root, top-level targets) lie in a folder of their own that may be a
medium which is mounted for a ceremony and taken away; online keys (one for
snapshot and timestamp, one release key a scenario) lie beside the metadata.
"""

from __future__ import annotations

from pathlib import Path

from securesystemslib.signer import CryptoSigner, SSlibKey

from shoal.core.errors import InputError, NotFoundError, UnavailableError
from shoal.wire.signing import generate_key, key_id, load_key, save_key

__all__ = ["ROOT_KEYS", "ROOT_THRESHOLD", "ImageKeys"]

#: Offline root keys, and how many of them must sign.
ROOT_KEYS, ROOT_THRESHOLD = 3, 2

_MISSING = "mount the offline keys for this step"


def _signer(path: Path) -> CryptoSigner:
    key = load_key(path)
    return CryptoSigner(key, SSlibKey.from_crypto(key.public_key(), keyid=key_id(key)))


def _make(path: Path) -> None:
    if not path.exists():
        save_key(generate_key(), path)


class ImageKeys:
    """Key files in two folders, each file one ed25519 key, readable by its owner only.

    Parameters
    ----------
    online, offline : Path
        The folders.
    """

    def __init__(self, online: Path, offline: Path) -> None:
        self._online = online
        self._offline = offline

    def make(self) -> None:
        """Make the folders and every key that is not there, but no release key."""
        for folder in (self._online, self._offline):
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o700)
        for number in range(1, ROOT_KEYS + 1):
            _make(self._root_path(number))
        _make(self._offline / "targets.pem")
        _make(self._online / "online.pem")

    def _root_path(self, number: int) -> Path:
        return self._offline / f"root-{number}.pem"

    def roots(self) -> list[CryptoSigner]:
        """Return the signers of the root keys at hand.

        Raises
        ------
        UnavailableError
            Fewer than the threshold.
        """
        paths = [self._root_path(number) for number in range(1, ROOT_KEYS + 1)]
        signers = [_signer(path) for path in paths if path.exists()]
        if len(signers) < ROOT_THRESHOLD:
            raise UnavailableError(
                f"a root needs {ROOT_THRESHOLD} of its {ROOT_KEYS} offline keys", hint=_MISSING
            )
        return signers

    def replace_root(self, number: int) -> CryptoSigner:
        """Put a new key in the place of root key ``number`` (1 to 3) and return its signer.

        The file of the old key stays, renamed, until somebody destroys it.
        """
        if not 1 <= number <= ROOT_KEYS:
            raise InputError(f"must lie in [1, {ROOT_KEYS}]", field="replace", value=number)
        path = self._root_path(number)
        if path.exists():
            path.replace(path.with_suffix(f".{_signer(path).public_key.keyid[:8]}.replaced"))
        _make(path)
        return _signer(path)

    def make_release(self, scenario: str) -> CryptoSigner:
        """Make the release key of a scenario if it is missing, and return its signer."""
        path = self._online / f"release-{scenario}.pem"
        _make(path)
        return _signer(path)

    def signer(self, role: str) -> CryptoSigner:
        """Return the signer of a role other than root.

        Raises
        ------
        UnavailableError
            Its key is not at hand.
        """
        if role == "targets":
            path = self._offline / "targets.pem"
        elif role in {"snapshot", "timestamp"}:
            path = self._online / "online.pem"
        else:
            path = self._online / f"release-{role.rpartition('-bin-')[0] or role}.pem"
        try:
            return _signer(path)
        except NotFoundError:
            raise UnavailableError(
                f"the key of role {role} is not at hand",
                hint=_MISSING if role == "targets" else "restore the keys folder from a copy",
            ) from None
