"""Once a server reports SERVING, no request waits for the compiler or for an import."""

from __future__ import annotations

import subprocess
import sys

# Runs a server in this process, so that what it compiles and imports can be seen from within.
SCRIPT = """
import os, signal, sys, threading
import grpc
from numba.core import event
import pkpo_client  # what the calls below need is imported before
from pkpo.v1 import reward_transform_pb2 as pb, reward_transform_pb2_grpc as pb_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pkpo_server import lifecycle, settings

socket = sys.argv[1]
compiled, imported = [], []

def ask():
    with grpc.insecure_channel("unix:" + socket) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for answer in health.Watch(health_pb2.HealthCheckRequest(), wait_for_ready=True):
            if answer.status == health_pb2.HealthCheckResponse.SERVING:
                break
        stub = pb_grpc.RewardTransformServiceStub(channel)
        before = set(sys.modules)
        with event.install_recorder("numba:compile") as recorder:
            for variant in pb.Variant.values():
                for groups in (
                    pb.RewardGroups(f64=pb.DoubleValues(values=[0, 1, 1, 0]), group_size=4),
                    pb.RewardGroups(f32=pb.FloatValues(values=[0, 1, 1, 0, 1, 0]),
                                    group_sizes=pb.GroupSizes(sizes=[4, 2])),
                ):
                    k = [0] if variant == pb.VARIANT_TZSM else [2]
                    request = pb.TransformRequest(groups=groups, variant=variant, k=k, k_policy=pb.K_POLICY_CLAMP,
                                                  estimate_k=[1, 2])
                    stub.Transform(request)
                    list(stub.TransformStream(iter([pb.TransformStreamRequest(request=request)])))
                    stub.Estimate(pb.EstimateRequest(groups=groups, k=[1, 2]))
            try:
                stub.Transform(pb.TransformRequest())
            except grpc.RpcError as error:
                assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        compiled.extend(recorder.buffer)
        imported.extend(set(sys.modules) - before)
    os.kill(os.getpid(), signal.SIGTERM)

threading.Thread(target=ask, daemon=True).start()
status = lifecycle.run_server(settings.read_settings(["--unix-socket", socket, "--metrics-port", "0"]))
assert status == 0, status
print("compiled", len(compiled), "imported", sorted(imported))
"""


def test_nothing_is_compiled_or_imported_by_a_request(tmp_path: object) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, f"{tmp_path}/pkpo.sock"],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "compiled 0 imported []\n"
