"""headstart: do you need pre-training, or can you train from scratch?"""

__version__ = "0.1.0"
