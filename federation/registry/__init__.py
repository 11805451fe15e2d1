"""Names for components, so that a configuration can speak of them."""

from federation.registry.registry import Registry, load_plugins, register, resolve

__all__ = ["Registry", "load_plugins", "register", "resolve"]
