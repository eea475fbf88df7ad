"""The model card of an exported plan: README.md as model hubs show it."""
