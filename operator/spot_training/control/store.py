"""Objects of one kind as the watches have brought them: the newest version of each, and what is known to be gone."""

from collections.abc import Callable, Mapping
from typing import Any, Final, Generic, TypeVar

Json = Mapping[str, Any]

MAX_GONE: Final = 20_000
"""UIDs of the latest deletions of a kind, by which late answers about them are known."""

T = TypeVar("T")


class Store(Generic[T]):
    """Objects of one kind by key, each the newest version seen.

    ``changed`` is told what was there and what is there now, whoever puts or drops it.
    """

    def __init__(
        self,
        read: Callable[[Json], T],
        key: Callable[[Json], Any],
        changed: Callable[[T | None, T | None], None] = lambda before, after: None,
    ) -> None:
        self._read = read
        self.key = key
        self._changed = changed
        self._versions: dict[Any, tuple[str, int]] = {}
        self._gone: dict[str, int] = {}
        self.items: dict[Any, T] = {}

    def put(self, raw: Json) -> tuple[Any, T | None, T | None]:
        """Take in an object; returns its key, what was there and what is there now (None: it is nothing new)."""
        key, meta = self.key(raw), raw["metadata"]
        version = int(meta["resourceVersion"])
        known = self._versions.get(key)
        before = self.items.get(key)
        if (known is not None and version < known[1]) or version <= self._gone.get(meta["uid"], -1):
            return key, before, None
        if known == (meta["uid"], version):
            # As in every list that is compared with: reading it again is most of the work.
            return key, before, None
        if known is not None and known[0] != meta["uid"]:
            self._bar(known[0], version)
        after = self._read(raw)
        self._versions[key] = (meta["uid"], version)
        self.items[key] = after
        self._changed(before, after)
        return key, before, after

    def drop(self, key: Any, uid: str | None = None, version: int = 0) -> T | None:
        """Forget an object, only if it is the one with that UID where one is given.

        An answer or a list that was made before it went may come in later, up to ``version``: it is ignored.
        """
        known = self._versions.get(key)
        if uid is not None and (known is None or known[0] != uid):
            self._bar(uid, version)
            return None
        if known is None:
            return None
        self._bar(known[0], max(version, known[1]))
        del self._versions[key]
        gone = self.items.pop(key)
        self._changed(gone, None)
        return gone

    def remove(self, raw: Json) -> T | None:
        """Forget an object as it was when it was deleted; what was answered about it before that may come in later."""
        return self.drop(self.key(raw), raw["metadata"]["uid"], int(raw["metadata"]["resourceVersion"]))

    def _bar(self, uid: str, version: int) -> None:
        self._gone[uid] = max(version, self._gone.pop(uid, -1))
        if len(self._gone) > MAX_GONE:
            del self._gone[next(iter(self._gone))]

    def version(self, key: Any) -> str:
        """The resourceVersion of what is there, as a string; empty where nothing is."""
        known = self._versions.get(key)
        return str(known[1]) if known else ""
