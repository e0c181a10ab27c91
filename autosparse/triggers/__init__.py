"""When a network is pruned: at initialisation, while it trains, after it, or round by round with rewinding.

The settings of a moment are a frozen dataclass each; ``base`` is what the training loop knows of masks that change.
"""
