"""The names that X-ARES imports for its speech recognition task, which is not run here."""

__all__ = ["AutoModelForCausalLM", "AutoTokenizer"]


class AutoModelForCausalLM:
    """Nothing."""


class AutoTokenizer:
    """Nothing."""
