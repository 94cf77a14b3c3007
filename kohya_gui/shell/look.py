"""The look: Gradio's theme brought to our colours, and the style sheet and script that do the rest."""

from __future__ import annotations

import gradio as gr
from gradio.themes.utils import colors, sizes

from kohya_gui.parts.markup import ASSETS

FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "DejaVu Sans", "sans-serif")
CODE = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace")

STYLE_SHEETS = (ASSETS / "style.css", ASSETS / "workbench.css")

WORKBENCH = ("workbench.js", "workbench_picture.js", "workbench_masks.js", "workbench_acts.js", "workbench_errands.js")
SCRIPTS = ("notify.js", "news.js", "curves.js", "gallery.js", "page.js", *WORKBENCH)

HEAD = "".join(f"<script>{(ASSETS / name).read_text(encoding='utf-8')}</script>" for name in SCRIPTS)


def theme() -> gr.themes.Base:
    """Return the theme: system fonts, so that nothing is fetched, and the colours of the style sheet."""
    base = gr.themes.Base(
        primary_hue=colors.teal,
        neutral_hue=colors.slate,
        radius_size=sizes.radius_md,
        text_size=sizes.text_md,
        font=FONT,
        font_mono=CODE,
    )
    values = {
        "background_fill_primary": "var(--surface)",
        "background_fill_secondary": "var(--page)",
        "body_background_fill": "var(--page)",
        "block_background_fill": "var(--surface)",
        "body_text_color": "var(--ink)",
        "body_text_color_subdued": "var(--quiet)",
        "border_color_primary": "var(--line)",
        "block_border_color": "var(--line)",
        "block_border_width": "0px",
        "block_shadow": "none",
        "block_label_text_color": "var(--ink)",
        "block_title_text_color": "var(--ink)",
        "block_title_text_weight": "600",
        "block_info_text_color": "var(--quiet)",
        "input_background_fill": "var(--field)",
        "input_border_color": "var(--line)",
        "input_border_color_focus": "var(--accent)",
        "input_shadow_focus": "0 0 0 3px var(--ring)",
        "button_primary_background_fill": "var(--accent)",
        "button_primary_background_fill_hover": "var(--accent-strong)",
        "button_primary_text_color": "var(--on-accent)",
        "button_secondary_background_fill": "var(--surface)",
        "button_secondary_background_fill_hover": "var(--hover)",
        "button_secondary_border_color": "var(--line)",
        "button_secondary_text_color": "var(--ink)",
    }
    dark = {f"{name}_dark": value for name, value in values.items() if hasattr(base, f"{name}_dark")}
    return base.set(**values, **dark)
