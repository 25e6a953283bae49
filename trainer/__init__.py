"""A training program driven by config: one plain loop, data -> model -> loss -> step. Start reading at main.py."""
