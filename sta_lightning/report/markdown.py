"""A report as GitHub Markdown, its figures as files beside it."""

from __future__ import annotations

from sta_lightning.report.blocks import Block, Bullets, Details, Document, Item, Paragraph, Picture
from sta_lightning.report.markup import markdown_text


def markdown(document: Document) -> str:
    """The document as Markdown; a picture is the file ``<name>.png``."""
    parts = [f"# {markdown_text(document.title)}", markdown_text(document.subtitle)]
    for section in document.sections:
        parts.append(f"## {markdown_text(section.title)}")
        parts += [_block(block) for block in section.blocks]
    return "\n\n".join(part.rstrip("\n") for part in parts if part) + "\n"


def _block(block: Block) -> str:
    match block:
        case Paragraph(text):
            return markdown_text(text)
        case Bullets(items):
            return "\n".join(_item(item, 0) for item in items)
        case Picture(name, title, caption, alt):
            return (
                f"![{markdown_text(alt)}]({name}.png)\n\n**{markdown_text(title)}.** {markdown_text(caption)}"
            )
        case Details(summary, blocks):
            inner = "\n\n".join(_block(inner).rstrip("\n") for inner in blocks)
            return f"<details>\n<summary>{markdown_text(summary)}</summary>\n\n{inner}\n\n</details>"
    return block.markdown()


def _item(item: Item, depth: int) -> str:
    lead = f"**{markdown_text(item.lead)}** " if item.lead else ""
    own = f"{'  ' * depth}- {lead}{markdown_text(item.text)}"
    return "\n".join([own, *(_item(child, depth + 1) for child in item.children)])
