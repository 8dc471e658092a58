"""Notes of users: a route, an event, a topic rule, a table with its migration, a job and a check."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import Field
from sqlalchemy import text
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from allim.catalogue import EventData, EventType
from allim.domains.domain import Domain, Host, Opened
from allim.http.bodies import Body, read_model
from allim.http.routing import Answer, Caller, operation, route
from allim.hub import Draft
from allim.identity import Identity
from allim.storage import reading, writing
from allim.work import Job


class NoteAdded(EventData):
    """The text of a note."""

    text: str


ADDED = EventType(
    name="notes.added", model=NoteAdded, topic="notes:{id}", summary="A note was added.", example={"text": "milk"}
)


class NewNote(Body):
    text: Annotated[str, Field(min_length=1, max_length=100)]


class Notes(Body):
    notes: list[str]
    counted: int


class Added(NamedTuple):
    owner: str
    text: str


async def is_owner(identity: Identity, owner: str) -> bool:
    return identity.subject == owner


@asynccontextmanager
async def open_notes(host: Host[None]) -> AsyncIterator[Opened]:
    @host.work.job("notes.added", Added)
    async def announce(job: Job[Added]) -> None:
        owner, note = job.arguments
        await host.hub.publish([Draft(f"notes:{owner}", ADDED.name, {"text": note})], f"notes {owner} {note}")
        async with writing(host.engine) as connection:
            await job.complete(connection)
            await connection.execute(text("UPDATE allim_notes SET counted = 1 WHERE text = :text"), {"text": note})

    @operation(caller=Caller.USER, body=NewNote, answers={201: Answer("Added.", NewNote)})
    async def add_note(request: Request) -> Response:
        """Add a note."""
        identity = await host.gate.identify(request)
        new = await read_model(request, NewNote)
        async with writing(host.engine) as connection:
            row = {"owner": identity.subject, "text": new.text}
            await connection.execute(text("INSERT INTO allim_notes VALUES (:owner, :text, 0)"), row)
            await host.work.enqueue(connection, "notes.added", Added(identity.subject, new.text))
        return JSONResponse(new.model_dump(), 201)

    @operation(caller=Caller.USER, answers={200: Answer("The notes.", Notes)})
    async def show_notes(request: Request) -> Response:
        """List the notes."""
        identity = await host.gate.identify(request)
        query = text("SELECT text, counted FROM allim_notes WHERE owner = :owner")
        async with reading(host.engine) as connection:
            rows = (await connection.execute(query, {"owner": identity.subject})).all()
        notes = Notes(notes=[row.text for row in rows], counted=sum(row.counted for row in rows))
        return JSONResponse(notes.model_dump())

    async def check() -> None:
        """A real domain asks the thing that it stands on."""

    yield Opened(
        routes=[route("/api/notes", tag="Notes", get=show_notes, post=add_note)],
        rules={"notes": is_owner},
        checks={"notes": check},
    )


DOMAIN = Domain("notes", open_notes, events=(ADDED,), migrations=Path(__file__).parent / "migrations")
