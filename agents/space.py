"""The action space as an agent sees it: the knobs of the brief, with whatever bounds the user has left open."""

from collections.abc import Iterable

from ..data.errors import ConfigError
from ..models.config import TrialConfig, fingerprint, make_config
from ..sandbox.action_space import Knob, effective, inert_changes
from ..tools.views import KnobValues


class Space:
    """The knobs that a session may turn."""

    def __init__(self, backbone: str, knobs: Iterable[Knob]) -> None:
        self.backbone = backbone
        self.knobs = {knob.name: knob for knob in knobs}
        self.defaults: KnobValues = {name: knob.defaults[backbone] for name, knob in self.knobs.items()}

    def complete(self, settings: KnobValues) -> KnobValues:
        """Every knob's value under `settings`, the knobs that differ from the default."""
        return self.defaults | settings

    def config(self, settings: KnobValues) -> TrialConfig | None:
        """The whole configuration, or None where the engine does not take the combination."""
        try:
            return make_config(self.backbone, **self.complete(settings))
        except ConfigError:
            return None

    def key(self, settings: KnobValues) -> str:
        """One text per configuration: equal keys train and rank alike. Empty for a combination that is not valid."""
        config = self.config(settings)
        return fingerprint(effective(config)) if config else ""

    def dimension(self, knob: str) -> str:
        """The dimension that a knob belongs to; 'optimisation' for one that the brief does not list."""
        return self.knobs[knob].dimension if knob in self.knobs else "optimisation"

    def offers(self, name: str, value: object) -> bool:
        """Whether the user's action space has this knob and lets it have this value."""
        try:
            return name in self.knobs and self.knobs[name].check(value) is not None
        except ConfigError:
            return False

    def allows(self, changes: KnobValues, over: KnobValues) -> bool:
        """Whether `changes` over the settings `over` use open knobs only, all act, and make a valid configuration."""
        if not all(self.offers(name, value) for name, value in changes.items()):
            return False
        config = self.config(over | changes)
        return config is not None and not inert_changes(config, changes)
