"""A task folder that arrives as a ZIP, unpacked without trusting a word of it."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Final

from shoal.core.errors import InputError, LimitError
from shoal.wire.limits import WireLimits
from shoal.wire.manifest import check_member_path

__all__ = ["unpack_folder"]

_CHUNK: Final = 1 << 20
_LINK: Final = 0o120000
_KIND: Final = 0o170000


def unpack_folder(archive: Path, folder: Path, limits: WireLimits) -> None:
    """Unpack the ZIP of a task's source folder.

    Parameters
    ----------
    archive : Path
        The uploaded file; any ordinary ZIP.
    folder : Path
        An empty folder.
    limits : WireLimits
        ``package_members`` and ``resource`` bound it: what is counted is what comes
        out, not what the headers promise.

    Raises
    ------
    InputError
        Not a ZIP, damaged, encrypted, a path that climbs, a link, a name twice.
    LimitError
        Too many members or too many bytes.
    """
    try:
        with zipfile.ZipFile(archive) as bundle:
            members = [member for member in bundle.infolist() if not member.is_dir()]
            if len(members) > limits.package_members:
                raise LimitError("too many files", field="archive", value=len(members))
            names = [member.filename for member in members]
            if len(set(names)) != len(names):
                raise InputError("a name appears twice", field="archive")
            left = limits.resource
            for member in members:
                check_member_path(member.filename)
                if member.external_attr >> 16 & _KIND == _LINK or member.flag_bits & 1:
                    raise InputError(
                        "links and encrypted files are refused",
                        field="archive",
                        value=member.filename,
                    )
                target = folder / member.filename
                target.parent.mkdir(parents=True, exist_ok=True)
                with bundle.open(member) as source, target.open("xb") as sink:
                    while chunk := source.read(min(_CHUNK, left + 1)):
                        left -= len(chunk)
                        if left < 0:
                            raise LimitError(
                                f"more than {limits.resource} bytes come out",
                                field="archive",
                                value=member.filename,
                            )
                        sink.write(chunk)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, RuntimeError) as error:
        raise InputError(f"not a readable ZIP: {error}", field="archive") from error
