"""featstore in other evaluation frameworks. Each module needs the extra of its name."""
