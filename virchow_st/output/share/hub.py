"""Uploads a run to the Hugging Face Hub and downloads it; the only part that uses the network.

huggingface_hub is imported when one of these functions is called.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from virchow_st.errors import ConfigError
from virchow_st.output.share.listing import BEST, FILES, LISTING, check_listed, is_repo
from virchow_st.output.share.write import check_may_be_shared, fill
from virchow_st.runtime.progress import SILENT, Progress


def push_run(
    run: Path,
    repo: str,
    *,
    license: str = "",
    keep_names: bool = False,
    private: bool = True,
    progress: Progress = SILENT,
) -> str:
    """Upload a run to the Hub in one commit, so that the repository never holds a part of it.

    Files of an earlier push that this run lacks are removed in the same commit; other files of the
    repository stay. The uploaded files are those that `save_run` writes.

    Args:
        run: run directory of ``vst train``.
        repo: ``ORG/NAME``; made if it is not there.
        license, keep_names: as for `save_run`.
        private: whether a new repository is visible to its owners only.
        progress: receives a note.

    Returns:
        Address of the commit.

    Raises:
        ConfigError: as `save_run`; or ``repo`` has another form, or the Hub refuses.
    """
    _check_repo(repo)
    check_may_be_shared(run, license)
    from huggingface_hub import HfApi

    with TemporaryDirectory() as place:
        folder = Path(place)
        fill(run, folder, license, keep_names, repo)
        n_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        progress.note(f"uploading {n_bytes / 1e6:.1f} MB to {repo}")
        try:
            api = HfApi()
            api.create_repo(repo, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repo,
                folder_path=folder,
                commit_message="Share a run of virchow_st",
                delete_patterns=[*FILES, f"{BEST}/*"],
            )
        except Exception as e:  # the network errors below the hub client share no base class
            raise _hub_error(repo, "cannot be written", e) from e
    return str(commit.commit_url)


def fetch_run(repo: str, revision: str | None = None) -> Path:
    """Download a shared run, or find it in the local cache; returns its folder.

    Args:
        repo: ``ORG/NAME``.
        revision: branch, tag or commit; a commit pins exactly what is loaded.

    Raises:
        ConfigError: ``repo`` has another form, the Hub does not deliver it, or what is there is not
            a whole shared run.
    """
    _check_repo(repo)
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(repo, revision=revision, allow_patterns=[*FILES, LISTING])
    except Exception as e:  # as above
        raise _hub_error(repo, "cannot be fetched", e) from e
    check_listed(Path(found))
    return Path(found)


def _check_repo(repo: str) -> None:
    if not is_repo(repo):
        raise ConfigError(
            f"expected a repository of the Hugging Face Hub, ORG/NAME, or a folder that begins "
            f"with ./ or /; got {repo!r:.80}"
        )


def _hub_error(repo: str, what: str, error: Exception) -> ConfigError:
    lines = str(error).strip().splitlines() or ["no message"]
    return ConfigError(
        f"{repo}: {what} on the Hugging Face Hub ({type(error).__name__}: "
        f"{lines[0][:160].rstrip('. ')}); check the name and the network, and log in with "
        "`hf auth login`"
    )
