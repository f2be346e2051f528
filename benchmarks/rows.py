"""Result rows, and the Markdown tables that are made of them."""

Rows = list[dict[str, str]]


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table whose first column is text and whose others are figures."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def last(rows: Rows, keys: tuple[str, ...]) -> dict[tuple[str, ...], dict[str, str]]:
    """The rows by these columns; a later row takes an earlier one's place."""
    return {tuple(row[key] for key in keys): row for row in rows}


def ratio(a: dict[str, str], b: dict[str, str]) -> float:
    return float(a["median_ms"]) / float(b["median_ms"])


def groups(rows: Rows, keys: tuple[str, ...]) -> dict[tuple[str, ...], dict[str, dict[str, str]]]:
    """The last row of each source, by these columns."""
    groups: dict[tuple[str, ...], dict[str, dict[str, str]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), {})[row["source"]] = row
    return groups
