"""The one door of rich. Imported by a command when it has something to show."""
