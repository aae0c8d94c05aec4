"""A saved image without the layers that its receivers hold already.

The engine can only save an image whole, and a node that reads it stores every layer anew, with a sync to disk,
before it sees that it has it. A training image is 1.5 GB of libraries under a few kilobytes of program; so what
the engine writes is filtered on its way into an OCI archive that names all layers and contains the new ones.
"""

import hashlib
import json
import posixpath
import tarfile
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

_SMALL: Final = 1 << 20
_CHUNK: Final = 1 << 20
_BLOCK: Final = tarfile.BLOCKSIZE
_DOCKER: Final = "application/vnd.docker"


@dataclass(frozen=True)
class _Blob:
    digest: str
    size: int
    compressed: bool


def write_lacking(saved: IO[bytes], target: Path, name: str, held: Set[str]) -> None:
    """Read a `docker save` of one image from `saved`, write `target`, an archive for `ctr images import`.

    `name` is the image's full name; `held` are the digests (`sha256:…`) of the layers to leave out.
    Raises ValueError where `saved` is no such archive.
    """
    blobs: dict[str, _Blob] = {}
    small: dict[str, bytes] = {}
    links: dict[str, str] = {}
    with target.open("wb") as archive:
        with tarfile.open(fileobj=saved, mode="r|") as tar:
            for entry in tar:
                data = tar.extractfile(entry) if entry.isreg() else None
                if entry.issym():
                    links[entry.name] = posixpath.normpath(
                        posixpath.join(posixpath.dirname(entry.name), entry.linkname)
                    )
                elif data and entry.size <= _SMALL:
                    small[entry.name] = data.read()
                elif data:
                    blobs[entry.name] = _copy_blob(data, entry.size, archive, held)
        if "manifest.json" not in small:
            raise ValueError("the engine's saved image has no manifest.json")
        described: dict[str, Any] = json.loads(small["manifest.json"])[0]

        def blob(path: str) -> _Blob:
            path = links.get(path, path)
            if path not in blobs:
                blobs[path] = _write_blob(small[path], archive)
            return blobs[path]

        manifest = {
            "schemaVersion": 2,
            "mediaType": f"{_DOCKER}.distribution.manifest.v2+json",
            "config": _descriptor(f"{_DOCKER}.container.image.v1+json", blob(described["Config"])),
            "layers": [_layer_descriptor(blob(path)) for path in described["Layers"]],
        }
        written = _write_blob(json.dumps(manifest).encode(), archive)
        index = {
            **_descriptor(str(manifest["mediaType"]), written),
            "annotations": {"io.containerd.image.name": name},
        }
        _write_file("index.json", json.dumps({"schemaVersion": 2, "manifests": [index]}).encode(), archive)
        _write_file("oci-layout", b'{"imageLayoutVersion": "1.0.0"}', archive)
        archive.write(bytes(2 * _BLOCK))


def _copy_blob(data: IO[bytes], size: int, archive: IO[bytes], held: Set[str]) -> _Blob:
    """Append a blob under its digest, which is known only at its end: the header is written last, in its place."""
    begin = archive.tell()
    archive.write(bytes(_BLOCK))
    digest = hashlib.sha256()
    compressed = False
    first = True
    while chunk := data.read(_CHUNK):
        compressed, first = (_is_compressed(chunk) if first else compressed), False
        digest.update(chunk)
        archive.write(chunk)
    found = _Blob(f"sha256:{digest.hexdigest()}", size, compressed)
    if found.digest in held:
        archive.seek(begin)
        archive.truncate()
        return found
    archive.write(bytes(-size % _BLOCK))
    end = archive.tell()
    archive.seek(begin)
    archive.write(_header(_blob_path(found.digest), size))
    archive.seek(end)
    return found


def _write_blob(content: bytes, archive: IO[bytes]) -> _Blob:
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    _write_file(_blob_path(digest), content, archive)
    return _Blob(digest, len(content), _is_compressed(content))


def _write_file(path: str, content: bytes, archive: IO[bytes]) -> None:
    archive.write(_header(path, len(content)))
    archive.write(content + bytes(-len(content) % _BLOCK))


def _header(path: str, size: int) -> bytes:
    entry = tarfile.TarInfo(path)
    entry.size = size
    return entry.tobuf(tarfile.GNU_FORMAT)


def _blob_path(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _is_compressed(beginning: bytes) -> bool:
    return beginning.startswith(b"\x1f\x8b")


def _layer_descriptor(layer: _Blob) -> dict[str, object]:
    kind = f"{_DOCKER}.image.rootfs.diff.tar"
    return _descriptor(f"{kind}.gzip" if layer.compressed else kind, layer)


def _descriptor(media_type: str, blob: _Blob) -> dict[str, object]:
    return {"mediaType": media_type, "digest": blob.digest, "size": blob.size}
