"""GRIT models in other tools, a module each; nothing is imported before it is used (docs/integrations.md)."""
