"""Figures and a self-contained HTML page that show what pruning did.

Imported where something is drawn: a command that draws nothing need not wait for matplotlib.
"""
