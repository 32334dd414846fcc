"""The client of object storage: fsspec's file systems, with bounded timeouts and retries.

Credentials come from where fsspec and its packages look for them: the environment and the files of
the storage's own tools.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

from virchow_st.cloud.place import Url
from virchow_st.errors import StorageError

TRIES, WAIT_S = 4, 1.0
"""How often a call is tried, and the pause after the first; each later pause is three times it."""
CONNECT_S, READ_S = 10, 30
"""Seconds to wait for a connection to S3, and for its next bytes."""
S3_TRIES, CONNECTION_TRIES = 3, 2
"""How often s3fs and the connection below it try, within each of `TRIES`."""
N_AT_ONCE = 8
"""Files that are sent or fetched at once."""
_PACKAGES = {"s3": "'virchow_st[cloud]'", "gs": "gcsfs", "az": "adlfs"}
_NO_KEYS = ("NoCredentialsError", "PartialCredentialsError", "TokenRetrievalError")
_LOOK = (
    "see that its storage can be reached and run the same command again, which goes on with what "
    "is finished"
)

T = TypeVar("T")


def files_of(url: Url) -> Any:
    """The file system of fsspec for a URL."""
    try:
        import fsspec

        if url.scheme == "s3":
            given = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
            ours = {
                "connect_timeout": CONNECT_S,
                "read_timeout": READ_S,
                "retries": {"total_max_attempts": CONNECTION_TRIES},
                "max_pool_connections": 4 * N_AT_ONCE,
            }
            files = fsspec.filesystem(
                "s3", use_listings_cache=False, config_kwargs={**ours, **given}
            )
            files.retries = S3_TRIES
            return files
        return fsspec.filesystem(url.scheme, use_listings_cache=False)
    except ImportError as e:
        package = _PACKAGES.get(url.scheme, _PACKAGES["s3"])
        raise StorageError(
            f"{url}: object storage needs another package ({said(e)}); pip install {package}"
        ) from None


def tried(url: Url, done: str, function: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """Call a function of fsspec, again where it fails.

    Raises:
        FileNotFoundError: there is no such object or bucket.
        StorageError: it is refused, or fails to the last.
    """
    for number in range(TRIES):
        if number:
            time.sleep(WAIT_S * 3 ** (number - 1))
        try:
            return function(*arguments, **options)
        except FileNotFoundError:
            raise
        except PermissionError as e:
            raise StorageError(
                f"{url}: cannot be {done} ({said(e)}); get the rights to it, or set the "
                "credentials of the account that has them (AWS_PROFILE, for instance)"
            ) from None
        except Exception as e:  # each storage's package raises errors of its own
            if type(e).__name__ in _NO_KEYS:
                raise StorageError(
                    f"{url}: cannot be {done} ({said(e)}); set the credentials, such as "
                    "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
                ) from None
            answer = said(e)
    raise StorageError(f"{url}: cannot be {done}, tried {TRIES} times ({answer}); {_LOOK}")


def said(error: BaseException) -> str:
    """What an error says, in one short line."""
    return " ".join(str(error).split())[:160] or type(error).__name__


def is_there_error(error: Exception) -> bool:
    """Whether a write was refused because there is an object: the HTTP status 412, by any name."""
    if isinstance(error, FileExistsError):
        return True
    answer = getattr(error.__cause__, "response", None)  # of botocore, below s3fs
    if isinstance(answer, dict):
        status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return status == 412 or answer.get("Error", {}).get("Code") == "PreconditionFailed"
    return str(getattr(error, "code", "")) == "412"  # of gcsfs
