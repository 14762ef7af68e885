"""What every step of a scenario has: its words in YAML, and what a run must offer so that the step can be done."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from enum import Enum, auto
from typing import Any, ClassVar, NamedTuple, Self

from msgspec import Struct

from lab.steps.entry import Entry
from lab.steps.machine import Run
from lab.steps.outlook import Outlook
from lab.steps.reducing import one_of, without_node
from lab.steps.writing import brief, flow, plain
from lab.words import Target, Title, target_parts
from nodeproc.core.messages import NodeId
from nodeproc.yamlfile import Place


class Needs(NamedTuple):
    """What a run must offer so that a step can be done.

    proxy: frames between nodes pass the lab's proxy.
    client_proxy: so does what clients and nodes send to each other.
    layer: what real nodes write, and the clocks that they read, pass the lab's layer: lab.live.inside.faulty_node.
    own_node: the nodes are the lab's own, not a program that `cluster.command` starts.
    majority: a majority of the nodes runs.
    load: the scenario has a load. load_end: that load has a count or a duration.
    real_time: why the step can't be simulated; "": it can.
    real_time_field: the field that can't be; "": the whole step.
    """

    proxy: bool = False
    client_proxy: bool = False
    layer: bool = False
    own_node: bool = False
    majority: bool = False
    load: bool = False
    load_end: bool = False
    real_time: str = ""
    real_time_field: str = ""


class Effect(Enum):
    """What a row of faults.jsonl says of the cluster, for those that judge it."""

    DOWN = auto()
    """A node's process is gone or stands still, until a row of UP."""
    UP = auto()
    """It is there again, or goes on."""
    LINKS = auto()
    """Frames on some links are treated badly."""
    SLOW = auto()
    """A node's disk or clock is bad; the node may be slow, or end by itself."""
    HEALED = auto()
    """Links are straight again."""
    NONE = auto()
    """Nothing that a judge has to make allowance for."""


class Step(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all steps; lab.steps.STEPS lists the subclasses."""

    word: ClassVar[str]
    """The key that it has in YAML."""
    short: ClassVar[str] = ""
    """The field that a plain value stands for; "": none."""
    only: ClassVar[str] = ""
    """The field whose value stands behind the word, with no key of its own; "": all fields have keys."""
    single: ClassVar[type[Struct] | None] = None
    """Its fields may stand beside the step's own, in place of a list of one such struct in `short`."""
    in_when: ClassVar[bool] = False
    """A `when` may do it."""
    in_nemesis: ClassVar[bool] = False
    """A `nemesis` may do it."""
    inner_key: ClassVar[str] = ""
    """The key in YAML of the steps inside; "": none can be."""
    name: Title = ""
    """For progress lines and results; "": the step itself is shown."""

    @property
    def needs(self) -> Needs:
        """What the run must offer; the steps inside have needs of their own."""
        return Needs()

    # ---- YAML ------------------------------------------------------------------------------------

    @classmethod
    def read(cls, entry: Entry) -> Self:
        """The step whose value, behind its word, stands at an entry. Raises ConfigError."""
        step = entry.struct(cls, cls.short)
        if entry.setting.foreign and step.needs.own_node:
            entry.fail("is for the lab's own nodes; of one that cluster.command starts only the surface is known")
        step.check(entry)
        return step

    def check(self, entry: Entry) -> None:
        """Refuse what the types of the fields can't: fields that do not go together, or not with this cluster."""

    def in_full(self) -> Any:
        """What stands behind the word, every default written out."""
        return plain(self)

    def in_brief(self) -> Any:
        """What people would write behind the word, defaults left out."""
        return brief(self, self.short)

    def shown(self) -> Any:
        """As in_brief(), short enough for one line."""
        return self.in_brief()

    def as_yaml(self, *, in_brief: bool) -> dict[str, Any]:
        """The step as it stands in a list of steps."""
        inside = {self.word: self.in_brief() if in_brief else self.in_full()}
        return {**inside, "name": self.name} if self.name else inside

    @property
    def words(self) -> str:
        """The step in one line, as it could stand in a scenario, whatever its name."""
        return f"{self.word}: {flow(self.shown())}"

    def show(self) -> str:
        """One line for people: its name, or its words."""
        return self.name or self.words

    # ---- steps inside ----------------------------------------------------------------------------

    @property
    def inner(self) -> tuple[Step, ...]:
        """The steps inside, as the file has them."""
        return ()

    @property
    def rounds(self) -> int:
        """How often the steps inside are done in place of this one; 0: this one itself is done."""
        return 0

    @property
    def unrolled_count(self) -> int:
        """How many steps unrolled() yields."""
        return self.rounds * sum(step.unrolled_count for step in self.inner) if self.rounds else 1

    def unrolled(self) -> Iterator[Step]:
        """The steps that are done one after the other in place of this one."""
        if not self.rounds:
            yield self
        for _ in range(self.rounds):
            for step in self.inner:
                yield from step.unrolled()

    # ---- messages --------------------------------------------------------------------------------

    @property
    def starts_load(self) -> bool:
        """The scenario's load runs from here on."""
        return False

    def sends(self, planned: int) -> int:
        """How many messages the step sends.

        Args:
            planned: messages of the scenario's load from a start on; 0 where only a stop ends it.
        """
        return 0

    def texts(self, made: dict[int, int]) -> Iterator[str]:
        """The texts of the messages that the step itself sends.

        Args:
            made: client -> how many texts were made for it by the steps before; changed.
        """
        yield from ()

    # ---- what comes of it, as far as the file tells ----------------------------------------------

    def aims(self) -> tuple[Struct, ...]:
        """The structs whose targets must mean somebody when the step is done."""
        return (self,)

    def impossible(self, outlook: Outlook) -> Iterator[str]:
        """Why the step certainly fails at this point of the scenario."""
        yield from ()

    def foresee(self, outlook: Outlook, place: Place) -> None:
        """Note what the step does to nodes and load. place: of its word in the file."""

    # ---- shrinking -------------------------------------------------------------------------------

    def reduce(self) -> Iterator[Self]:
        """Each way to say less with one step, the boldest first; some may be equal to the step."""
        for field in ("target", "source", "to"):
            if hasattr(self, field):
                yield from one_of(self, field)

    def without(self, gone: NodeId) -> Self | None:
        """The step in a cluster without that node, where higher ids are one lower; None: it was about it alone."""
        return without_node(self, gone)

    # ---- evidence --------------------------------------------------------------------------------

    in_rounds: ClassVar[bool] = False
    """It does its faults in numbered rounds."""

    @property
    def faults_done(self) -> tuple[Fault, ...]:
        """The faults that have rows in faults.jsonl when the step is done."""
        return ()

    def findings(self) -> Iterator[str]:
        """The texts that meta.json has findings of when the step is done."""
        yield from ()

    @abstractmethod
    async def do(self, run: Run, index: int) -> None:
        """Do it; done when its evidence is there.

        Args:
            index: of this step in the scenario, repeats written out.

        Raises:
            StepMissed: it did not come true in its time.
            NoSuchTarget: its target means nobody now.
            RunFailed: the lab could not do it.
        """
        raise NotImplementedError


class Fault(Step, frozen=True):
    """A step that does something to nodes, links or the host; it leaves rows in faults.jsonl."""

    effect: ClassVar[Effect]
    """Of a row that bears its word."""
    at_once: ClassVar[bool] = False
    """Over when it is done."""

    in_when = True
    in_nemesis = True
    rows: ClassVar[tuple[str, ...]] = ()
    """The kinds of rows that it may leave; (): of its own word."""
    ends_process: ClassVar[bool] = False
    """A row of its own word says that a process was ended."""

    @classmethod
    def row_kinds(cls) -> tuple[str, ...]:
        """The kinds of rows that it may leave."""
        return cls.rows or (cls.word,)

    def proofs(self) -> tuple[tuple[str, ...], ...]:
        """For each of these, a row of one of its kinds is there when the step was done."""
        return (self.row_kinds(),)

    def nodes_with_rows(self, ids: tuple[NodeId, ...]) -> tuple[NodeId, ...]:
        """The nodes that the step names, each of which has its rows; a role means nobody before the run.

        Args:
            ids: all nodes of the cluster.
        """
        target: Target = getattr(self, "target", None) or getattr(self, "on", None) or ()
        named = (ids if part == "all" else (part,) for part in target_parts(target))
        return tuple(node for nodes in named for node in nodes if isinstance(node, int))

    @property
    def faults_done(self) -> tuple[Fault, ...]:
        return (self,)

    @property
    def unhealable(self) -> str:
        """Why no heal undoes it, so that a nemesis can't do it; "": one does."""
        return ""
