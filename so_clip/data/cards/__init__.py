"""Dataset cards: the YAML files in datasets/, read and checked."""
