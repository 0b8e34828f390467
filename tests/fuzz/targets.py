"""What is called: every method of the public services, with messages that it takes, to be made wrong from."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from ryzanstein import NUMERICS_VERSION, WIRE_VERSION
from ryzanstein.v1 import cluster_pb2, inference_pb2, operations_pb2, shard_worker_pb2
from ryzanstein.v1.sampling_pb2 import SamplingParams

_NOT_FORMING = cluster_pb2.RendezvousKey(group_id="g0", epoch=1, nonce="x")


@dataclass(frozen=True, slots=True)
class Target:
    """One method. `seeds` are messages that it takes; of a stream, in this order."""

    method: MethodDescriptor
    seeds: Callable[[random.Random], list[Message]]
    #: Called with a proof of the join token: what is behind the guard is reached too.
    proven: bool = False
    #: Fields that stay as they are: a member of the cluster may take it apart, and this is not about that.
    pinned: frozenset[str] = frozenset()
    #: Changed bytes could hit a pinned field.
    bytes_too: bool = True

    @property
    def path(self) -> str:
        return f"/{self.method.containing_service.full_name}/{self.method.name}"


def generate_request(rng: random.Random) -> inference_pb2.GenerateRequest:
    """One that is generated within a moment unless a mutation makes it long."""
    request = inference_pb2.GenerateRequest(
        request_id=rng.choice(("", f"fuzz-{rng.randrange(50)}")),
        sampling=SamplingParams(
            max_tokens=rng.choice((1, 3, 20)),
            temperature=rng.choice((0.0, 0.9)),
            top_p=0.9,
            top_k=20,
            min_p=0.01,
            seed=rng.randrange(2**64),
            stop=["zzz"],
            presence_penalty=0.1,
            frequency_penalty=0.1,
            repetition_penalty=1.1,
            logit_bias={70: 1.0},
            logprobs=2,
        ),
        priority=rng.choice((0, 1)),
        timeout=Duration(seconds=5),
    )
    kind = rng.randrange(3)
    if kind == 0:
        request.text = "Q: What is 2 + 3?\nA:"
    elif kind == 1:
        request.token_ids.ids.extend([70, 80, 90])
    else:
        request.chat.messages.add(role="user", content="What is 347 + 285?")
    return request


def _inference(name: str) -> Callable[[random.Random], list[Message]]:
    def seeds(rng: random.Random) -> list[Message]:
        chat = inference_pb2.ChatPrompt(messages=[inference_pb2.ChatMessage(role="user", content="Hello")])
        request_id = f"fuzz-{rng.randrange(50)}"
        messages: dict[str, Message] = {
            "Generate": generate_request(rng),
            "Attach": inference_pb2.AttachRequest(
                request_id=request_id, received_token_ids=[70] * rng.randrange(3)
            ),
            "Cancel": inference_pb2.CancelRequest(request_id=request_id),
            "ListModels": inference_pb2.ListModelsRequest(),
            "Tokenize": rng.choice(
                (inference_pb2.TokenizeRequest(text="two words"), inference_pb2.TokenizeRequest(chat=chat))
            ),
            "Detokenize": inference_pb2.DetokenizeRequest(token_ids=[70, 80, 90]),
        }
        return [messages[name]]

    return seeds


def _operations(name: str) -> Callable[[random.Random], list[Message]]:
    messages: dict[str, Message] = {
        "GetCluster": operations_pb2.GetClusterRequest(),
        "WatchCluster": operations_pb2.WatchClusterRequest(),
        "DrainWorker": operations_pb2.DrainWorkerRequest(worker_id="nobody"),
        "PlanMemory": operations_pb2.PlanMemoryRequest(
            tensor_parallel_size=2, device_bytes=2**30, memory_utilization=0.9
        ),
    }
    return lambda _rng: [messages[name]]


def _register(rng: random.Random) -> cluster_pb2.RegisterRequest:
    """A worker that nobody reaches: at port 1 nothing listens."""
    return cluster_pb2.RegisterRequest(
        worker_id=f"fuzz-{rng.randrange(8)}",
        incarnation=rng.choice(("1", "1", "1", "2")),
        host="fuzz",
        host_id="fuzz",
        pid=1,
        address="127.0.0.1:1",
        device=cluster_pb2.Device(name="cpu", kind="cpu", total_bytes=2**34, free_bytes=2**34),
        versions=cluster_pb2.Versions(
            release="0", wire=WIRE_VERSION, numerics=NUMERICS_VERSION, torch="2", python="3"
        ),
        highest_epoch=0,
        cpu_threads=1,
    )


def _heartbeats(rng: random.Random) -> list[Message]:
    register = _register(rng)
    return [
        cluster_pb2.HeartbeatRequest(
            worker_id=register.worker_id,
            incarnation=register.incarnation,
            state=cluster_pb2.WORKER_STATE_STANDBY,
            phase="standby",
            memory=cluster_pb2.MemoryUse(total_bytes=2**34, used_bytes=2**20),
            last_collective=cluster_pb2.LastCollective(name="all_reduce", sequence=3),
            device_health=cluster_pb2.DeviceHealth(
                utilization_ratio=0.5, temperature_celsius=40.0, ecc_errors=0
            ),
            communication_seconds={"all_reduce": 1.0},
            communication_bytes={"all_reduce": 100},
            communication_operations={"all_reduce": 2},
            sequence=sequence,
        )
        for sequence in range(1, 4)
    ]


def _rendezvous(name: str) -> Callable[[random.Random], list[Message]]:
    where = _NOT_FORMING
    messages: dict[str, Message] = {
        "SetValue": cluster_pb2.SetValueRequest(rendezvous=where, key="k", value=b"v"),
        "WaitForValues": cluster_pb2.WaitForValuesRequest(rendezvous=where, keys=["k"]),
        "AddToValue": cluster_pb2.AddToValueRequest(rendezvous=where, key="n", amount=1),
        "CompareSetValue": cluster_pb2.CompareSetValueRequest(
            rendezvous=where, key="k", expected=b"", desired=b"v"
        ),
        "CheckValues": cluster_pb2.CheckValuesRequest(rendezvous=where, keys=["k"]),
        "DeleteValue": cluster_pb2.DeleteValueRequest(rendezvous=where, key="k"),
    }
    return lambda _rng: [messages[name]]


def _health(_rng: random.Random) -> list[Message]:
    return [health_pb2.HealthCheckRequest(service="")]


def _reflection(_rng: random.Random) -> list[Message]:
    request = reflection_pb2.ServerReflectionRequest
    return [request(list_services=""), request(file_containing_symbol="ryzanstein.v1.InferenceService")]


def _shard_worker(name: str) -> Callable[[random.Random], list[Message]]:
    """Of epoch 0, which is over wherever one stands."""
    pb = shard_worker_pb2
    messages: dict[str, Message] = {
        "LoadShard": pb.LoadShardRequest(group_id="g0", model=pb.ModelSpec(path="/nowhere", name="m")),
        "JoinGroup": pb.JoinGroupRequest(group_id="g0", nonce="x", members=[pb.GroupMember(worker_id="w")]),
        "Execute": pb.ExecuteRequest(submit=pb.SubmitSequence(sequence_id=2**40, prompt_token_ids=[70])),
        "Abort": pb.AbortRequest(group_id="g0", reason="fuzz"),
        "Drain": pb.DrainRequest(reason="fuzz"),
        "Release": pb.ReleaseRequest(group_id="g0"),
    }
    return lambda _rng: [messages[name]]


def coordinator_targets() -> list[Target]:
    """Everything that the coordinator's public port serves."""
    targets = [
        Target(method, _inference(method.name)) for method in _methods(inference_pb2, "InferenceService")
    ]
    targets *= 3  # most of what strangers can reach
    targets += [
        Target(method, _operations(method.name)) for method in _methods(operations_pb2, "OperationsService")
    ]
    targets += [Target(method, _health) for method in _methods(health_pb2, "Health")]
    targets += [Target(method, _reflection) for method in _methods(reflection_pb2, "ServerReflection")]
    register, heartbeat = _methods(cluster_pb2, "ClusterService")
    for proven in (False, True):
        targets.append(Target(register, lambda rng: [_register(rng)], proven))
        targets.append(Target(heartbeat, _heartbeats, proven))
        targets += [
            Target(method, _rendezvous(method.name), proven)
            for method in _methods(cluster_pb2, "RendezvousService")
        ]
    return targets


def worker_targets() -> list[Target]:
    """Everything that a shard worker serves: to strangers, and to its coordinator as of an epoch that is over."""
    methods = _methods(shard_worker_pb2, "ShardWorkerService")
    strangers = [Target(method, _shard_worker(method.name)) for method in methods]
    return strangers + [
        Target(method, _shard_worker(method.name), proven=True, pinned=frozenset({"epoch"}), bytes_too=False)
        for method in methods
        # A second Execute stream takes the leader from the first, by design: a member could do that.
        if method.name != "Execute"
    ]


def _methods(module: object, service: str) -> list[MethodDescriptor]:
    descriptor: ServiceDescriptor = module.DESCRIPTOR.services_by_name[service]  # type: ignore[attr-defined]
    return list(descriptor.methods)
