"""What SO's named settings may be, for the optimizer and, without torch, for the command line."""

CHOICES: dict[str, tuple[str, ...]] = {
    "order": ("prune_first", "update_first"),
    "bias_correction": ("step", "age"),
    "gradient_selection": ("random", "importance", "dense"),
    "moment_selection": ("importance", "random", "dense", "none"),
}
