"""A checkpoint on a Hugging Face hub: only the files that are asked for are fetched."""

from pathlib import Path

from rope_export.errors import CheckpointError, extra


class Hub:
    """The files of one repository, fetched into the hub's own cache when first needed.

    revision: the commit of the first file found, which all others are then taken from. reached:
    whether every file that was asked for could be looked up; if not, the cache was believed, as
    transformers does.
    """

    def __init__(self, repository: str) -> None:
        self.repository = repository
        self.revision: str | None = None
        self.reached = True

    def find(self, name: str) -> Path | None:
        """The file called `name`, fetched if it is not in the cache yet.

        Raises: CheckpointError if the hub refuses or the repository is not there; UnavailableError
            without the `hf` extra.
        """
        with extra("hf", f"reading {self.repository!r} from a hub"):
            from huggingface_hub import hf_hub_download
            from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
        try:
            path = Path(hf_hub_download(self.repository, name, revision=self.revision))
        except LocalEntryNotFoundError:
            self.reached = False  # offline, the cache cannot tell missing from not fetched
            return None
        except EntryNotFoundError:
            return None
        except Exception as error:  # the hub client raises many kinds, none of them ours
            reason = str(error).strip().splitlines()[0]
            raise CheckpointError(f"{self}: {name} cannot be fetched ({reason}).") from error
        if self.revision is None and "snapshots" in path.parts:
            self.revision = path.parts[path.parts.index("snapshots") + 1]
        return path

    def listed(self) -> None:
        return None

    def folders_with(self, name: str) -> tuple[str, ...]:
        return ()

    def __str__(self) -> str:
        cache = "" if self.reached else " (the hub was not reached, its cache alone was looked at)"
        return f"hub repository {self.repository!r}{cache}"
