// Drives an SDK through every fault of `fusebox demo`, as faults.py does: what openai_sdk.mjs and anthropic_sdk.mjs have in
// common.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { setTimeout as sleep } from "node:timers/promises";

const THRESHOLD = 3;

// `ask()` makes `calls` calls, and returns how many streams broke off. No other exception may reach it. `isBroken(fault, state)`
// tells whether the first provider is out, for a fault that can take it out as a whole.
export async function throughEveryFault(port, calls, ask, isBroken) {
  const control = (fault) => fetch(`http://127.0.0.1:${port + 1}/primary/${fault}`, { method: "POST" });
  const get = (path) => fetch(`http://127.0.0.1:${port}${path}`);
  const state = async () => (await (await get("/health")).json()).providers.primary.state;
  const probes = async () => {
    const lines = (await (await get("/metrics")).text()).split("\n");
    return Number(lines.find((line) => line.startsWith("fusebox_circuit_probes_total")).split(" ").at(-1));
  };

  const demo = spawn(process.argv[2], ["demo", "--port", String(port)], { stdio: ["ignore", "ignore", "inherit"] });
  try {
    for (let tries = 0; tries < 100; tries++) {
      try {
        await control("heal");
        break;
      } catch {
        await sleep(50);
      }
    }
    assert.equal(await ask(), 0);
    assert.equal(await state(), "closed");
    for (const fault of ["500", "hang", "refuse", "429", "abort", "slow"]) {
      const before = await probes();
      await control(fault);
      let [rounds, cut] = [0, 0];
      while (rounds < 8 || !isBroken(fault, await state())) {
        cut += await ask();
        rounds++;
      }
      await control("heal");
      const deadline = Date.now() + 10_000;
      while ((await state()) !== "closed") {
        assert(Date.now() < deadline, "the circuit did not close");
        cut += await ask();
        rounds++;
      }
      const breaks = fault === "abort" || fault === "slow";
      const most = breaks ? THRESHOLD + (await probes()) - before : 0;
      assert(cut <= most, `${fault}: ${cut} streams broke off, more than ${most}`);
      console.log(`${fault}: ${rounds} rounds of ${calls} calls, ${cut} streams broke off`);
    }
    console.log("ok: no other exception reached the caller");
  } finally {
    demo.kill();
  }
}
