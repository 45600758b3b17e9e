"""What goes wrong on the way to a pruned model."""


class PruneError(ValueError):
    """A model that cannot be pruned so, or an output that cannot be written; the message is one line."""
