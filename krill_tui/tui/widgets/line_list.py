"""A virtual list: only the lines in view are ever rendered, so 100,000 rows cost what 30 do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from textual import events
from textual.content import Content
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.visual import Visual

from krill_tui.tui import keys


class Row(NamedTuple):
    """One line. Neighbours with the same key belong together: the cursor covers them all."""

    key: str
    data: Any = None
    pick: bool = True
    """Whether the cursor may stand on it."""


class LineList(ScrollView, can_focus=True):
    """Rows with a cursor. A subclass says in `line` how a row looks."""

    BINDINGS = keys.bindings("list")
    COMPONENT_CLASSES: ClassVar = {"line-list--cursor", "line-list--blurred-cursor"}
    DEFAULT_CSS = """
    LineList {
        height: 1fr;
        text-wrap: nowrap;
        text-overflow: ellipsis;
        scrollbar-size-vertical: 1;
        overflow-x: hidden;
        & > .line-list--cursor { background: $primary 25%; }
        & > .line-list--blurred-cursor { background: $foreground 8%; }
    }
    """

    @dataclass
    class Picked(Message):
        """A row was opened with enter or a click."""

        list: LineList
        row: Row

        @property
        def control(self) -> LineList:
            return self.list

    @dataclass
    class Moved(Message):
        """The cursor is on another row."""

        list: LineList
        row: Row

        @property
        def control(self) -> LineList:
            return self.list

    def __init__(self, *, id: str | None = None, follow: bool = False) -> None:
        """`follow`: the cursor stays on the last row while rows come, until it is moved off."""
        super().__init__(id=id)
        self.rows: Sequence[Row] = []
        self.follow = follow
        self._cursor = -1
        """Index of the first line of the row under the cursor, -1 for none."""
        self._placed = False
        """Whether a person put the cursor somewhere; until then, and at the top, it keeps to the first row."""
        self._announced = ""
        self._empty: Content = Content("")
        self._empty_strips: tuple[int, list[Strip]] = (-1, [])

    def line(self, row: Row, width: int) -> Content:
        """How a row looks, in about `width` cells; what is longer is cut."""
        return Content(row.key)

    @property
    def cursor_row(self) -> Row | None:
        return self.rows[self._cursor] if 0 <= self._cursor < len(self.rows) else None

    @property
    def empty(self) -> Content:
        """What stands here while there are no rows and none are searched for."""
        return self._empty

    @empty.setter
    def empty(self, content: Content) -> None:
        self._empty = content
        self._empty_strips = (-1, [])
        self.refresh()

    def nothing(self) -> Content:
        """What stands here now that there are no rows."""
        return self._empty

    def set_rows(self, rows: Sequence[Row]) -> None:
        """Replace all rows; the cursor stays on its row, or near where that was."""
        before = self.cursor_row
        at_end = self.follow and (before is None or self._group_end(self._cursor) == len(self.rows))
        offset = self._cursor - self.scroll_offset.y
        self.rows = rows
        self._empty_strips = (-1, [])
        self.virtual_size = Size(self.scrollable_content_region.width, len(rows))
        if at_end:
            self._cursor = self._pickable(len(rows) - 1, -1)
            self._scroll_to_cursor()
        elif before is not None and self._placed:
            found = self._find(before.key, self._cursor)
            moved = found is not None and found != self._cursor
            self._cursor = self._pickable(min(self._cursor, len(rows) - 1), -1) if found is None else found
            if moved and self.scroll_offset.y > 0:
                self.scroll_to(y=max(0, self._cursor - offset), animate=False)
        else:
            self._cursor = self._pickable(0, 1)
        self.call_later(self._announce)
        self.refresh()

    def select(self, key: str) -> bool:
        """Put the cursor on a row; False when it is not there."""
        found = self._find(key, 0)
        if found is None:
            return False
        self._move_to(found)
        return True

    def render_line(self, y: int) -> Strip:
        width = self.scrollable_content_region.width
        if not self.rows:
            return self._empty_line(y, width)
        index = y + self.scroll_offset.y
        if index >= len(self.rows):
            return Strip.blank(width, self.visual_style.rich_style)
        row = self.rows[index]
        style = self.visual_style
        current = self.cursor_row
        if current is not None and row.pick and row.key == current.key:
            name = "line-list--cursor" if self.has_focus else "line-list--blurred-cursor"
            style = self.get_visual_style(name)
        strips = Visual.to_strips(
            self, self.line(row, width).truncate(width, ellipsis=True), width, 1, style, pad=True
        )
        return strips[0] if strips else Strip.blank(width, style.rich_style)

    def action_move(self, rows: int) -> None:
        if not self.rows:
            return
        target = self._cursor
        if rows > 0:
            target = self._pickable(self._group_end(self._cursor), 1)
        elif target > 0:
            target = self._group_start(self._pickable(self._cursor - 1, -1))
        self._move_to(target)

    def action_page(self, pages: int) -> None:
        if not self.rows:
            return
        step = max(1, self.scrollable_content_region.height - 1)
        aim = min(max(self._cursor + pages * step, 0), len(self.rows) - 1)
        self._move_to(self._pickable(aim, pages))

    def action_edge(self, end: int) -> None:
        if self.rows:
            self._move_to(self._pickable(len(self.rows) - 1 if end > 0 else 0, -end))

    def action_pick(self) -> None:
        if row := self.cursor_row:
            self.post_message(self.Picked(self, row))

    def on_click(self, event: events.Click) -> None:
        index = event.get_content_offset_capture(self).y + self.scroll_offset.y
        if 0 <= index < len(self.rows) and self.rows[index].pick:
            again = self._group_start(index) == self._cursor
            self._move_to(index)
            if again or event.chain > 1:
                self.action_pick()

    def on_resize(self) -> None:
        self.virtual_size = Size(self.scrollable_content_region.width, len(self.rows))
        self._empty_strips = (-1, [])

    def notify_style_update(self) -> None:
        super().notify_style_update()
        self._empty_strips = (-1, [])

    def on_focus(self) -> None:
        self.refresh()

    def on_blur(self) -> None:
        self.refresh()

    def _move_to(self, index: int) -> None:
        if not 0 <= index < len(self.rows):
            return
        index = self._group_start(index)
        self._cursor = index
        self._placed = index > self._pickable(0, 1)
        self._scroll_to_cursor()
        self.call_later(self._announce)
        self.refresh()

    def _announce(self) -> None:
        """Say where the cursor is, if that is new. Called later, as the list itself: what a parent's handler
        posts through its child is not bubbled past that parent."""
        row = self.cursor_row
        if row is not None and row.key != self._announced:
            self._announced = row.key
            self.post_message(self.Moved(self, row))

    def _scroll_to_cursor(self) -> None:
        if self._cursor >= 0:
            height = self._group_end(self._cursor) - self._cursor
            self.scroll_to_region(
                Region(0, self._cursor, 1, height), animate=False, force=True, immediate=True
            )
        if self._cursor <= 1 and not any(row.pick for row in self.rows[: self._cursor]):
            self.scroll_to(y=0, animate=False, immediate=True)

    def _find(self, key: str, near: int) -> int | None:
        """Index of a row, looked for first where it was."""
        if 0 <= near < len(self.rows) and self.rows[near].key == key:
            return self._group_start(near)
        return next((i for i, row in enumerate(self.rows) if row.key == key and row.pick), None)

    def _pickable(self, index: int, direction: int) -> int:
        """The nearest row a cursor may stand on, searched in one direction, then in the other."""
        for step in (direction, -direction):
            at = index
            while 0 <= at < len(self.rows):
                if self.rows[at].pick:
                    return self._group_start(at)
                at += step
        return -1

    def _group_start(self, index: int) -> int:
        while index > 0 and self.rows[index - 1].key == self.rows[index].key:
            index -= 1
        return index

    def _group_end(self, index: int) -> int:
        """One past the last line of a row."""
        if not 0 <= index < len(self.rows):
            return len(self.rows)
        key = self.rows[index].key
        while index < len(self.rows) and self.rows[index].key == key:
            index += 1
        return index

    def _empty_line(self, y: int, width: int) -> Strip:
        if self._empty_strips[0] != width:
            style = self.visual_style
            lines = [Content(""), *self.nothing().wrap(max(1, width - 1))]
            if len(lines) > self.size.height:
                lines = [line for line in lines if line.plain.strip()]
            strips = [
                s for line in lines for s in Visual.to_strips(self, line, max(1, width), 1, style, pad=True)
            ]
            self._empty_strips = (width, strips)
        strips = self._empty_strips[1]
        return strips[y] if y < len(strips) else Strip.blank(width, self.visual_style.rich_style)
