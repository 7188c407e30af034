/** What happens in a simulation, drawn from its seed before it begins, so that a failing one can be made smaller. */
import { Random } from '../fault/random.ts';
import { runLength, UNITS_COUNT, UNITS_PER_REGION } from './geometry.ts';

export interface Op {
  readonly atMs: number;
  readonly kind: 'write' | 'read' | 'flush';
  readonly unit: number;
  readonly count: number;
  readonly queue: number;
}

export type FaultKind =
  | 'kill-node'
  | 'power-node'
  | 'stop-node'
  | 'slow-disk'
  | 'failing-disk'
  | 'rot'
  | 'isolate-node'
  | 'cut-nodes'
  | 'cut-agent-node'
  | 'break-link'
  | 'deaf-queue'
  | 'cut-agent-control'
  | 'cut-control-node'
  | 'kill-agent'
  | 'stop-agent'
  | 'kill-control'
  | 'replace-control'
  | 'move'
  | 'detach'
  | 'drain'
  | 'blackout';

export interface Fault {
  readonly atMs: number;
  readonly kind: FaultKind;
  readonly target: number;
  readonly other: number;
  readonly durationMs: number;
}

export interface Plan {
  readonly seed: number;
  /** Of the volume's replicas. */
  readonly nodeCount: number;
  /** Further ones, to which replicas may move. */
  readonly spareCount: number;
  readonly agentCount: number;
  readonly ops: readonly Op[];
  readonly faults: readonly Fault[];
  readonly endMs: number;
  /** Of each device. */
  readonly queueCount: number;
  /** Between two checkpoints of a device. */
  readonly checkpointMs: number;
}

const KINDS: readonly (readonly [FaultKind, number])[] = [
  ['kill-node', 5],
  ['power-node', 6],
  ['stop-node', 2],
  ['slow-disk', 2],
  ['failing-disk', 2],
  ['rot', 4],
  ['isolate-node', 3],
  ['cut-nodes', 2],
  ['cut-agent-node', 5],
  ['break-link', 5],
  ['deaf-queue', 2],
  ['cut-agent-control', 2],
  ['cut-control-node', 3],
  ['kill-agent', 4],
  ['stop-agent', 2],
  ['kill-control', 3],
  ['replace-control', 3],
  ['move', 4],
  ['detach', 1],
  ['drain', 3],
  ['blackout', 1],
];

export function drawPlan(seed: number): Plan {
  const random = new Random(Math.imul(seed, 0x9e3779b1) ^ 0x5bd1e995);
  const between = (low: number, high: number): number => low + random.below(high - low + 1);
  const nodeCount = random.oneIn(3) ? 2 : 3;
  const spareCount = random.oneIn(2) ? 1 : 0;
  const agentCount = 2;
  const queueCount = random.oneIn(2) ? 1 : between(2, 3);
  const endMs = between(2500, 6000);
  const hot = Array.from({ length: between(1, 5) }, () => random.below(UNITS_COUNT / UNITS_PER_REGION));
  const readShare = between(15, 60);
  const flushShare = between(2, 12);
  const ops: Op[] = [];
  let atMs = 300;
  const gapMs = between(10, 50);
  while (atMs < endMs) {
    atMs += random.oneIn(3) ? 0.1 : random.below(gapMs * 2);
    const roll = random.below(100);
    const unit = random.pick(hot) * UNITS_PER_REGION + random.below(random.oneIn(3) ? UNITS_PER_REGION : 3);
    const count = Math.min(runLength(unit), random.oneIn(3) ? between(2, 3) : 1);
    const kind = roll < readShare ? 'read' : roll < readShare + flushShare ? 'flush' : 'write';
    ops.push({ atMs, kind, unit, count, queue: random.below(6) });
  }
  const faults: Fault[] = [];
  const total = KINDS.reduce((sum, [, weight]) => sum + weight, 0);
  const faultCount = random.oneIn(20) ? 0 : between(1, 9);
  for (let i = 0; i < faultCount; i++) {
    let roll = random.below(total);
    const kind = KINDS.find(([, weight]) => {
      roll -= weight;
      return roll < 0;
    })![0];
    const durationMs = random.oneIn(3) ? between(5, 150) : between(150, 2000);
    faults.push({
      atMs: between(300, endMs),
      kind,
      target: random.below(8),
      other: random.below(8),
      durationMs,
    });
  }
  if (random.oneIn(2)) faults.push(...drawScenario(random, { nodeCount, queueCount }, between(300, endMs)));
  faults.sort((a, b) => a.atMs - b.atMs);
  const checkpointMs = random.oneIn(2) ? between(20, 80) : between(80, 400);
  return { seed, nodeCount, spareCount, agentCount, queueCount, ops, faults, endMs, checkpointMs };
}

/** Faults that make each other worse. */
function drawScenario(
  random: Random,
  { nodeCount, queueCount }: Pick<Plan, 'nodeCount' | 'queueCount'>,
  atMs: number,
): Fault[] {
  const target = random.below(nodeCount);
  const other = random.below(8);
  const fault = (kind: FaultKind, delayMs: number, durationMs: number): Fault => ({
    ...{ atMs: atMs + delayMs, kind, target, other, durationMs },
  });
  const soonMs = 20 + random.below(400);
  const nodeFault = random.oneIn(2) ? 'kill-node' : 'power-node';
  const others = Array.from({ length: nodeCount - 1 }, (_, i) => target + 1 + i);
  switch (random.below(queueCount > 1 ? 12 : 10)) {
    // A writer and a slow replica end together: its last writes are on the others only.
    case 0:
      return [
        fault('slow-disk', 0, 600),
        fault('kill-agent', soonMs, 100),
        fault(nodeFault, soonMs + random.below(5) / 2, 5 + random.below(100)),
      ];
    // A writer ends that could not reach a replica.
    case 1:
      return [
        fault('cut-agent-node', 0, 100 + random.below(500)),
        fault(random.oneIn(2) ? 'kill-agent' : 'move', soonMs, 200),
      ];
    // Everything stops at once.
    case 2:
      return [fault('kill-agent', 0, 100), fault('blackout', random.below(5) / 2, 50)];
    // A replica is away for a moment only, or again while it is rebuilt.
    case 3:
      return [
        fault(nodeFault, 0, 5 + random.below(60)),
        fault(nodeFault, 100 + soonMs, 5 + random.below(60)),
      ];
    // The last one left cannot be reached for a while, and what was sent then arrives late.
    case 4:
      return [
        ...others.map((node) => ({ ...fault('kill-node', 0, 2500), target: node })),
        ...[other, other + 1].flatMap((agent) => [
          { ...fault('cut-agent-node', 350, 410 + random.below(300)), other: agent },
          { ...fault('cut-agent-node', 1300, 410 + random.below(300)), other: agent },
        ]),
      ];
    // Power fails in the middle of a slow checkpoint.
    case 5:
      return [fault('slow-disk', 0, 300), fault('power-node', soonMs / 2, 5 + random.below(60))];
    // The writer is replaced in the middle of a slow rebuild, and had not reached everybody.
    case 6:
      return [
        fault(nodeFault, 0, 5 + random.below(60)),
        fault('slow-disk', 100, 1500),
        { ...fault('cut-agent-node', 100 + soonMs, 300), target: target + 1 },
        fault(random.oneIn(2) ? 'kill-agent' : 'move', 150 + soonMs, 50),
      ];
    // What has rotted is to be repaired from one that leaves meanwhile, or is slow.
    case 7:
      return [
        fault('rot', 0, 5),
        random.oneIn(2)
          ? { ...fault('isolate-node', random.below(400), 500 + random.below(1000)), target: target + 1 }
          : { ...fault('slow-disk', 0, 1000 + random.below(1000)), target: target + 1 },
      ];
    // A replica moves, and either end of the move fails, or who directs it.
    case 8:
      return [
        fault('drain', 0, 1500 + random.below(1500)),
        random.oneIn(2)
          ? {
              ...fault(nodeFault, soonMs, 5 + random.below(300)),
              target: target + random.below(2) * nodeCount,
            }
          : fault('replace-control', random.below(100), 200 + random.below(1000)),
      ];
    // One queue goes on without a replica that another one still reads from.
    case 10:
    case 11:
      return [
        { ...fault('deaf-queue', 0, 300 + random.below(600)), other: other + 1 },
        fault('break-link', random.below(50), 5),
      ];
    // The last one left loses power, and one queue hears of it late.
    default:
      return [
        ...(queueCount > 1 && random.oneIn(2) ? [fault('deaf-queue', 500, 1500 + random.below(1500))] : []),
        fault('cut-agent-node', 0, 1200),
        { ...fault('power-node', 600 + random.below(400), 5 + random.below(100)), target: target + 1 },
        { ...fault('power-node', 600 + random.below(400), 5 + random.below(100)), target: target + 2 },
      ];
  }
}
