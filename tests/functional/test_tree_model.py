"""Folders, versions and trash against a model in memory: whatever clients do, in any order, both agree."""

import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from testing.tree import ENTRIES, FOLDERS, TRASH
from testing.tree_model import ROOT, Node, Refused, Tree, Untold
from testing.vault import FILES, SQLITE, Vault, refusal
from vault.core.principal import WORKER
from vault.files import deleting, service, subtree, trash
from vault.files.models import Entry, EntryKind, Work
from vault.objects.models import Erasure, ObjectState, SealedObject

API = "/api/v1"
KEPT = 3
QUOTA = 200
# Few, so that they meet: equal names, names that differ in case, and one that a number makes
NAMES = st.sampled_from(["a.txt", "A.TXT", "b", "B", "a (2).txt"])
# Some of which are too large for what is left of the quota
CONTENTS = st.builds(lambda byte, size: bytes([byte]) * size, st.integers(0, 255), st.sampled_from([0, 1, 20, 60, 120]))
POLICIES = st.sampled_from(["rename", "version", "fail"])
TWO_POLICIES = st.sampled_from(["fail", "rename"])
# Which of the entries that there are
PICKS = st.integers(0, 63)
MANY = st.lists(PICKS, min_size=1, max_size=4)
RARELY = st.sampled_from([False, False, False, True])


def has_some(machine: "TreeMachine") -> bool:
    return bool(machine.tree.nodes)


class TreeMachine(RuleBasedStateMachine):
    """One person, who acts over HTTP, and what should have come of it."""

    def __init__(self, vault: Vault, by_request: int, batch: int, steps: Counter[str]) -> None:
        super().__init__()
        self.vault, self.steps = vault, steps
        self.person = vault.member(f"{uuid.uuid4().hex}@example.org", quota_bytes=QUOTA)
        self.owner = vault.user(self.person.email).id
        tops = dict(vault.execute(sa.select(Entry.kind, Entry.id).where(Entry.owner_id == self.owner)))
        self.tree = Tree(str(tops["root"]), str(tops["trash"]), QUOTA, by_request, batch)
        self.before = set(vault.objects())
        # Entries that are gone, and contents that must stay unreadable
        self.gone: list[str] = []
        self.agrees = True
        self.step = 0

    # -- helpers

    def pick(self, number: int, *kinds: str) -> str:
        """Return the id of one of the entries, or rarely of one that has gone."""
        there = [node.id for node in self.tree.nodes.values() if not kinds or node.kind in kinds]
        if number == 63 or not there:
            return self.gone[-1] if self.gone else str(uuid.UUID(int=number))
        return there[number % len(there)]

    def pick_folder(self, number: int) -> str:
        """Return the root every third time, else an entry, mostly a folder."""
        if number % 3 == 0:
            return ROOT if number % 2 else self.tree.root
        return self.pick(number, *(("folder",) if number % 8 else ()))

    def pick_many(self, numbers: Sequence[int]) -> list[str]:
        return list(dict.fromkeys(self.pick(number) for number in numbers))

    def post(self, path: str, **fields: Any) -> Any:
        return self.person.post(f"{API}/{path}", json=fields)

    def expect(self, answer: Any, change: Callable[[Tree, Callable[[], Any]], Any], status: int = 200) -> None:
        """Change the model as the answer says that the service has, or prove that both refuse it."""
        self.agrees = False
        self.step += 1
        tree = self.tree.copy()

        def told() -> Any:
            return answer.json if answer.status_code < 300 else Untold()

        refused = None
        try:
            status = change(tree, told) or status
        except Refused as exc:
            refused = exc.answer
        if refused is not None:
            assert refusal(answer) == refused
            self.steps[refused[1]] += 1
            return
        assert answer.status_code == status, (answer.status_code, answer.text)
        self.steps["done"] += 1
        self.gone += [entry for entry in self.tree.nodes if entry not in tree.nodes]
        self.tree = tree

    # -- what people do

    @initialize()
    def begin_with_some(self) -> None:
        for name, where in (("a.txt", 3), ("b", 1), ("c", 1)):
            self.create_folder(where, name, "fail")
        for where in range(4):
            self.upload(where, "a.txt", "rename", b"content")

    @rule(where=PICKS, name=NAMES, policy=TWO_POLICIES)
    def create_folder(self, where: int, name: str, policy: str) -> None:
        parent = self.pick_folder(where)
        answer = self.post("folders", name=name, parent_id=parent, on_conflict=policy)
        self.expect(
            answer, lambda tree, told: tree.make_folder(parent, name, policy, told, self.vault.clock()), status=201
        )

    @rule(where=PICKS, name=NAMES, policy=POLICIES, content=CONTENTS)
    def upload(self, where: int, name: str, policy: str, content: bytes) -> None:
        folder = self.pick_folder(where)
        query = {"name": name, "folder_id": folder, "on_conflict": policy}
        answer = self.person.post(FILES, query_string=query, data=content)
        now = self.vault.clock()
        self.expect(answer, lambda tree, told: tree.upload(folder, name, policy, content, told, now), status=201)

    @precondition(has_some)
    @rule(which=PICKS, content=CONTENTS, is_stale=RARELY)
    def put(self, which: int, content: bytes, is_stale: bool) -> None:
        entry = self.pick(which, *(("file",) if which % 8 else ()))
        headers = {"If-Match": f'"{uuid.uuid4()}"'} if is_stale else {}
        answer = self.person.put(f"{FILES}/{entry}/content", data=content, headers=headers)
        now = self.vault.clock()
        self.expect(answer, lambda tree, _: tree.replace(entry, content, matches=not is_stale, now=now))

    @precondition(has_some)
    @rule(which=PICKS, name=st.none() | NAMES, where=st.none() | PICKS, is_stale=RARELY)
    def rename_or_move(self, which: int, name: str | None, where: int | None, is_stale: bool) -> None:
        entry, folder = self.pick(which), None if where is None else self.pick_folder(where)
        fields = {key: value for key, value in (("name", name), ("parent_id", folder)) if value is not None}
        facts = self.tree.nodes[entry].facts if entry in self.tree.nodes else 1
        headers = {"If-Match": f'"{entry}.{facts + is_stale}"'}
        answer = self.person.patch(f"{ENTRIES}/{entry}", json=fields, headers=headers)
        now = self.vault.clock()
        self.expect(
            answer,
            lambda tree, told: tree.change([entry], name, folder, "fail", lambda _: told(), now, matches=not is_stale),
        )

    @precondition(has_some)
    @rule(which=MANY, where=PICKS, policy=TWO_POLICIES)
    def move_many(self, which: list[int], where: int, policy: str) -> None:
        ids, folder = self.pick_many(which), self.pick_folder(where)
        answer = self.post("entries/move", ids=ids, parent_id=folder, on_conflict=policy)
        now = self.vault.clock()
        self.expect(
            answer,
            lambda tree, told: tree.change(ids, None, folder, policy, lambda number: told()["items"][number], now),
        )

    @precondition(has_some)
    @rule(which=PICKS, where=PICKS, name=st.none() | NAMES, policy=POLICIES)
    def copy(self, which: int, where: int, name: str | None, policy: str) -> None:
        entry, folder = self.pick(which, "file"), self.pick_folder(where)
        fields = {"parent_id": folder, "on_conflict": policy, **({"name": name} if name else {})}
        answer = self.post(f"files/{entry}/copy", **fields)
        now = self.vault.clock()
        self.expect(answer, lambda tree, told: tree.copy_file(entry, folder, name, policy, told, now), status=201)

    @precondition(has_some)
    @rule(which=PICKS)
    def throw_away(self, which: int) -> None:
        entry = self.pick(which)
        answer = self.post(f"entries/{entry}/trash")
        self.expect(answer, lambda tree, _: tree.throw_away([entry], self.vault.clock()))

    @precondition(has_some)
    @rule(which=MANY)
    def throw_many_away(self, which: list[int]) -> None:
        ids = self.pick_many(which)
        answer = self.post("entries/trash", ids=ids)
        self.expect(answer, lambda tree, _: tree.throw_away(ids, self.vault.clock()))

    def pick_from_trash(self, numbers: Sequence[int]) -> list[str]:
        """Return the ids of some entries of the trash, and sometimes of others."""
        there = [node.id for node in self.tree.children(self.tree.trash)]
        found = [there[number % len(there)] if there and number % 8 else self.pick(number) for number in numbers]
        return list(dict.fromkeys(found))

    @precondition(has_some)
    @rule(which=PICKS, where=st.none() | PICKS, policy=TWO_POLICIES)
    def restore(self, which: int, where: int | None, policy: str) -> None:
        (entry,), folder = self.pick_from_trash([which]), None if where is None else self.pick_folder(where)
        fields = {"on_conflict": policy, **({"parent_id": folder} if folder else {})}
        answer = self.post(f"entries/{entry}/restore", **fields)
        now = self.vault.clock()
        self.expect(answer, lambda tree, told: tree.restore([entry], folder, policy, lambda _: told(), now))

    @precondition(has_some)
    @rule(which=MANY, where=st.none() | PICKS, policy=TWO_POLICIES)
    def restore_many(self, which: list[int], where: int | None, policy: str) -> None:
        ids, folder = self.pick_from_trash(which), None if where is None else self.pick_folder(where)
        fields = {"on_conflict": policy, **({"parent_id": folder} if folder else {})}
        answer = self.post("entries/restore", ids=ids, **fields)
        now = self.vault.clock()
        self.expect(
            answer, lambda tree, told: tree.restore(ids, folder, policy, lambda number: told()["items"][number], now)
        )

    @precondition(has_some)
    @rule(which=PICKS, is_recursive=st.booleans())
    def delete(self, which: int, is_recursive: bool) -> None:
        entry = self.pick(which)
        query = {"recursive": str(is_recursive).lower()}
        answer = self.person.delete(f"{ENTRIES}/{entry}", query_string=query)
        self.expect(answer, lambda tree, _: tree.delete([entry], recursive=is_recursive))

    @precondition(has_some)
    @rule(which=MANY, is_recursive=st.booleans())
    def delete_many(self, which: list[int], is_recursive: bool) -> None:
        ids = self.pick_many(which)
        answer = self.post("entries/delete", ids=ids, recursive=is_recursive)
        self.expect(answer, lambda tree, _: tree.delete(ids, recursive=is_recursive))

    @rule()
    def empty_the_trash(self) -> None:
        answer = self.person.delete(TRASH)
        self.expect(answer, lambda tree, _: tree.empty(), status=202)

    @precondition(lambda self: any(len(node.contents) > 1 for node in self.tree.files()))
    @rule(which=PICKS, number=PICKS, deletes=st.booleans())
    def change_a_version(self, which: int, number: int, deletes: bool) -> None:
        there = [node for node in self.tree.files() if len(node.contents) > 1]
        node = there[which % len(there)]
        # One that there is, or one beside them
        number = [*node.contents, 1, node.last + 1][number % (len(node.contents) + 2)]
        path = f"{FILES}/{node.id}/versions/{number}"
        if deletes:
            answer = self.person.delete(path)
            self.expect(answer, lambda tree, _: tree.delete_version(node.id, number), status=204)
        else:
            answer = self.person.post(f"{path}/restore")
            self.expect(answer, lambda tree, _: tree.restore_version(node.id, number, self.vault.clock()))

    @rule()
    def let_tasks_run(self) -> None:
        self.agrees = False
        self.run_tasks()
        tree = self.tree.copy()
        tree.finish(KEPT)
        self.gone += [entry for entry in self.tree.nodes if entry not in tree.nodes]
        self.tree = tree
        assert self.vault.count(sa.select(Entry.id).where(Entry.work.is_not(None)).subquery()) == 0
        self.steps["tasks"] += 1

    def run_tasks(self) -> None:
        files = self.vault.container.files
        assert files.work.run()
        files.versions.trim(WORKER)
        self.vault.run_queue()
        self.vault.reap()

    # -- what must agree after every step

    @invariant()
    def rows_agree(self) -> None:
        self.vault.clock.advance(milliseconds=1)
        assert self.rows() == self.expected_rows()
        assert self.contents() == {
            (node.id, number): (len(content), number < node.last)
            for node in self.tree.files()
            for number, content in node.contents.items()
        }
        account = self.vault.account(self.person.email)
        assert (account.used_bytes, account.reserved_bytes) == (self.tree.used(), 0)
        assert account.object_count == sum(len(node.contents) for node in self.tree.files())
        assert account.folder_count == sum(node.kind == "folder" for node in self.tree.nodes.values())
        assert self.vault.accounts_balance()
        self.answers_agree()
        self.agrees = True

    def rows(self) -> dict[str, Any]:
        """Return what the table has of each entry. A file's current object is that of its last version."""
        query = (
            sa.select(Entry, SealedObject.version_no)
            .outerjoin(
                SealedObject, sa.and_(SealedObject.id == Entry.current_id, SealedObject.state == ObjectState.READY)
            )
            .where(Entry.owner_id == self.owner, Entry.parent_id.is_not(None))
        )
        rows = self.vault.execute(query)
        works = {entry.work for entry, _ in rows}
        self.is_settled, self.shows_all = works <= {None}, Work.UNHIDE not in works
        if self.is_settled:
            hidden = {str(entry.id) for entry, _ in rows if entry.hidden}
            assert hidden == {entry for entry in self.tree.nodes if not self.tree.is_live(entry)}
        return {
            str(entry.id): (
                entry.kind,
                str(entry.parent_id),
                entry.name,
                entry.name_folded,
                entry.size_bytes,
                (entry.last_version_no, number),
                entry.version,
                entry.updated_at,
                entry.trashed_at is not None,
                entry.work == Work.PURGE,
            )
            for entry, number in rows
        }

    def expected_rows(self) -> dict[str, Any]:
        def row(node: Node) -> Any:
            is_file = node.kind == EntryKind.FILE
            return (
                node.kind,
                node.parent,
                node.name,
                node.name.lower(),
                len(node.content) if is_file else None,
                (node.last, node.last if is_file else None),
                node.facts,
                node.changed_at,
                node.parent == self.tree.trash,
                node.is_ending,
            )

        return {node.id: row(node) for node in self.tree.nodes.values()}

    def contents(self) -> dict[tuple[str, int], tuple[int | None, bool]]:
        """Return size and age of all contents that are not shredded. Nothing is being uploaded."""
        rows = self.vault.execute(
            sa.select(
                SealedObject.entry_id,
                SealedObject.version_no,
                SealedObject.size_bytes,
                SealedObject.superseded_at,
                SealedObject.state,
            ).where(SealedObject.owner_id == self.owner, SealedObject.state != ObjectState.SHREDDED)
        )
        assert all(row.state == ObjectState.READY for row in rows)
        return {(str(row.entry_id), row.version_no): (row.size_bytes, row.superseded_at is not None) for row in rows}

    def answers_agree(self) -> None:
        """Ask one question over HTTP, another one each time, and read the bytes of one content."""
        questions = (self.usage_agrees, self.files_agree, self.folder_agrees, self.trash_agrees, self.path_agrees)
        questions[self.step % len(questions)]()
        if there := list(self.tree.files()):
            self.bytes_agree(there[self.step % len(there)])
        if self.gone:
            entry = self.gone[self.step % len(self.gone)]
            assert self.person.get(f"{FILES}/{entry}/content").status_code == 404

    def bytes_agree(self, node: Node) -> None:
        number = list(node.contents)[self.step // 2 % len(node.contents)]
        if not node.is_ending:
            answer = self.person.get(f"{FILES}/{node.id}/versions/{number}/content", buffered=True)
            assert (answer.status_code, answer.data) == (200, node.contents[number])
            if not self.step % 3:
                assert self.person.download(node.id) == node.content

    def usage_agrees(self) -> None:
        usage = self.person.get(f"{FILES}/usage").json
        current = sum(len(node.content) for node in self.tree.files())
        assert usage["used_bytes"] == self.tree.used()
        assert usage["versions_bytes"] == self.tree.used() - current
        assert usage["file_count"] == sum(len(node.contents) for node in self.tree.files())
        if self.is_settled:
            hidden = (node for node in self.tree.files() if not self.tree.is_live(node.id))
            assert usage["trash_bytes"] == sum(len(node.content) for node in hidden)

    def files_agree(self) -> None:
        listed = {item["id"]: (item["name"], item["version_no"]) for item in self.person.walk(FILES, limit=7)}
        live = {node.id: (node.name, node.last) for node in self.tree.files() if self.tree.is_live(node.id)}
        # What was restored appears when the task comes to it; what was thrown away is never there.
        assert listed.items() <= live.items()
        assert listed == live or not self.shows_all

    def folder_agrees(self) -> None:
        there = [ROOT, *(node.id for node in self.tree.nodes.values() if node.kind == "folder" and not node.is_ending)]
        folder = there[self.step // 5 % len(there)]
        items = self.person.walk(f"{FOLDERS}/{folder}/entries", limit=2)
        children = self.tree.children(self.tree.root if folder == ROOT else folder)
        assert [(item["kind"], item["name"]) for item in items] == sorted(
            ((node.kind, node.name) for node in children),
            key=lambda one: (one[0] == "file", one[1].lower()),
        )
        if folder != ROOT:
            facts = self.person.get(f"{FOLDERS}/{folder}").json
            assert [step["id"] for step in facts["path"]] == self.tree.path(folder)[:-1]

    def trash_agrees(self) -> None:
        listed = {
            item["id"]: (item["restore_parent_id"], item["restore_path"]) for item in self.person.walk(TRASH, limit=2)
        }
        assert listed == {node.id: node.was for node in self.tree.children(self.tree.trash) if not node.is_ending}

    def path_agrees(self) -> None:
        live = [node for node in self.tree.nodes.values() if self.tree.is_live(node.id)]
        if not live:
            return
        node = live[self.step // 5 % len(live)]
        path = "/".join(["", *self.tree.names(node.parent), node.name])
        assert self.person.get(ENTRIES, query_string={"path": path}).json["id"] == node.id

    # -- what must be left at the end

    def teardown(self) -> None:
        # After a failure this would tell of another one.
        if self.agrees:
            self.all_bytes_agree()
            self.delete_everything()

    def all_bytes_agree(self) -> None:
        for node in self.tree.files():
            if node.is_ending:
                continue
            versions = self.person.get(f"{FILES}/{node.id}/versions").json["items"]
            assert [version["version_no"] for version in versions] == sorted(node.contents, reverse=True)
            for number, content in node.contents.items():
                answer = self.person.get(f"{FILES}/{node.id}/versions/{number}/content", buffered=True)
                assert (answer.status_code, answer.data) == (200, content)

    def delete_everything(self) -> None:
        assert self.person.delete(TRASH).status_code == 202
        if ids := [node.id for node in self.tree.children(self.tree.root)]:
            assert self.post("entries/delete", ids=ids, recursive=True).status_code in (202, 204)
        self.run_tasks()
        rows = self.vault.execute(sa.select(Entry.kind).where(Entry.owner_id == self.owner).order_by(Entry.kind))
        assert [kind for (kind,) in rows] == ["root", "trash"]
        assert self.vault.scalars(sa.select(SealedObject.state).where(SealedObject.owner_id == self.owner)) == []
        assert set(self.vault.objects()) <= self.before
        account = self.vault.account(self.person.email)
        counted = (account.used_bytes, account.reserved_bytes, account.object_count, account.folder_count)
        assert counted == (0, 0, 0, 0)
        # Each content was shredded, and once.
        erased = self.vault.scalars(sa.select(Erasure.object_id).where(Erasure.owner_id == self.owner))
        assert len(erased) == len(set(erased)) == self.tree.stored


@pytest.fixture(
    params=[
        pytest.param((subtree.BY_REQUEST, subtree.BATCH), id="requests", marks=pytest.mark.uncounted),
        pytest.param((4, 2), id="tasks"),
    ]
)
def limits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """How many entries a request changes itself: all of a small tree, or so few that tasks do the rest."""
    by_request, batch = request.param
    for module, name, value in (
        (subtree, "BATCH", batch),
        (trash, "BATCH", batch),
        (trash, "BY_REQUEST", by_request),
        (deleting, "BATCH", batch),
        (deleting, "BY_REQUEST", by_request),
        (service, "_MOST_AT_ONCE", batch),
    ):
        monkeypatch.setattr(module, name, value)
    return by_request, batch


def act_at_random(vault: Vault, limits: tuple[int, int], people: int, **options: Any) -> Counter[str]:
    """Have so many people take fifty steps each; return how often what came of them."""
    steps: Counter[str] = Counter()
    run_state_machine_as_test(
        lambda: TreeMachine(vault, *limits, steps),
        settings=settings(
            max_examples=people,
            stateful_step_count=50,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
            **options,
        ),
    )
    return steps


@pytest.fixture
def small_vault(make_vault: Callable[..., Vault]) -> Vault:
    return make_vault(VERSIONS_KEPT=str(KEPT), VERSIONS_DAYS="0")


@SQLITE
def test_a_tree_is_as_its_model_after_every_step(small_vault: Vault, limits: tuple[int, int]) -> None:
    steps = act_at_random(small_vault, limits, 3, derandomize=True)

    assert steps.total() >= 100


@pytest.mark.slow
@pytest.mark.uncounted
def test_a_tree_is_as_its_model_after_thousands_of_steps(small_vault: Vault, limits: tuple[int, int]) -> None:
    steps = act_at_random(small_vault, limits, 30)

    assert steps.total() >= 1000
    assert steps.keys() >= {"done", "tasks", "quota_exceeded", "name_conflict", "cycle", "in_trash", "not_found"}, steps
