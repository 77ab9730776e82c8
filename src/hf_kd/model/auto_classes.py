"""Makes `ErasedConfig` and `ErasedModel` known to the Auto classes of transformers, which load a saved model by them.

`import hf_kd` loads neither torch nor transformers, so each is registered when it can be asked for. `ErasedConfig`, once
both it and the module of `AutoConfig` have executed: a finder on `sys.meta_path` watches for the two. `ErasedModel`, once
there is an `ErasedConfig` object: no Auto class looks for a model without one. Importing it as soon as the Auto classes of
models are there would be too early: transformers imports those in the middle of modules that `ErasedModel` needs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

AUTO_CONFIG = "transformers.models.auto.configuration_auto"
AUTO_MODELS = "transformers.models.auto.modeling_auto"
CONFIG = "hf_kd.model.configuration"
MODELS = {
    "AutoModelForImageClassification": ("hf_kd.model.erased_model", "ErasedModel"),
    "AutoModelForZeroShotImageClassification": ("hf_kd.model.erased_model", "ErasedModel"),
    "AutoModel": ("hf_kd.model.feature_model", "ErasedFeatureModel"),
}
"""Which class each Auto class loads, and its module: who asks for no head gets features."""


def register_model() -> None:
    """Tell the Auto classes of models which class belongs to `ErasedConfig`. Costs nothing worth saving the second time."""
    auto = import_module(AUTO_MODELS)
    for name, (module, model) in MODELS.items():
        erased = getattr(import_module(module), model)
        getattr(auto, name).register(erased.config_class, erased, exist_ok=True)


class AutoConfigFinder(MetaPathFinder):
    """Leaves finding to the finders behind it, and registers `ErasedConfig` when what they found has executed."""

    def __init__(self) -> None:
        self.executed: set[str] = set()
        """Watched modules whose code has run to its end; that they stand in `sys.modules` does not say so."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in (AUTO_CONFIG, CONFIG):
            return None
        for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:  # those before it have declined
            spec = finder.find_spec(fullname, path, target) if hasattr(finder, "find_spec") else None
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _ThenRegister(spec.loader, self)
                return spec
        return None

    def has_executed(self, name: str) -> None:
        """Register where both modules are there; import ours where transformers' is."""
        self.executed.add(name)
        if CONFIG not in sys.modules:
            import_module(CONFIG)  # which comes back here when it has executed
        elif self.executed == {AUTO_CONFIG, CONFIG}:
            own = sys.modules[CONFIG]
            sys.modules[AUTO_CONFIG].AutoConfig.register(own.MODEL_TYPE, own.ErasedConfig, exist_ok=True)


class _ThenRegister(Loader):
    """A loader that tells the finder when a module has executed, and then leaves the module to the loader it wraps."""

    def __init__(self, loader: Any, finder: AutoConfigFinder):
        self._loader = loader
        self._finder = finder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__
        self._finder.executed.discard(name)  # while it is reloaded, its names are those from before
        spec: Any = module.__spec__
        spec.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._finder.has_executed(name)


def install() -> None:
    """Watch from now on, and register at once where `AutoConfig` is there. A second call replaces the first."""
    for old in [finder for finder in sys.meta_path if type(finder).__qualname__ == AutoConfigFinder.__qualname__]:
        sys.meta_path.remove(old)
    finder = AutoConfigFinder()
    sys.meta_path.insert(0, finder)
    for name in [name for name in (CONFIG, AUTO_CONFIG) if name in sys.modules]:
        import_module(name)  # waits where another thread is at it
        finder.has_executed(name)
