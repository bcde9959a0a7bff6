"""The two colour themes of the app."""

from __future__ import annotations

from textual.theme import Theme

DARK = Theme(
    name="krill-dark",
    primary="#f08a72",
    secondary="#7aa7b8",
    accent="#f4b59f",
    foreground="#d7dfe2",
    background="#0d1418",
    surface="#11191e",
    panel="#1a252b",
    success="#84c794",
    warning="#e3bd75",
    error="#e8727c",
    dark=True,
    variables={"muted": "#8b9aa1", "border": "#33444d", "border-blurred": "#2a3840"},
)
LIGHT = Theme(
    name="krill-light",
    primary="#b8442b",
    secondary="#2f6b80",
    accent="#8f3a26",
    foreground="#1d2629",
    background="#f6f4f1",
    surface="#fbfaf8",
    panel="#eae6e0",
    success="#27713f",
    warning="#8a5d00",
    error="#b0202c",
    dark=False,
    variables={"muted": "#6a7377", "border": "#c2bab0", "border-blurred": "#d4cdc4"},
)
THEMES = (DARK, LIGHT)
