"""A checkpoint on a Hugging Face hub: only the files that are asked for are fetched."""

from pathlib import Path

from rope_export.errors import CheckpointError, extra


class Hub:
    """The files of one repository, fetched into the hub's own cache when first needed."""

    def __init__(self, repository: str) -> None:
        self.repository = repository

    def find(self, name: str) -> Path | None:
        """The file called `name`, fetched if it is not in the cache yet.

        Raises: CheckpointError if the hub cannot be reached or refuses; UnavailableError without
            the `hf` extra.
        """
        with extra("hf", f"reading {self.repository!r} from a hub"):
            from huggingface_hub import hf_hub_download
            from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
        try:
            return Path(hf_hub_download(self.repository, name))
        except LocalEntryNotFoundError as error:
            if name.endswith(".index.json"):
                return None  # offline, the cache cannot tell missing from not fetched
            raise CheckpointError(f"{self}: {name} is not in the cache, no hub reached.") from error
        except EntryNotFoundError:
            return None
        except Exception as error:  # the hub client raises many kinds, none of them ours
            reason = str(error).strip().splitlines()[0]
            raise CheckpointError(f"{self}: {name} cannot be fetched ({reason}).") from error

    def __str__(self) -> str:
        return f"hub repository {self.repository!r}"
