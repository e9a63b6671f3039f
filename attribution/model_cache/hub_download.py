"""Downloads a model's files into the Hugging Face cache, in a process of its own that can be ended at any time.

`attribution.model_cache.sources` starts this file as a script, because a download that waits for its server cannot be
stopped from another thread. What was downloaded before the end is kept and continued the next time.

Argument: JSON with `name`, `revision` (or null), `timeout` in seconds for the first query, and `weights` and `others`,
glob patterns of files; `most_bytes` of all files that are missing. Output: JSON with `path` and `revision`, or with
`error`, the name of the exception's class or `TOO_LARGE` or `NO_SPACE`, and then `bytes`.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, snapshot_download

TOO_LARGE, NO_SPACE = "too large", "no space"


def _download(
    name: str, revision: str | None, timeout: float, weights: list[str], others: list[str], most_bytes: int
) -> dict[str, Any]:
    # One short request first: the download's own retries take half a minute to report an unreachable hub.
    info = HfApi().model_info(name, revision=revision, timeout=timeout)
    names = [each.rfilename for each in info.siblings or []]
    if "*.safetensors" in weights and any(each.endswith(".safetensors") for each in names):
        weights = ["*.safetensors"]
    wanted: dict[str, Any] = {"revision": info.sha, "allow_patterns": weights + others}
    missing = sum(each.file_size or 0 for each in snapshot_download(name, **wanted, dry_run=True) if each.will_download)
    if missing > most_bytes:
        return {"error": TOO_LARGE, "bytes": missing}
    if missing > (free := _free_bytes(Path(constants.HF_HUB_CACHE))):
        return {"error": NO_SPACE, "bytes": missing, "free": free}
    path = snapshot_download(name, **wanted)
    return {"path": path, "revision": str(info.sha)}


def _free_bytes(folder: Path) -> int:
    """Free bytes of the disk on which the folder is or will be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def main() -> None:
    try:
        answer = _download(**json.loads(sys.argv[1]))
    except Exception as error:  # besides HTTP and file errors, whatever the transport library raises
        answer = {"error": type(error).__name__}
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main()
