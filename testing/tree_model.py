"""A person's tree as the contract has it, in memory: the oracle of tests that act at random.

A model changes as the service should, or raises `Refused` with the answer that it should give. Ids are the service's;
so are names with numbers, of which the model proves only that they were free.
"""

import copy
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

ROOT = "root"


class Refused(Exception):
    """The status and code that the service should answer; nothing has changed."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(status, code)
        self.answer = (status, code)


class Untold(str):
    """Whatever fact of an answer that was a refusal: a text like no other."""

    def __new__(cls) -> "Untold":
        return super().__new__(cls, uuid.uuid4())

    def __getitem__(self, _: object) -> "Untold":
        return Untold()


NOT_FOUND = 404, "not_found"
IN_TRASH = 409, "in_trash"
NAME_CONFLICT = 409, "name_conflict"


@dataclass
class Node:
    """A folder or file. `contents` are those of its versions by number; `was` is the folder that a thing of the trash
    lay in, with its path; `is_ending` marks what a task deletes."""

    id: str
    kind: str
    name: str
    parent: str
    changed_at: datetime
    contents: dict[int, bytes] = field(default_factory=dict)
    last: int = 0
    facts: int = 1
    was: tuple[str, list[str]] | None = None
    is_ending: bool = False

    @property
    def content(self) -> bytes:
        """The current content."""
        return self.contents[self.last]

    def add(self, content: bytes) -> None:
        """Make this the current content."""
        self.last += 1
        self.contents[self.last] = content


def is_numbered(name: str, given: str) -> bool:
    """Return whether `given` is the name with a number, for a file before its extension."""
    stem, dot, extension = name.rpartition(".")
    forms = [(name, "")] + ([(stem, dot + extension)] if stem else [])
    return any(re.fullmatch(rf"{re.escape(start)} \(\d+\){re.escape(end)}", given) for start, end in forms)


@dataclass
class Tree:
    """Everything of one person. A request may change `by_request` entries itself, and `batch` in a transaction."""

    root: str
    trash: str
    quota: int
    by_request: int
    batch: int
    nodes: dict[str, Node] = field(default_factory=dict)
    # Contents that were ever stored, also those that are shredded
    stored: int = 0
    # Folders that a restore has made for what lay in them
    made_again: int = 0

    def copy(self) -> "Tree":
        return copy.deepcopy(self)

    # -- what is there

    def children(self, parent: str) -> list[Node]:
        return [node for node in self.nodes.values() if node.parent == parent]

    def below(self, top: str) -> list[Node]:
        found = self.children(top)
        return [*found, *(node for child in found for node in self.below(child.id))]

    def way(self, entry: str) -> list[str]:
        """Return the ids from an entry up to its top, both included."""
        found = [entry]
        while found[-1] in self.nodes:
            found.append(self.nodes[found[-1]].parent)
        return found

    def is_live(self, entry: str) -> bool:
        return self.way(entry)[-1] == self.root

    def path(self, folder: str) -> list[str]:
        """Return the ids of the folders from the top to this one, itself included."""
        return [step for step in reversed(self.way(folder)) if step not in (self.root, self.trash)]

    def names(self, folder: str) -> list[str]:
        return [self.nodes[step].name for step in self.path(folder)]

    def files(self) -> Iterator[Node]:
        return (node for node in self.nodes.values() if node.kind == "file")

    def used(self) -> int:
        return sum(len(content) for node in self.files() for content in node.contents.values())

    def named(self, folder: str, name: str) -> Node | None:
        """Return what has this name in the folder, in any case. The names of these tests differ in nothing else."""
        return next((node for node in self.children(folder) if node.name.lower() == name.lower()), None)

    # -- what is asked of it

    def own(self, entry: str, *kinds: str) -> Node:
        node = self.nodes.get(entry)
        if node is None or node.is_ending or (kinds and node.kind not in kinds):
            raise Refused(*NOT_FOUND)
        return node

    def live(self, entry: str, *kinds: str) -> Node:
        node = self.own(entry, *kinds)
        if not self.is_live(entry):
            raise Refused(*IN_TRASH)
        return node

    def folder(self, folder: str) -> str:
        """Return the id of a live folder."""
        if folder in (ROOT, self.root):
            return self.root
        if folder not in self.nodes:
            raise Refused(*NOT_FOUND)
        if self.nodes[folder].kind != "folder":
            raise Refused(422, "not_a_folder")
        if not self.is_live(folder):
            raise Refused(*IN_TRASH)
        return folder

    def room(self, size: int) -> None:
        if self.used() + size > self.quota:
            raise Refused(413, "quota_exceeded")

    def free(self, folder: str, name: str, given: Callable[[], str]) -> str:
        """Return the name if it is free, else the numbered one that the service has given."""
        if self.named(folder, name) is None:
            return name
        number = given()
        assert isinstance(number, Untold) or is_numbered(name, number), (name, number)
        assert self.named(folder, number) is None, number
        return number

    # -- changes

    def make_folder(self, parent: str, name: str, policy: str, told: Callable[[], Any], now: datetime) -> None:
        parent = self.folder(parent)
        if policy == "rename":
            name = self.free(parent, name, lambda: told()["name"])
        elif self.named(parent, name):
            raise Refused(*NAME_CONFLICT)
        self._new(told()["id"], "folder", name, parent, now)

    def upload(
        self, folder: str, name: str, policy: str, content: bytes, told: Callable[[], Any], now: datetime
    ) -> None:
        folder = self.folder(folder)
        found = self.named(folder, name)
        if found is not None and (
            policy == "fail" or (policy == "version" and (found.kind, found.name) != ("file", name))
        ):
            raise Refused(*NAME_CONFLICT)
        self.room(len(content))
        self.stored += 1
        if found is not None and policy == "version":
            found.add(content)
            self._touch(found, now)
            return
        name = self.free(folder, name, lambda: told()["name"])
        self._new(told()["id"], "file", name, folder, now).add(content)

    def replace(self, entry: str, content: bytes, *, matches: bool, now: datetime) -> None:
        node = self.live(entry, "file")
        if not matches:
            raise Refused(412, "precondition_failed")
        self.room(len(content))
        self.stored += 1
        node.add(content)
        self._touch(node, now)

    def copy_file(
        self, entry: str, folder: str, name: str | None, policy: str, told: Callable[[], Any], now: datetime
    ) -> None:
        node = self.own(entry, "file")
        self.upload(folder, name or node.name, policy, node.content, told, now)

    def change(
        self,
        ids: Sequence[str],
        name: str | None,
        folder: str | None,
        policy: str,
        told: Callable[[int], Any],
        now: datetime,
        *,
        matches: bool = True,
    ) -> None:
        if name is None and folder is None:
            raise Refused(422, "validation_failed")
        moves_to = self.folder(folder) if folder else None
        for number, entry in enumerate(ids):
            node = self.live(entry)
            if not matches:
                raise Refused(412, "precondition_failed")
            target = moves_to or node.parent
            new = name or node.name
            self._refuse_circle(node, target)
            if policy == "rename" and target != node.parent:
                new = self.free(target, new, lambda number=number: told(number)["name"])  # type: ignore[misc]
            self._place(node, target, new)
            self._touch(node, now)

    def throw_away(self, ids: Sequence[str], now: datetime) -> None:
        for entry in self._deepest_first(ids):
            node = self.live(entry)
            node.was = node.parent, self.names(node.parent)
            node.parent = self.trash
            self._touch(node, now)

    def restore(
        self, ids: Sequence[str], folder: str | None, policy: str, told: Callable[[int], Any], now: datetime
    ) -> None:

        def told_of(entry: str, fact: str) -> Callable[[], Any]:
            return lambda: told(ids.index(entry))[fact]

        moves_to = self.folder(folder) if folder else None
        self.made_again = 0
        were_live = {entry for entry in ids if self.is_live(entry)}
        for entry in self._holders_first(ids):
            node = self.own(entry)
            if node.parent != self.trash or node.was is None:
                raise Refused(*(NOT_FOUND if entry in were_live else IN_TRASH))
            target = moves_to or self._where_it_was(node, told_of(entry, "path"), now)
            name = node.name
            if policy == "rename":
                name = self.free(target, name, told_of(entry, "name"))
            self._place(node, target, name)
            node.was = None
            self._touch(node, now)

    def delete(self, ids: Sequence[str], *, recursive: bool) -> int:
        """Return the status of the answer."""
        held = removed = 0
        marked: list[str] = []
        for entry in self._deepest_first(ids):
            node = self.own(entry)
            below = len(self.below(entry))
            if below and not recursive:
                raise Refused(409, "folder_not_empty")
            is_many = below > max(self.by_request - held, 0)
            held += self.by_request + 1 if is_many else below
            if not is_many and removed + 1 + below <= self.batch:
                self._remove(entry)
                removed += 1 + below
            else:
                node.parent, node.is_ending = self.trash, True
                marked.append(entry)
        if marked and held > self.by_request:
            return 202
        for entry in marked:
            self._remove(entry)
        return 204

    def empty(self) -> None:
        for node in self.children(self.trash):
            node.is_ending = True

    def finish(self, kept: int) -> None:
        """Do what tasks do: delete what was marked, and the versions that are too many."""
        for node in self.children(self.trash):
            if node.is_ending:
                self._remove(node.id)
        for node in self.files():
            for number in sorted(node.contents)[: -1 - kept]:
                del node.contents[number]

    def restore_version(self, entry: str, number: int, now: datetime) -> None:
        node = self.live(entry, "file")
        if number not in node.contents:
            raise Refused(*NOT_FOUND)
        if number != node.last:
            node.add(node.contents.pop(number))
            self._touch(node, now)

    def delete_version(self, entry: str, number: int) -> None:
        node = self.own(entry, "file")
        if number == node.last:
            raise Refused(422, "validation_failed")
        if number not in node.contents:
            raise Refused(*NOT_FOUND)
        del node.contents[number]

    def _new(self, entry: str, kind: str, name: str, parent: str, now: datetime) -> Node:
        assert entry not in self.nodes
        self.nodes[entry] = Node(entry, kind, name, parent, now)
        return self.nodes[entry]

    @staticmethod
    def _touch(node: Node, now: datetime) -> None:
        node.facts += 1
        node.changed_at = now

    def _refuse_circle(self, node: Node, folder: str) -> None:
        if node.id in self.path(folder):
            raise Refused(409, "cycle")

    def _place(self, node: Node, folder: str, name: str) -> None:
        if self.named(folder, name) not in (None, node):
            raise Refused(*NAME_CONFLICT)
        node.parent, node.name = folder, name

    def _remove(self, entry: str) -> None:
        for node in [*self.below(entry), self.nodes[entry]]:
            del self.nodes[node.id]

    def _deepest_first(self, ids: Sequence[str]) -> list[str]:
        return sorted(ids, key=lambda entry: -len(self.way(entry)) if entry in self.nodes else 0)

    def _holders_first(self, ids: Sequence[str]) -> list[str]:
        """Sort what lay in a folder that is restored too after this one."""

        def holders(entry: str) -> int:
            node = self.nodes.get(entry)
            if node is None or node.was is None:
                return 0
            given = [step for step in self.way(node.was[0]) if step in ids and step in self.nodes]
            return max((1 + holders(step) for step in given), default=0)

        return sorted(ids, key=holders)

    def _where_it_was(self, node: Node, path: Callable[[], Any], now: datetime) -> str:
        assert node.was is not None
        try:
            return self.folder(node.was[0])
        except Refused:
            pass
        folder = self.root
        for depth, name in enumerate(node.was[1]):
            found = self.named(folder, name)
            if found is not None and found.kind == "folder":
                folder = found.id
                continue
            self.made_again += 1
            if self.made_again > self.by_request:
                raise Refused(413, "too_many_files")
            step = path()[depth]
            free = self.free(folder, name, lambda step=step: step["name"])  # type: ignore[misc]
            folder = self._new(step["id"], "folder", free, folder, now).id
        return folder
