"""What a source is, whatever its path: a name for the contents of its files."""

from pathlib import Path

from rope_export.artifacts.saving import file_hash
from rope_export.checkpoints.hub import Hub
from rope_export.jobs import Store, digest

OTHERS = (".json", ".safetensors", ".model", ".jinja", ".txt", ".bin")
"""How the files of a folder end that an export may read."""


def source_digest(path: str, store: Store) -> str:
    """Changes with the contents of a source, or of an adapter.

    store: keeps the hashes of files, which are taken anew where size or time of a file differ.
    Raises: CheckpointError for a hub that refuses.
    """
    place = Path(path)
    if place.is_file():
        return _file(place, store)
    if place.is_dir():
        files = [x for x in sorted(place.iterdir()) if x.suffix in OTHERS and x.is_file()]
        return digest([(x.name, _file(x, store)) for x in files])
    hub = Hub(path)
    hub.find("config.json")
    return digest(path, hub.revision)


def _file(path: Path, store: Store) -> str:
    stat = path.stat()
    key = digest("file", str(path.resolve()), stat.st_size, stat.st_mtime_ns)
    known = store.get(key, str)
    if known is None:
        known = file_hash(path)
        store.put(key, known)
    return known
