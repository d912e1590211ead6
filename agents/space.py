"""The action space as an agent sees it: the knobs of the brief, within the bounds of the session's protocol."""

from collections.abc import Iterable

from ..data.errors import ConfigError
from ..models.config import TrialConfig, fingerprint, make_config
from ..models.knobs.trial_names import ENSEMBLE
from ..sandbox.action_space import Knob, effective, inert_changes
from ..tools.views import KnobValues


class Space:
    """The knobs that a session may change; `knobs` has those that can be searched, so not the one that names trials."""

    def __init__(self, backbone: str, knobs: Iterable[Knob]) -> None:
        self.backbone = backbone
        self._offered = {knob.name: knob for knob in knobs}
        self.knobs = {name: knob for name, knob in self._offered.items() if knob.type != "trials"}
        self.defaults: KnobValues = {name: knob.defaults[backbone] for name, knob in self.knobs.items()}

    @property
    def offers_ensembles(self) -> bool:
        """Whether a trial of the session may score several trained models together."""
        return ENSEMBLE in self._offered

    def complete(self, settings: KnobValues) -> KnobValues:
        """All knob values, given `settings`, the values that differ from the defaults."""
        return self.defaults | settings

    def config(self, settings: KnobValues) -> TrialConfig | None:
        """The full configuration, or None if the engine refuses the combination."""
        try:
            return make_config(self.backbone, **self.complete(settings))
        except ConfigError:
            return None

    def key(self, settings: KnobValues) -> str:
        """A key of the configuration; configurations with equal keys behave identically. Empty for an invalid one."""
        config = self.config(settings)
        return fingerprint(effective(config)) if config else ""

    def effective_changes(self, settings: KnobValues) -> KnobValues | None:
        """The `settings` that differ from the defaults and have an effect; None for an invalid combination."""
        config = self.config(settings)
        if config is None:
            return None
        changed = {name: value for name, value in settings.items() if value != self.defaults.get(name)}
        inert = inert_changes(config, changed)
        return {name: value for name, value in changed.items() if name not in inert}

    def dimension(self, knob: str) -> str:
        """The dimension of a knob; 'optimisation' for a knob that the brief does not list."""
        return self._offered[knob].dimension if knob in self._offered else "optimisation"

    def offers(self, name: str, value: object) -> bool:
        """Whether the session's action space has this knob and allows this value."""
        try:
            return name in self._offered and self._offered[name].check(value) is not None
        except ConfigError:
            return False

    def allows(self, changes: KnobValues, over: KnobValues) -> bool:
        """Whether `changes` over the settings `over` are offered, all take effect, and give a valid configuration."""
        if not all(self.offers(name, value) for name, value in changes.items()):
            return False
        config = self.config(over | changes)
        return config is not None and not inert_changes(config, changes)
