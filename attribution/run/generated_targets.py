"""The targets that a model generates for a request's inputs, each generated once for all methods of a comparison."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

from attribution.catalogue.generation_catalogue import GenerationLimits
from attribution.corrections.registry import Ledger
from attribution.isolation import RANDOM_DRAWS, RandomState, held
from attribution.model_cache.loading import LoadedModel
from attribution.run.method_progress import MethodProgress
from attribution.text import generation
from attribution.text.encoding import Prompt
from attribution.text.generation import GeneratedTarget
from attribution.text.generation_settings import GenerationSettings, generation_settings
from models import AttributionRequest


class GeneratedTargets:
    """Generates targets, and remembers them by the number of their input."""

    def __init__(
        self,
        *,
        are_shared: bool = False,
        limits: GenerationLimits | None = None,
        should_cancel: Callable[[], bool] = lambda: False,
    ) -> None:
        """`are_shared`: several methods use them, and any of these may draw random numbers after the generation.

        `limits`: see `generation_settings`. `should_cancel` is asked while other jobs draw.
        """
        self._limits = limits
        self._should_cancel = should_cancel
        self._are_shared = are_shared
        self._generated: dict[int, GeneratedTarget] = {}
        self._settings: dict[int, GenerationSettings] = {}
        self.seconds = 0.0  # that the generations took

    @property
    def are_known(self) -> bool:
        """Whether they were generated for an earlier method."""
        return bool(self._generated)

    def settings_of_input(
        self, index: int, prompt: Prompt, request: AttributionRequest, loaded: LoadedModel, languages: dict[str, int]
    ) -> GenerationSettings:
        """How the target for input number `index` is generated.

        `languages`: see `languages.spoken`. Raises `InputRejected` where the input leaves no room or the
        `generation_args` contradict each other.
        """
        if index not in self._settings:
            self._settings[index] = generation_settings(loaded, request, prompt, languages, self._limits)
        return self._settings[index]

    def of_input(
        self,
        index: int,
        prompt: Prompt,
        request: AttributionRequest,
        loaded: LoadedModel,
        *,
        languages: dict[str, int],
        draws_random: bool,
        progress: MethodProgress,
    ) -> GeneratedTarget:
        """The target for input number `index`.

        `languages`: see `languages.spoken`. `draws_random`: the method draws random numbers. Raises `NothingGenerated`,
        and `InputRejected` where the input leaves no room or the `generation_args` fail.
        """
        if index not in self._generated:
            settings = self.settings_of_input(index, prompt, request, loaded, languages)
            progress.begin_generating()
            began = time.monotonic()
            self._generated[index] = self._generate(
                prompt, request, loaded, settings, draws_random, partial(progress.request.write_text, index)
            )
            self.seconds += time.monotonic() - began
        return self._generated[index]

    def _generate(
        self,
        prompt: Prompt,
        request: AttributionRequest,
        loaded: LoadedModel,
        settings: GenerationSettings,
        draws_random: bool,
        on_text: Callable[[str], None],
    ) -> GeneratedTarget:
        ledger = Ledger(enabled=request.corrections)
        keeps_state = draws_random or self._are_shared
        draws = keeps_state or settings.samples
        with held(RANDOM_DRAWS, self._should_cancel) if draws else nullcontext():
            if draws:
                RandomState.seeded(request.seed)
            target = generation.generate(loaded, request, prompt, settings, ledger, on_text)
            return GeneratedTarget(target, RandomState() if keeps_state else None, settings, ledger.met)
