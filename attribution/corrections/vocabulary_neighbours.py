"""The nearest neighbours of each token's embedding, as scikit-learn finds them, in pieces between which a job can stop.

Inseq asks for all of them in one call, once for each model: a minute for 50,000 tokens, which nothing can interrupt.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from inseq.attr.feat.ops import monotonic_path_builder
from scipy.sparse import csr_matrix
from sklearn.neighbors import NearestNeighbors, kneighbors_graph

from attribution.cancel_points import check_stop

_PIECE = 512  # tokens


def neighbours_graph(
    vectors: Any, n_neighbors: int, *, mode: str = "distance", n_jobs: int | None = None
) -> csr_matrix:
    """What `sklearn.neighbors.kneighbors_graph` returns, [tokens, tokens]: a token is no neighbour of its own."""
    tokens = len(vectors)
    if mode != "distance" or not 0 < n_neighbors < tokens:
        whole: csr_matrix = kneighbors_graph(vectors, n_neighbors=n_neighbors, mode=mode, n_jobs=n_jobs)
        return whole
    search = NearestNeighbors(n_neighbors=n_neighbors, n_jobs=n_jobs).fit(vectors)
    indices, distances = [], []
    for first in range(0, tokens, _PIECE):
        check_stop()
        own = np.arange(first, min(first + _PIECE, tokens))[:, None]
        far, found = search.kneighbors(vectors[first : first + _PIECE], n_neighbors + 1)
        is_other = found != own
        # Where so many others are equal to the token that it is not among them, the first one goes, as in scikit-learn.
        is_other[is_other.all(axis=1), 0] = False
        indices.append(found[is_other])
        distances.append(far[is_other])
    rows = np.arange(0, tokens * n_neighbors + 1, n_neighbors)
    return csr_matrix((np.concatenate(distances), np.concatenate(indices), rows), shape=(tokens, tokens))


def install() -> None:
    """Have Inseq search by `neighbours_graph`. The two give the same, so no caller in the process sees a difference."""
    monotonic_path_builder.kneighbors_graph = neighbours_graph
