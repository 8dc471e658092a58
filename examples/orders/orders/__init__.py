"""Orders: a customer places one, the warehouse ships it, and the customer's stream gets `orders.shipped`."""

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

from pydantic import Field
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from allim.catalogue import EventData, EventType
from allim.domains.domain import Domain, Host, Opened
from allim.domains.signals import ACCOUNT_DELETED
from allim.errors import NotFound
from allim.http.bodies import Body, read_model
from allim.http.routing import Answer, Caller, Parameter, operation, route
from allim.hub import Draft
from allim.identity import Identity
from allim.storage import reading, writing
from allim.work import Job


class Shipped(EventData):
    order_id: str


SHIPPED = EventType("orders.shipped", Shipped, "orders:{orderId}", "An order was shipped.", {"orderId": "7"})


class NewOrder(Body):
    item: str = Field(min_length=1, max_length=100)


class Order(NewOrder):
    id: str
    state: Literal["placed", "shipped", "closed"] = Field(description="`closed`: the receipt is sent.")


@asynccontextmanager
async def open_orders(host: Host[None]) -> AsyncIterator[Opened]:
    @operation(caller=Caller.USER, body=NewOrder, answers={201: Answer("Placed.", Order)})
    async def place(request: Request) -> Response:
        """Place an order."""
        identity = await host.gate.identify(request)
        new = await read_model(request, NewOrder)
        order = Order(id=str(uuid.uuid4()), item=new.item, state="placed")
        row = {**order.model_dump(), "me": identity.subject, "now": host.now()}
        async with writing(host.engine) as connection:
            await connection.execute(text("INSERT INTO allim_orders VALUES (:id, :me, :item, :state, :now)"), row)
        return JSONResponse(order.model_dump(), 201)

    @operation(caller=Caller.USER, answers={200: Answer("The newest 100.", list[Order])})
    async def show(request: Request) -> Response:
        """List your own orders, newest first."""
        mine = {"me": (await host.gate.identify(request)).subject}
        query = "SELECT id, item, state FROM allim_orders WHERE customer = :me ORDER BY placed_at DESC LIMIT 100"
        async with reading(host.engine) as connection:
            return JSONResponse([row._asdict() for row in await connection.execute(text(query), mine)])

    path = Parameter("path", "id", str, "The order's `id`.")

    @operation(caller=Caller.OPERATOR, parameters=[path], answers={200: Answer("Shipped.", Order)}, fails=[NotFound])
    async def ship(request: Request) -> Response:
        """Ship an order. 404 unless it is placed and not shipped yet."""
        await host.gate.require_operator(request)
        statement = "UPDATE allim_orders SET state = 'shipped' WHERE id = :id AND state = 'placed' RETURNING item"
        id_ = str(request.path_params["id"])
        async with writing(host.engine) as connection:
            item = await connection.scalar(text(statement), {"id": id_})
            if item is None:
                raise NotFound("No order with this ID waits to be shipped.")
            await host.work.enqueue(connection, "orders.receipt", id_)  # no commit, no job
        return JSONResponse({"id": id_, "item": item, "state": "shipped"})

    @host.work.job("orders.receipt", str)  # it may run twice; the event's key makes it one event
    async def send_receipt(job: Job[str]) -> None:
        id_ = job.arguments
        await host.hub.publish([Draft(f"orders:{id_}", SHIPPED.name, {"orderId": id_})], f"orders:{id_}:shipped")
        async with writing(host.engine) as connection:
            await job.complete(connection)
            await connection.execute(text("UPDATE allim_orders SET state = 'closed' WHERE id = :id"), {"id": id_})

    async def may_read(identity: Identity, id_: str) -> bool:
        query = text("SELECT customer FROM allim_orders WHERE id = :id")
        async with reading(host.engine) as connection:
            return bool(await connection.scalar(query, {"id": id_}) == identity.subject)

    async def delete_in(connection: AsyncConnection, account: str) -> None:
        await connection.execute(text("DELETE FROM allim_orders WHERE customer = :account"), {"account": account})

    host.signals.on(ACCOUNT_DELETED, delete_in)  # in the transaction that deletes the account
    orders = route("/api/orders", tag="Orders", get=show, post=place)
    shipment = route("/api/orders/{id:uuid}/shipment", tag="Orders", post=ship)
    yield Opened(routes=[orders, shipment], rules={"orders": may_read})  # decides on topics `orders:<id>`


DOMAIN = Domain("orders", open_orders, events=(SHIPPED,), migrations=Path(__file__).parent / "migrations")
