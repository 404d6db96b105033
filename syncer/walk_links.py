"""Symlinks that a walk follows."""

from __future__ import annotations

from typing import Final

from syncer.remotes.errors import Missing, Unsupported
from syncer.tree import Node, NodeKind, Tree

_LINKS_MAX: Final = 40  # symlinks on the way to one file, as in Linux


async def resolve(source: Tree, folder: bytes, link: Node) -> tuple[bytes, Node]:
    """Where a symlink of the directory `folder` leads to, inside the source.

    The path of what is there, and its node. Raises RemoteError: Unsupported, Missing, …
    """
    at = folder.split(b"/") if folder else []
    todo = _parts(link)
    hops = 1
    node = Node(b"", NodeKind.DIRECTORY)
    while todo:
        name = todo.pop(0)
        if name in {b"", b"."}:
            continue
        if node.kind is not NodeKind.DIRECTORY:
            raise Missing(f"{link.target!r} leads through what is no directory")
        if name == b"..":
            if not at:
                raise Unsupported(f"{link.target!r} leads out of the source")
            at.pop()
            continue
        node = await source.stat(b"/".join([*at, name]))
        if node.kind is NodeKind.SYMLINK:
            hops += 1
            if hops > _LINKS_MAX:
                raise Unsupported(f"{link.target!r} leads in circles")
            todo = _parts(node) + todo
            node = Node(b"", NodeKind.DIRECTORY)
        else:
            at.append(name)
    path = b"/".join(at)
    # After `..` or at the root, what was looked at last is not where it ends.
    return path, await source.stat(path)


def _parts(link: Node) -> list[bytes]:
    """The components of a symlink's target. Raises Unsupported for one that begins at `/`."""
    if link.target is None:
        raise Unsupported(f"nobody says where {link.name!r} leads")
    if link.target.startswith(b"/"):
        raise Unsupported(f"{link.target!r} leads out of the source")
    return link.target.split(b"/")
