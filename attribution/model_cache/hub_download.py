"""Downloads a model's files into the Hugging Face cache, in a process of its own that can be ended at any time.

`attribution.model_cache.sources` starts this file as a script, because a download that waits for its server cannot be
stopped from another thread. What was downloaded before the end is kept and continued the next time.

Argument: JSON with `name`, `revision` (or null), `timeout` in seconds for the first query, and `weights` and `others`,
glob patterns of files. Output: JSON with `path` and `revision`, or with `error`, the name of the exception's class.
"""

from __future__ import annotations

import json
import sys

from huggingface_hub import HfApi, snapshot_download


def _download(name: str, revision: str | None, timeout: float, weights: list[str], others: list[str]) -> dict[str, str]:
    # One short request first: the download's own retries take half a minute to report an unreachable hub.
    info = HfApi().model_info(name, revision=revision, timeout=timeout)
    names = [each.rfilename for each in info.siblings or []]
    if "*.safetensors" in weights and any(each.endswith(".safetensors") for each in names):
        weights = ["*.safetensors"]
    path = snapshot_download(name, revision=info.sha, allow_patterns=weights + others)
    return {"path": path, "revision": str(info.sha)}


def main() -> None:
    try:
        answer = _download(**json.loads(sys.argv[1]))
    except Exception as error:  # besides HTTP and file errors, whatever the transport library raises
        answer = {"error": type(error).__name__}
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main()
