"""The base classes of all steps: a step's YAML, its checks before the run, its action, and what its rows must show."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from enum import Enum, auto
from typing import Any, ClassVar, NamedTuple, Self

from msgspec import Struct, structs

from lab.steps.entry import Entry, Worded
from lab.steps.lot import Lot
from lab.steps.machine import Run
from lab.steps.outlook import ANY, Outlook, State
from lab.steps.reducing import one_of, shorter, without_node
from lab.steps.writing import BESIDE, field_of
from lab.words import Duration, Target, Title, target_parts
from nodeproc.core.messages import NodeId
from nodeproc.yamlfile import Place


class Needs(NamedTuple):
    """What a run must offer so that a step can be done.

    proxy: frames between nodes pass the lab's proxy. client_proxy: bytes between clients and nodes pass it too.
    layer: the nodes' files and clocks pass the lab's layer, lab.live.inside.faulty_node, or a supervisor for files.
    clock: the step is about clocks.
    own_node: the nodes are the lab's own, not a program that `cluster.command` starts. or_supervised: or any program
        under a supervisor.
    majority: a majority of the nodes runs.
    load: the scenario has a load. load_end: that load has a count or a duration.
    real_time: why the step cannot be simulated; "" if it can.
    real_time_field: the field that cannot be simulated; "" if the whole step cannot.
    proxy_fields: the fields that only the proxy can obey, not the kernel's packet filter; `("",)`: the whole step.
    """

    proxy: bool = False
    client_proxy: bool = False
    layer: bool = False
    clock: bool = False
    own_node: bool = False
    or_supervised: bool = False
    majority: bool = False
    load: bool = False
    load_end: bool = False
    real_time: str = ""
    real_time_field: str = ""
    proxy_fields: tuple[str, ...] = ()


class Effect(Enum):
    """What a row of faults.jsonl means for the cluster; the judges decide by it."""

    DOWN = auto()
    """A node's process is gone or stopped, until a row of UP."""
    UP = auto()
    """A node's process runs again."""
    LINKS = auto()
    """A fault affects some links, until the row's t_healed."""
    SLOW = auto()
    """A disk, clock or processor fault; a node may be slow, or exit."""
    HEALED = auto()
    """All rules on links are removed."""
    NONE = auto()
    """No judge makes an allowance for it."""


class Step(Worded, frozen=True, kw_only=True):
    """Base of all steps; lab.steps.STEPS lists the subclasses."""

    only: ClassVar[str] = ""
    """The single field whose value is the value of the step's key; "": the value is a mapping of the fields."""
    single: ClassVar[type[Struct] | None] = None
    """A struct whose fields may stand beside the step's own fields, instead of a list of one such struct in `short`."""
    in_nemesis: ClassVar[bool] = False
    """The step is allowed inside `nemesis`."""
    inner_field: ClassVar[str] = ""
    """The field that holds the steps inside; "": none."""
    name: Title = ""
    """Shown in progress lines and results; "": the step itself is shown."""
    say: Title = ""
    """A caption for an audience: shown in progress lines and kept in live.jsonl."""

    @property
    def needs(self) -> Needs:
        """What the run must offer; the steps inside have needs of their own."""
        return Needs()

    # ---- YAML ------------------------------------------------------------------------------------

    @staticmethod
    def read_field(entry: Entry) -> tuple[Step, ...]:
        """Read a field that holds steps. Raises ConfigError."""
        return entry.steps()

    @classmethod
    def read(cls, entry: Entry) -> Self:
        """Read and check the step from the value of its key. Raises ConfigError."""
        step = cls._of(entry)
        needs, setting = step.needs, entry.setting
        if setting.foreign and needs.own_node and not (needs.or_supervised and setting.supervised):
            if needs.or_supervised:
                entry.fail("needs `cluster: {disks: supervised}`, if the nodes are not the lab's own")
            entry.fail("is for the lab's own nodes; the lab does not know the inside of a program of cluster.command")
        step.check(entry)
        return step

    @classmethod
    def _of(cls, entry: Entry) -> Self:
        if not cls.only:
            return entry.struct(cls, cls.short)
        return cls(**{cls.only: entry.field(field_of(cls, cls.only).type)})

    def inside(self, *, in_brief: bool) -> Any:
        whole = super().inside(in_brief=in_brief)
        return whole[self.only] if self.only else whole

    def as_yaml(self, *, in_brief: bool) -> dict[str, Any]:
        yaml = super().as_yaml(in_brief=in_brief)
        return yaml | {key: text for key in BESIDE if (text := getattr(self, key))}

    def show(self) -> str:
        """Return the step's name, or else its words: one line for people."""
        return self.name or self.words

    # ---- steps inside ----------------------------------------------------------------------------

    @property
    def inner(self) -> tuple[Step, ...]:
        """The steps inside, in the order of the file."""
        return getattr(self, self.inner_field) if self.inner_field else ()

    @property
    def inner_place(self) -> Place:
        """The place of the list of steps inside, from the step on."""
        return self.word, field_of(type(self), self.inner_field).encode_name

    @property
    def rounds(self) -> int:
        """How often the steps inside replace this step in a run; 0: this step itself runs."""
        return 0

    @property
    def unrolled_count(self) -> int:
        """How many steps unrolled() yields."""
        return self.rounds * sum(step.unrolled_count for step in self.inner) if self.rounds else 1

    def unrolled(self) -> Iterator[Step]:
        """The steps that a run executes for this step, one after the other."""
        if not self.rounds:
            yield self
        for _ in range(self.rounds):
            for step in self.inner:
                yield from step.unrolled()

    # ---- messages --------------------------------------------------------------------------------

    @property
    def starts_load(self) -> bool:
        """The step starts the scenario's load."""
        return False

    def sends(self, planned: int) -> int:
        """How many messages the step sends.

        Args:
            planned: number of messages of the scenario's load; 0 if only a `load: stop` ends it.
        """
        return 0

    def texts(self, made: dict[int, int]) -> Iterator[str]:
        """The texts of the messages that the step itself sends.

        Args:
            made: client -> how many texts were made for it by the steps before; changed.
        """
        yield from ()

    # ---- what is known before the run ------------------------------------------------------------

    def aims(self) -> tuple[Struct, ...]:
        """The structs whose targets must mean a node when the step runs; the times of steps inside are not known."""
        return () if self.inner_field else (self,)

    def impossible(self, outlook: Outlook) -> Iterator[str]:
        """The reasons why the step certainly fails at this point of the scenario."""
        yield from ()

    def foresee(self, outlook: Outlook, place: Place) -> None:
        """Record the step's effect on nodes and load. place: of the step's key in the file."""
        if self.inner_field:
            outlook.anything = True

    # ---- searching -------------------------------------------------------------------------------

    drawn_from: ClassVar[int] = 0
    """The least cluster size in which a search draws the step by itself; 0: the step is drawn in stories only."""

    @classmethod
    def draw(cls, lot: Lot) -> Self:
        """A random step of this kind."""
        raise NotImplementedError(cls.word)

    @property
    def hurts(self) -> frozenset[NodeId] | None:
        """The nodes that the step may take out of a majority; None: any node."""
        return None

    # ---- shrinking -------------------------------------------------------------------------------

    def reduce(self) -> Iterator[Self]:
        """Smaller or rounder variants of the step, those with the largest change first; some may equal the step."""
        for field in ("target", "source", "to"):
            if hasattr(self, field):
                yield from one_of(self, field)
        if hasattr(self, "time"):
            yield from shorter(self, "time")
        if hasattr(self, "down"):
            yield from shorter(self, "down", least=Duration(0))

    def without(self, gone: NodeId) -> Self | None:
        """The step in a cluster without this node, where higher ids are one lower; None: no target is left."""
        changed = without_node(self, gone)
        if changed is None or not self.inner_field:
            return changed
        inside = tuple(less for each in self.inner if (less := each.without(gone)) is not None)
        return structs.replace(changed, **{self.inner_field: inside}) if inside else None

    # ---- evidence --------------------------------------------------------------------------------

    in_rounds: ClassVar[bool] = False
    """The step injects its faults in numbered rounds."""
    noted: ClassVar[bool] = False
    """meta.json has a finding of the step after it."""

    @property
    def faults_done(self) -> tuple[Fault, ...]:
        """The faults that have rows in faults.jsonl after the step."""
        return tuple(each for each in self.inner if isinstance(each, Fault))

    def findings(self) -> Iterator[str]:
        """The texts of the findings that meta.json must have after the step."""
        if self.noted:
            yield self.show()

    @abstractmethod
    async def do(self, run: Run, index: int) -> None:
        """Do the step; return when its evidence is there.

        Args:
            index: of this step in the scenario, repeats written out.

        Raises:
            StepMissed: it did not come true in its time.
            NoSuchTarget: its target means no node now.
            RunFailed: the lab could not do it.
        """
        raise NotImplementedError


class Fault(Step, frozen=True):
    """A step that acts on nodes, links or the host, and leaves rows in faults.jsonl."""

    effect: ClassVar[Effect]
    """Of a row of the fault's own word; not set if the fault leaves no such row."""
    also: ClassVar[tuple[str, ...]] = ()
    """Words of rows that the fault may leave besides those that it must leave."""
    ends_process: ClassVar[bool] = False
    """A row of the fault's word with effect has the exit code of a process that the lab ended."""
    row_for_each: ClassVar[bool] = True
    """Each node that the fault names has a row."""
    in_nemesis = True
    acts_on: ClassVar[frozenset[State]] = ANY
    """The states of a node in which the fault has an effect on it."""

    @property
    def leaves(self) -> tuple[str, ...]:
        """Words of rows: the fault leaves at least one row of each."""
        return (self.word,)

    @property
    def aim(self) -> Target:
        """The nodes that the fault is injected into."""
        target: Target = getattr(self, "target", None) or getattr(self, "on", None) or ()
        return target

    def nodes_with_rows(self, ids: tuple[NodeId, ...]) -> tuple[NodeId, ...]:
        """The nodes that must have rows of this fault: those that it names by id. Roles are not known before the run.

        Args:
            ids: the nodes that `all` means; none, if it is not known before the run which nodes are members.
        """
        parts = target_parts(self.aim) if self.row_for_each else ()
        named = (ids if part == "all" else (part,) for part in parts)
        return tuple(node for nodes in named for node in nodes if isinstance(node, int))

    @property
    def leaves_nodes(self) -> frozenset[State]:
        """The states that the nodes may be in after the fault; empty: unchanged."""
        return frozenset()

    def foresee(self, outlook: Outlook, place: Place) -> None:
        if self.leaves_nodes:
            outlook.set(self.aim, self.leaves_nodes)

    @property
    def faults_done(self) -> tuple[Fault, ...]:
        return (self,)

    @property
    def unhealable(self) -> str:
        """Why no heal undoes the fault, so that a nemesis cannot inject it; "" if a heal does."""
        return ""
