"""One picture per shape: its processes, what flows between them, where the data is. Inline SVG from a small table."""

from __future__ import annotations

from html import escape
from typing import NamedTuple

CELL_WIDTH, CELL_HEIGHT = 218, 64
BOX_WIDTH, BOX_HEIGHT = 122, 44
MARGIN = 10


class Box(NamedTuple):
    """A process, the client, or a database, in a grid of columns and rows."""

    name: str
    column: float
    row: float
    kind: str = "process"  # or client, memory, database
    note: str = ""


class Arrow(NamedTuple):
    """Something that flows. `kind`: sync (the sender waits), later (each period)."""

    source: str
    target: str
    label: str = ""
    kind: str = "sync"


class Picture(NamedTuple):
    boxes: tuple[Box, ...]
    arrows: tuple[Arrow, ...]


_CLIENT = Box("clients", 0, 1, "client")


def _databases(column: float, note: str) -> tuple[Box, ...]:
    names = ("users.db", "products.db", "orders.db")
    return tuple(Box(name, column, row, "database", note) for row, name in enumerate(names))


def _original(column: float) -> tuple[tuple[Box, ...], tuple[Arrow, ...]]:
    """The order service with what is behind it, from a column on."""
    boxes = (
        Box("order service", column, 1), Box("user service", column + 1, 0), Box("product service", column + 1, 2),
        Box("users.db", column + 2, 0, "database", "commit per write"),
        Box("orders.db", column + 2, 1, "database", "commit per write"),
        Box("products.db", column + 2, 2, "database", "commit per write"),
    )  # fmt: skip
    arrows = (
        Arrow("order service", "user service", "HTTP"), Arrow("order service", "product service", "HTTP"),
        Arrow("order service", "orders.db"), Arrow("user service", "users.db"), Arrow("product service", "products.db"),
    )  # fmt: skip
    return boxes, arrows


def _behind(boxes: tuple[Box, ...], arrows: tuple[Arrow, ...], column: float) -> Picture:
    more_boxes, more_arrows = _original(column)
    return Picture((*boxes, *more_boxes), (*arrows, *more_arrows))


def _millrace(journal: str, append: str) -> Picture:
    """The server: what the journal is when a write is acknowledged, and how it came there."""
    boxes = (
        _CLIENT, Box("workers", 1, 1, "process", "one per core"), Box("manager", 2, 0),
        Box("shared memory", 2, 2, "memory", "table"), Box("journal", 3, 0, "database", journal),
        Box("persister", 3, 2), Box("writers", 4, 2, "process", "one per database"),
        Box("3 databases", 4, 0.9, "database", "commit per batch"),
    )  # fmt: skip
    arrows = (
        Arrow("clients", "workers", "every request"), Arrow("workers", "manager", "writes"),
        Arrow("shared memory", "workers", "reads"), Arrow("manager", "journal", append),
        Arrow("manager", "shared memory", "publish"), Arrow("shared memory", "persister", "changes", "later"),
        Arrow("persister", "manager", "sync?, checkpoints", "later"),
        Arrow("persister", "writers", "rows", "later"), Arrow("writers", "3 databases", "", "later"),
    )  # fmt: skip
    return Picture(boxes, arrows)


_WAITING_CLIENT = Box("clients", 0, 1, "client", "wait during a flush")
_CACHE = Box("cache", 1, 1, "memory", "hash map")

PICTURES = {
    "original": _behind((_CLIENT,), (Arrow("clients", "order service", "every request"),), 1),
    "v1": _behind(
        (_WAITING_CLIENT, _CACHE), (Arrow("clients", "cache", "every request"),
                                    Arrow("cache", "order service", "all, cache waits", "later")), 2),
    "v2": _behind(
        (_CLIENT, _CACHE, Box("transfer service", 2, 1, "process", "waits")),
        (Arrow("clients", "cache", "every request"), Arrow("cache", "transfer service", "all", "later"),
         Arrow("transfer service", "order service", "one by one", "later")), 3),
    "v3": Picture(
        (_CLIENT, _CACHE, Box("user push", 2, 0), Box("product push", 2, 1), Box("order push", 2, 2),
         *_databases(3, "commit per batch")),
        (Arrow("clients", "cache", "every request"), Arrow("cache", "user push", "", "later"),
         Arrow("cache", "product push", "changed rows", "later"), Arrow("cache", "order push", "", "later"),
         Arrow("user push", "users.db", "", "later"), Arrow("product push", "products.db", "", "later"),
         Arrow("order push", "orders.db", "", "later"))),
    "millrace": _millrace("synced", "group commit"),
    "millrace-memory": _millrace("synced later", "write, no sync"),
}  # fmt: skip

LEGEND = (
    "Solid: the sender waits for it before it answers. Dashed: later, each period. Blue: what reads are answered from"
    " in memory. A cylinder is a file."
)


def draw(name: str) -> str:
    """Return the picture of a subject as SVG."""
    boxes, arrows = PICTURES[name]
    places = {box.name: box for box in boxes}
    width = max(box.column for box in boxes) * CELL_WIDTH + BOX_WIDTH + 2 * MARGIN
    height = max(box.row for box in boxes) * CELL_HEIGHT + BOX_HEIGHT + 2 * MARGIN
    parts = [_arrow(places[arrow.source], places[arrow.target], arrow) for arrow in arrows]
    parts += [_box(box) for box in boxes]
    return (
        f'<svg class="picture" viewBox="0 0 {width:.0f} {height:.0f}" style="max-width:{width:.0f}px" role="img"'
        f' aria-label="processes of {escape(name)}">{"".join(parts)}</svg>'
    )


def _corner(box: Box) -> tuple[float, float]:
    return MARGIN + box.column * CELL_WIDTH, MARGIN + box.row * CELL_HEIGHT


def _box(box: Box) -> str:
    x, y = _corner(box)
    middle = x + BOX_WIDTH / 2
    if box.kind == "database":
        curve = 6
        shape = (
            f'<path class="box database" d="M{x} {y + curve} a{BOX_WIDTH / 2} {curve} 0 0 1 {BOX_WIDTH} 0'
            f" v{BOX_HEIGHT - 2 * curve} a{BOX_WIDTH / 2} {curve} 0 0 1 -{BOX_WIDTH} 0 z"
            f' M{x} {y + curve} a{BOX_WIDTH / 2} {curve} 0 0 0 {BOX_WIDTH} 0"/>'
        )
    else:
        round_by = BOX_HEIGHT / 2 if box.kind == "client" else 7
        size = f'width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="{round_by}"'
        shape = f'<rect class="box {box.kind}" x="{x}" y="{y}" {size}/>'
    shift = (0 if not box.note else -5) + (4 if box.kind == "database" else 0)
    title = f'<text class="title" x="{middle}" y="{y + BOX_HEIGHT / 2 + 4 + shift}">{escape(box.name)}</text>'
    note = f'<text class="note" x="{middle}" y="{y + BOX_HEIGHT / 2 + 17 + shift}">{escape(box.note)}</text>'
    return shape + title + (note if box.note else "")


def _arrow(source: Box, target: Box, arrow: Arrow) -> str:
    (x1, y1), (x2, y2) = _corner(source), _corner(target)
    if source.column == target.column:
        down = 1 if target.row > source.row else -1
        start = x1 + BOX_WIDTH / 2, y1 + (BOX_HEIGHT if down > 0 else 0)
        end = x2 + BOX_WIDTH / 2, y2 + (0 if down > 0 else BOX_HEIGHT)
    elif source.column < target.column:
        start, end = (x1 + BOX_WIDTH, y1 + BOX_HEIGHT / 2), (x2, y2 + BOX_HEIGHT / 2)
    else:
        start, end = (x1, y1 + BOX_HEIGHT / 2), (x2 + BOX_WIDTH, y2 + BOX_HEIGHT / 2)
    middle = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
    anchor = "start" if source.column == target.column else "middle"
    offset = (6, 4) if source.column == target.column else (0, -5)
    line = (
        f'<line class="arrow {arrow.kind}" x1="{start[0]}" y1="{start[1]}" x2="{end[0]}" y2="{end[1]}"'
        ' marker-end="url(#tip)"/>'
    )
    text = (
        f'<text class="label" text-anchor="{anchor}" x="{middle[0] + offset[0]}" y="{middle[1] + offset[1]}">'
        f"{escape(arrow.label)}</text>"
    )
    return line + (text if arrow.label else "")
