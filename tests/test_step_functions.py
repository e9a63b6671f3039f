"""Inseq's step functions from their definitions: base, sign and unit of each, on a real distribution.

The networks are float64 (the service's loader gets them so), and expected values come from plain Transformers' logits.
"""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from inseq.attr.step_functions import STEP_SCORES_MAP
from inseq.utils import filter_logits
from transformers import set_seed

from attribution.engine import AttributionEngine
from attribution.model_cache import loading
from attribution.results import stored_form
from attribution.run.rounding import Float64Throughout
from models import AttributionRequest
from settings import Settings
from tests.conftest import BUNDLED, LOOKUP, PHRASEBOOK, PROMPT, SENTENCE
from tests.first_principles import Plain
from tests.fresh_engines import WITH_DROPOUT

TEXT = {LOOKUP: PROMPT, PHRASEBOOK: SENTENCE, WITH_DROPOUT: PROMPT}
TARGET = {LOOKUP: f"{PROMPT} tea. Ben", PHRASEBOOK: "il cane rosso vede", WITH_DROPOUT: f"{PROMPT} tea. Ben"}
OTHER = {LOOKUP: f"{PROMPT} milk. Emma", PHRASEBOOK: "un gatto nero vede"}
TOP_P, TOP_K = 0.9999, 3

# From log-probabilities p of the text and q of the contrast ([vocabulary] each), logits x and y, ids t of the text's
# token and u of the contrast's. Entropies, divergences and logarithms are in nats, but P-CXMI is in bits.
DEFINITIONS = {
    "logit": lambda p, q, x, y, t, u: x[t],
    "probability": lambda p, q, x, y, t, u: np.exp(p[t]),
    "entropy": lambda p, q, x, y, t, u: -(np.exp(p) * p).sum(),
    "crossentropy": lambda p, q, x, y, t, u: -p[t],
    "perplexity": lambda p, q, x, y, t, u: np.exp(-p[t]),
    "contrast_logits": lambda p, q, x, y, t, u: y[u],
    "contrast_prob": lambda p, q, x, y, t, u: np.exp(q[u]),
    "contrast_logits_diff": lambda p, q, x, y, t, u: x[t] - y[u],
    "contrast_prob_diff": lambda p, q, x, y, t, u: np.exp(p[t]) - np.exp(q[u]),
    # -log2 of the ratio of the text's probability and the contrast's: positive where the contrast's is higher.
    "pcxmi": lambda p, q, x, y, t, u: (q[u] - p[t]) / np.log(2),
    "in_context_pvi": lambda p, q, x, y, t, u: q[u] - p[t],
    "kl_divergence": lambda p, q, x, y, t, u: (np.exp(p) * (p - q)).sum(),
    # The smallest set of the most likely tokens whose probability reaches `top_p` (Holtzman et al., 2020).
    "top_p_size": lambda p, q, x, y, t, u: 1 + (np.cumsum(np.sort(np.exp(p))[::-1]) < TOP_P).sum(),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The models' folders. LOOKUP has no dropout, so there is a copy that has."""
    root = tmp_path_factory.mktemp("models")
    copy = shutil.copytree(BUNDLED / LOOKUP, root / WITH_DROPOUT)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"resid_pdrop": 0.1, "embd_pdrop": 0.1}))
    return {LOOKUP: BUNDLED / LOOKUP, PHRASEBOOK: BUNDLED / PHRASEBOOK, WITH_DROPOUT: copy}


@pytest.fixture(scope="module")
def engine(folders):
    """An engine whose networks are float64."""
    load = loading.AutoModelForCausalLM.from_pretrained, loading.AutoModelForSeq2SeqLM.from_pretrained
    with pytest.MonkeyPatch.context() as patch:
        for auto, inner in zip((loading.AutoModelForCausalLM, loading.AutoModelForSeq2SeqLM), load, strict=True):
            patch.setattr(auto, "from_pretrained", _in_float64(inner))
        yield AttributionEngine(Settings(model_dirs=(str(folders[WITH_DROPOUT].parent),)))


def _in_float64(load):
    def from_pretrained(*arguments, **named):
        return load(*arguments, **named | {"dtype": torch.float64})

    return from_pretrained


@contextmanager
def default_float64():
    """Inseq's functions create tensors of the default dtype."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def run(engine, model, /, **body):
    request = engine.check(AttributionRequest(
        **{"model": model, "method": "dummy", "input_text": TEXT[model], "generated_text": TARGET[model]} | body
    ))  # fmt: skip
    with default_float64(), Float64Throughout():
        parts = engine.run(request, device="cpu", report=lambda _: None, should_cancel=lambda: False)
    output = stored_form.decode(next(part.content for part in parts if part.kind == "raw"))
    return output[0], output.info


@pytest.fixture(scope="module", params=[LOOKUP, PHRASEBOOK])
def model(request):
    return request.param


@pytest.fixture(scope="module")
def rows(model):
    """The arguments of `DEFINITIONS` at each step."""
    with Float64Throughout():
        plain, other = (Plain(BUNDLED / model, TEXT[model], each[model], torch.float64) for each in (TARGET, OTHER))
        assert plain.target.shape == other.target.shape
        found = []
        with torch.no_grad():
            for step in plain.steps:
                x, y = plain.logits(step)[0], other.logits(step)[0]
                p, q = x.log_softmax(-1), y.log_softmax(-1)
                ids = int(plain.target[0, step]), int(other.target[0, step])
                found.append((*(each.numpy() for each in (p, q, x, y)), *ids))
    return found


@pytest.mark.parametrize("way", ["inseq", "auto"])
def test_definitions(engine, model, rows, way):
    names = [*DEFINITIONS]
    assert {*names, "mc_dropout_prob_avg"} == {each for each in STEP_SCORES_MAP if ":" not in each}
    arguments = {"contrast_targets": OTHER[model]}
    found, _ = run(
        engine, model, engine=way, step_scores=[each for each in names if each != "top_p_size"],
        step_scores_args=arguments,
    )  # fmt: skip
    sizes, _ = run(engine, model, engine=way, step_scores=["top_p_size"], step_scores_args={"top_p": TOP_P})
    for name, definition in DEFINITIONS.items():
        expected = [definition(*each) for each in rows]
        assert len({round(float(each), 9) for each in expected}) > 1, name
        scores = (sizes if name == "top_p_size" else found).step_scores[name]
        np.testing.assert_allclose(scores.double().numpy(), expected, rtol=1e-6, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("way", ["inseq", "auto"])
@pytest.mark.parametrize("noisy", [WITH_DROPOUT, PHRASEBOOK])
def test_mc_dropout_prob_avg(engine, folders, noisy, way):
    """How many standard deviations (of a sample: n - 1) the probability is above the mean of `n_mcd_steps`
    probabilities with dropout; the same draws are made here.
    """
    body = {"step_scores": ["mc_dropout_prob_avg"], "step_scores_args": {"n_mcd_steps": 4}}
    found, _ = run(engine, noisy, engine=way, seed=7, **body)
    expected = []
    with Float64Throughout(), torch.no_grad():
        plain = Plain(folders[noisy], TEXT[noisy], TARGET[noisy], torch.float64)
        plain.network.config.use_cache = False
        set_seed(7)
        for step in plain.steps:
            clear = plain.probability(plain.logits(step), step).item()
            plain.network.train()
            samples = [plain.probability(plain.logits(step), step).item() for _ in range(4)]
            plain.network.eval()
            expected.append((clear - np.mean(samples)) / np.std(samples, ddof=1))
    scores = found.step_scores["mc_dropout_prob_avg"].double().numpy()
    assert len({round(each, 6) for each in expected}) == len(expected)
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


@pytest.mark.parametrize("filters", [{"top_k": TOP_K}, {"top_p": TOP_P}, {"top_k": TOP_K, "top_p": TOP_P}])
def test_kl_divergence_of_kept_tokens(engine, model, rows, filters):
    """The divergence over the tokens that Inseq's own filter keeps; Inseq's is NaN."""
    body = {
        "step_scores": ["kl_divergence"], "step_scores_args": {"contrast_targets": OTHER[model]} | filters,
    }  # fmt: skip
    expected = []
    for _, _, x, y, *_ in rows:
        kept = [
            each[each > -torch.inf] for each in filter_logits(torch.tensor(x)[None], torch.tensor(y)[None], **filters)
        ]
        p, q = (each.log_softmax(-1).numpy() for each in kept)
        assert 0 < len(p) < len(x)
        expected.append((np.exp(p) * (p - q)).sum())
    found, info = run(engine, model, **body)
    np.testing.assert_allclose(found.step_scores["kl_divergence"].double().numpy(), expected, rtol=1e-6, atol=1e-9)
    assert info["corrections"] == ["kl_divergence_of_kept_tokens"]
    theirs, _ = run(engine, model, corrections=False, **body)
    assert theirs.step_scores["kl_divergence"].isnan().any()


@pytest.mark.parametrize("way", ["inseq", "single_pass"])
def test_perplexity(engine, model, way):
    """1 / probability; its gradient is that of the probability times -1 / probability squared."""
    found, info = run(engine, model, method="saliency", engine=way, attributed_fn="perplexity",
                      step_scores=["perplexity", "probability"])  # fmt: skip
    probability = found.step_scores["probability"].double()
    np.testing.assert_allclose(found.step_scores["perplexity"].double().numpy(), (1 / probability).numpy(), rtol=1e-6)
    assert "perplexity_of_nats" in info["corrections"]
    of_probability, _ = run(engine, model, method="saliency", engine=way, attributed_fn="probability")
    for name in ("source_attributions", "target_attributions"):
        ours, theirs = getattr(found, name), getattr(of_probability, name)
        if ours is not None:
            expected = theirs / probability[:, None] ** 2
            torch.testing.assert_close(ours.double(), expected.double(), rtol=1e-5, atol=1e-9, equal_nan=True)
