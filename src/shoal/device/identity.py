"""Who a device is: an id it chose itself and a key that never leaves it."""

from __future__ import annotations

import os
from pathlib import Path

from shoal.core.errors import IntegrityError, NotFoundError
from shoal.core.files import write_text
from shoal.wire.enrolment import EnrolRequest, enrolment_message
from shoal.wire.profile import TaskProfile
from shoal.wire.signing import PrivateKey, generate_key, load_key, public_bytes, save_key

__all__ = ["Identity"]


class Identity:
    """The device's id (16 bytes) and ed25519 key, kept in one folder.

    Parameters
    ----------
    folder : path-like
        Made at the first start; readable by its owner only.

    Raises
    ------
    IntegrityError
        The id's file does not hold an id. (It is not replaced silently: the
        device would be a stranger to its cloud.)
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.device = self._device()
        self.key = self._key()

    def _device(self) -> bytes:
        path = self.folder / "device"
        try:
            text = path.read_text(encoding="ascii").strip()
        except FileNotFoundError:
            device = os.urandom(16)
            write_text(path, device.hex() + "\n")
            return device
        except UnicodeDecodeError:
            text = ""
        if len(text) != 32 or set(text) - set("0123456789abcdef"):
            raise IntegrityError(
                f"{path} does not hold a device id",
                hint="restore it, or remove the identity folder and enrol as a new device",
            )
        return bytes.fromhex(text)

    def _key(self) -> PrivateKey:
        path = self.folder / "key.pem"
        try:
            return load_key(path)
        except NotFoundError:
            key = generate_key()
            save_key(key, path)
            return key

    @property
    def name(self) -> str:
        """The id as text: 32 lower-case hex digits."""
        return self.device.hex()

    def enrol_request(self, token: str, profile: TaskProfile, ts_us: int) -> EnrolRequest:
        """Return a signed request to enrol, or to renew the token when ``token`` is empty.

        Parameters
        ----------
        token : str
            The operator's one-time token.
        profile : TaskProfile
            What the device is.
        ts_us : int
            Estimated server time, above that of every earlier request.
        """
        public = public_bytes(self.key)
        message = enrolment_message(token, public, self.device, ts_us)
        return EnrolRequest(
            token=token,
            public_key=public,
            profile=profile,
            proof=self.key.sign(message),
            ts_us=ts_us,
        )
