"""Drives an SDK through every fault of `fusebox demo`: what openai_sdk.py and anthropic_sdk.py have in common."""

import json
import subprocess
import sys
import time
import urllib.request

THRESHOLD = 3


def through_every_fault(port, calls, ask, is_broken):
    """`ask()` makes `calls` calls, and returns how many streams broke off. No other exception may reach it. `is_broken(fault,
    state)` tells whether the first provider is out, for a fault that can take it out as a whole."""

    def control(fault):
        urllib.request.urlopen(f"http://127.0.0.1:{port + 1}/primary/{fault}", data=b"", timeout=5).read()

    def state():
        health = urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
        return json.load(health)["providers"]["primary"]["state"]

    def metric(line):
        metrics = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
        return next(int(found.split()[-1]) for found in metrics.splitlines() if found.startswith(line))

    demo = subprocess.Popen([sys.argv[1], "demo", "--port", str(port)], stdout=subprocess.DEVNULL)
    try:
        for _ in range(100):
            try:
                control("heal")
                break
            except OSError:
                time.sleep(0.05)
        assert ask() == 0 and state() == "closed"
        for fault in ["500", "hang", "refuse", "429", "abort", "slow"]:
            probes = metric("fusebox_circuit_probes_total")
            control(fault)
            rounds = cut = 0
            while rounds < 8 or not is_broken(fault, state()):
                cut += ask()
                rounds += 1
            control("heal")
            deadline = time.monotonic() + 10
            while state() != "closed":
                assert time.monotonic() < deadline, "the circuit did not close"
                cut += ask()
                rounds += 1
            most = THRESHOLD + metric("fusebox_circuit_probes_total") - probes if fault in ["abort", "slow"] else 0
            assert cut <= most, f"{fault}: {cut} streams broke off, more than {most}"
            print(f"{fault}: {rounds} rounds of {calls} calls, {cut} streams broke off")
        print("ok: no other exception reached the caller")
    finally:
        demo.terminate()
        demo.wait()
