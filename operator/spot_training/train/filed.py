"""Parts of a program that write files by themselves: what JAX, XGBoost or a format of one's own saves.

What they write into a temporary directory goes into the checkpoint as one file, a tar, with a checksum in the manifest
as all have. To load, it is checked while it is unpacked into such a directory again, so that the program reads
nothing else than what was verified, and no file of a checkpoint can change below it.
"""

from __future__ import annotations

import tarfile
import tempfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO, Final
from urllib.parse import quote

from spot_training.train import checked, compression
from spot_training.train.files import DamagedError
from spot_training.train.problem import CheckpointError
from spot_training.train.state import Files, UnsavableStateError

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Mapping

    from spot_training.train.files import Sink, Written
    from spot_training.train.state import Part

_SUFFIX: Final = ".tar"
_PREFIX: Final = "spot-training-"
_CHUNK: Final = 1 << 20


def split(parts: Mapping[str, Part | Files]) -> tuple[dict[str, Part], dict[str, Files]]:
    """Those that give their state, and those that write files."""
    plain, filed = dict[str, "Part"](), dict[str, Files]()
    for name, part in parts.items():
        if isinstance(part, Files):
            filed[name] = part
        else:
            plain[name] = part
    return plain, filed


def suffix(compress: str | None) -> str:
    """Of the name of the file that holds them all."""
    return _SUFFIX + (compression.SUFFIXES[compress] if compress else "")


class Packing:
    """The files of such parts as they are when this is made, until `close`.

    Raises what the parts raise, and UnsavableStateError, which names what is no file.
    """

    def __init__(self, parts: Mapping[str, Files], argument: str) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix=_PREFIX)
        try:
            for name, part in parts.items():
                directory = self._root / _folder(name)
                directory.mkdir()
                part.save(directory)
                _check(directory, f"{argument}[{name!r}]")
        except BaseException:
            self.close()
            raise

    @property
    def _root(self) -> Path:
        return Path(self._directory.name)

    def write(self, sink: Sink) -> None:
        """Write them all into one file."""
        target: Any = sink  # needs to know no more than to write
        with tarfile.open(fileobj=target, mode="w|", bufsize=_CHUNK, format=tarfile.PAX_FORMAT) as archive:
            for path in sorted(self._root.rglob("*")):
                member = tarfile.TarInfo(str(path.relative_to(self._root)))
                if path.is_dir():
                    member.type = tarfile.DIRTYPE
                    archive.addfile(member)
                else:
                    with path.open("rb") as file:
                        member.size = path.stat().st_size
                        archive.addfile(member, file)

    def close(self) -> None:
        """Remove them."""
        self._directory.cleanup()


def unpack(file: BinaryIO, expected: Written, stack: contextlib.ExitStack) -> Path:
    """Lay the files out in a directory, for `restore`, until `stack` is closed; returns it.

    Raises DamagedError where they are not what was written, CheckpointError where there is no place for them.
    """
    try:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=_PREFIX)))
    except OSError as error:
        raise _no_place(error) from error
    checked.use(file, expected, lambda content: _unpack(compression.expanded(content, file.name), directory))
    return directory


def restore(parts: Mapping[str, Files], unpacked: Path | None) -> None:
    """Let each part load what it has written. Raises KeyError that names a part which has written nothing."""
    missing = [name for name in parts if not unpacked or not (unpacked / _folder(name)).is_dir()]
    if missing:
        raise KeyError(
            f"the checkpoint has no files of {', '.join(missing)}: name the parts as the program that saved it did"
        )
    for name, part in parts.items():
        if unpacked:
            part.load(unpacked / _folder(name))


def _unpack(content: BinaryIO, directory: Path) -> None:
    with tarfile.open(fileobj=content, mode="r|", bufsize=_CHUNK) as archive:
        for member in archive:
            place = PurePosixPath(member.name)
            if place.is_absolute() or ".." in place.parts or not (member.isfile() or member.isdir()):
                raise DamagedError(f"{member.name!r} in it is no file below its directory")
            path, data = directory / place, archive.extractfile(member)
            try:
                if data is None:
                    path.mkdir(parents=True, exist_ok=True)
                    continue
                file = path.open("xb")
            except OSError as error:
                raise _no_place(error) from error
            with file:
                while chunk := data.read(_CHUNK):
                    try:
                        file.write(chunk)
                    except OSError as error:
                        raise _no_place(error) from error


def _no_place(error: OSError) -> CheckpointError:
    return CheckpointError(f"cannot unpack a checkpoint's files: {error}; TMPDIR may name another directory")


def _folder(name: str) -> str:
    return f"part-{quote(name, safe='')}"


def _check(directory: Path, where: str) -> None:
    for path in directory.rglob("*"):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise UnsavableStateError(
                f"{where} has written {path.relative_to(directory)}, which is neither a file nor a directory: "
                "write the file itself"
            )
