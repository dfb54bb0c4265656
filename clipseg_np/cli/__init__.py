"""What does the command take, and do?"""

from .parser import main

__all__ = ["main"]
