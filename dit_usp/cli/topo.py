"""`dit-usp topo`: what this machine has, and what would be picked on it."""

from __future__ import annotations

import json
from itertools import groupby
from typing import Any

import click


@click.command("topo")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def command(as_json: bool) -> None:
    """Show devices, links and attention kernels, and what is picked.

    Each kernel is tried on small calls first: it is right here, or it is said why it is not used.
    """
    from dit_usp.topology import describe

    found = describe()
    click.echo(json.dumps(found, indent=2) if as_json else _text(found))


def _text(found: dict[str, Any]) -> str:
    sections = {
        "versions": [", ".join(f"{name} {version}" for name, version in found["versions"].items())],
        "devices": [f"{', '.join(numbers)}: {text}" for text, numbers in _alike(map(_device, found["devices"]))],
        "links": _links(found["links"]) or ["none: one device"],
        "attention kernels (tried on device 0)": [f"{name}: {state}" for name, state in found["kernels"].items()],
        "auto takes": _choices(found["auto"]),
        "layout of one rank a device (few heads may change it)": _layouts(found["layouts"]),
    }
    return "\n".join(line for title, lines in sections.items() for line in (f"{title}:", *(f"  {line}" for line in lines)))


def _alike(texts: Any) -> list[tuple[str, list[str]]]:
    """Each text once, with the numbers of those that are it."""
    numbers: dict[str, list[str]] = {}
    for number, text in enumerate(texts):
        numbers.setdefault(text, []).append(str(number))
    return list(numbers.items())


def _device(device: dict[str, Any]) -> str:
    if device["type"] == "cpu":
        return f"{device['name']} (CPU), {device['cores']} cores, {device['threads']} threads for one rank"
    return f"{device['name']}, compute capability {device['capability']}, {device['memory_gib']} GiB"


def _links(links: list[dict[str, Any]]) -> list[str]:
    """A line for each kind of link, with its pairs, or "all pairs"."""
    from dit_usp.topology import path_in_words

    kinds: dict[str, list[str]] = {}
    for link in links:
        access = "peer access" if link["peer_access"] else "no peer access: copies go through the host"
        kinds.setdefault(f"{path_in_words(link['path'])}, {access}", []).append("-".join(map(str, link["devices"])))
    return [f"{', '.join(pairs) if len(kinds) > 1 or len(links) == 1 else 'all pairs'}: {text}" for text, pairs in kinds.items()]


def _choices(choices: list[dict[str, Any]]) -> list[str]:
    lines = []
    for (lse, dtype, kernel, why), group in groupby(choices, key=lambda choice: [choice[name] for name in ("lse", "dtype", "kernel", "why")]):
        sizes = ", ".join(str(choice["head_dim"]) for choice in group)
        lines.append(f"{dtype}, head size {sizes}, {'with LSE (a ring that rotates)' if lse else 'without LSE'}: {kernel}, {why}")
    return lines


def _layouts(layouts: list[dict[str, Any]]) -> list[str]:
    """A line for each layout; guidance may make no difference."""
    texts = [f"{layout['layout']}. {' '.join(layout['why'])}" for layout in layouts]
    if len(set(texts)) == 1:
        return texts[:1]
    return [f"guidance {'in one batch' if layout['guidance'] else 'none'}: {text}" for layout, text in zip(layouts, texts, strict=True)]
