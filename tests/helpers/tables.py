"""Printed Markdown tables, read back."""


def rows(text: str) -> list[list[str]]:
    """The cells of a printed Markdown table, below its head."""
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"
    ][2:]
