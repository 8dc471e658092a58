"""`/metrics`, for Prometheus."""

from starlette.requests import Request
from starlette.responses import Response

from allim.http.routing import Answer, Resource, operation, route
from allim.telemetry import Metrics


def routes(metrics: Metrics) -> list[Resource]:
    """Return the route of the replica's metrics."""

    @operation(answers={200: Answer("Prometheus text.", str, media_type="text/plain")})
    async def show_metrics(_: Request) -> Response:
        """Show the replica's metrics."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return [route("/metrics", tag="Running it", get=show_metrics)]
