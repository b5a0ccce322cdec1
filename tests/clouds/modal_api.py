"""A stand-in for the API of Modal (gRPC): it has one app, `afterwords-tone`, whose calls run in the container."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

from google.protobuf.empty_pb2 import Empty
from grpclib.const import Status
from grpclib.exceptions import GRPCError
from grpclib.server import Server
from modal._serialization import deserialize_data_format, serialize_data_format
from modal_proto import api_pb2
from modal_proto.api_grpc import ModalClientBase

from tests.clouds.standin import MODAL_TOKEN, Container, Edge

Answer = Callable[[Any], Any]


def serve(edge: Edge) -> str:
    """Serve in a thread, and return the address."""
    started = threading.Event()
    url = []

    async def run() -> None:
        server = Server([create_api(edge)])
        await server.start("127.0.0.1", 0)
        assert server._server is not None
        url.append(f"http://127.0.0.1:{server._server.sockets[0].getsockname()[1]}")  # type: ignore[attr-defined]
        started.set()
        await server.wait_closed()

    threading.Thread(target=lambda: asyncio.run(run()), daemon=True).start()
    started.wait(60)
    return url[0]


def create_api(edge: Edge) -> Any:
    """Return the service, in which the methods of `Api` answer, and all others are unknown."""
    api = Api(edge.container)
    answers: dict[str, Answer] = {
        "ClassGet": api.class_get,
        "FunctionGet": api.function_get,
        "FunctionMap": api.function_map,
        "FunctionGetOutputs": api.function_get_outputs,
        "FunctionCallCancel": api.function_call_cancel,
    }
    methods = {name: answering(name, answers.get(name), edge) for name in ModalClientBase.__abstractmethods__}
    return type("Service", (ModalClientBase,), methods)()


def answering(name: str, answer: Answer | None, edge: Edge) -> Callable[[Any, Any], Awaitable[None]]:
    async def respond(_: Any, stream: Any) -> None:
        message = await stream.recv_message()
        if answer is None:
            raise GRPCError(Status.UNIMPLEMENTED, name)
        if edge.answer is not None:
            edge.refused.append(name)
            raise GRPCError(Status.RESOURCE_EXHAUSTED, "the API is busy")
        if stream.metadata.get("x-modal-token-secret") != MODAL_TOKEN:
            raise GRPCError(Status.UNAUTHENTICATED, "the token is wrong")
        await stream.send_message(await asyncio.to_thread(answer, message))

    return respond


class Api:
    """What the client of Modal calls to start a method of a class, ask for its result, and cancel it."""

    def __init__(self, container: Container) -> None:
        self.container = container

    def class_get(self, asked: Any) -> Any:
        self._check(asked)
        return api_pb2.ClassGetResponse(class_id="cs-1")

    def function_get(self, asked: Any) -> Any:
        self._check(asked)
        method = api_pb2.FunctionHandleMetadata(function_name="Speaker.run", is_method=True)
        metadata = api_pb2.FunctionHandleMetadata(function_name="Speaker.*", method_handle_metadata={"run": method})
        ranked = [api_pb2.FunctionData.RankedFunction(rank=0, function=api_pb2.Function(function_name="Speaker.*"))]
        function = api_pb2.FunctionData(ranked_functions=ranked)
        return api_pb2.FunctionGetResponse(function_id="fu-1", handle_metadata=metadata, function=function)

    def function_map(self, asked: Any) -> Any:
        [item] = asked.pipelined_inputs
        (given,), _ = deserialize_data_format(item.input.args, item.input.data_format, None)
        answer = api_pb2.FunctionPutInputsResponseItem(idx=item.idx, input_id="in-1", input_jwt="jwt")
        call_id = self.container.call(given)
        return api_pb2.FunctionMapResponse(function_call_id=f"fc-{call_id}", pipelined_inputs=[answer])

    def function_get_outputs(self, asked: Any) -> Any:
        state = self.container.states[asked.function_call_id.removeprefix("fc-")]
        if state == "IN_PROGRESS":
            return api_pb2.FunctionGetOutputsResponse(num_unfinished_inputs=1)
        status = api_pb2.GenericResult.GENERIC_STATUS_SUCCESS
        if state != "COMPLETED":
            status = api_pb2.GenericResult.GENERIC_STATUS_INTERNAL_FAILURE
        data = serialize_data_format(None, api_pb2.DATA_FORMAT_PICKLE)
        result = api_pb2.GenericResult(status=status, exception="the container died", data=data)
        output = api_pb2.FunctionGetOutputsItem(result=result, input_id="in-1", data_format=api_pb2.DATA_FORMAT_PICKLE)
        return api_pb2.FunctionGetOutputsResponse(idxs=[0], outputs=[output])

    def function_call_cancel(self, asked: Any) -> Any:
        self.container.states[asked.function_call_id.removeprefix("fc-")] = "CANCELLED"
        return Empty()

    def _check(self, asked: Any) -> None:
        if asked.app_name != "afterwords-tone":
            raise GRPCError(Status.NOT_FOUND, "there is no such app")
