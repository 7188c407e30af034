/** CPU time from /proc, in microseconds. The grain is a jiffy: windows of seconds, not of milliseconds. */
import { readdirSync, readFileSync } from 'node:fs';

/** USER_HZ, the unit of every time in /proc (time(7)). */
export const JIFFY_US = 10_000;

/** Time that all CPUs were busy, from the first line of /proc/stat: user, nice, system, irq, softirq, steal. */
export function busyUs(line: string): number {
  // cpu user nice system idle iowait irq softirq steal guest guest_nice (proc(5)); guest time is part of user's.
  const [user = 0, nice = 0, system = 0, , , irq = 0, softirq = 0, steal = 0] = line
    .trim()
    .split(/\s+/)
    .slice(1)
    .map(Number);
  return (user + nice + system + irq + softirq + steal) * JIFFY_US;
}

/** Time that all CPUs were idle, waiting for I/O included, from the same line. */
export function idleUs(line: string): number {
  const fields = line.trim().split(/\s+/).map(Number);
  return ((fields[4] ?? 0) + (fields[5] ?? 0)) * JIFFY_US;
}

export interface ProcessTimes {
  readonly parentPid: number;
  /** User and system time of all threads, also of those that ended. */
  readonly ownUs: number;
  /** The same of children that ended and were waited for. */
  readonly childrenUs: number;
}

/** Reads one line of /proc/PID/stat (proc(5)); null for anything else, such as nothing. */
export function processTimes(line: string): ProcessTimes | null {
  // The program's name is in parentheses and may contain anything.
  const close = line.lastIndexOf(')');
  if (close < 0) return null;
  const fields = line.slice(close + 2).split(' ');
  // fields[0] is the process's third field, its state.
  const at = (number: number): number => Number(fields[number - 3]);
  return {
    parentPid: at(4),
    ownUs: (at(14) + at(15)) * JIFFY_US,
    childrenUs: (at(16) + at(17)) * JIFFY_US,
  };
}

/** CPU time so far of the threads whose name contains `name`, from the lines of their stat files. */
export function threadsUs(stats: string, name: string): number {
  let total = 0;
  for (const line of stats.split('\n')) {
    const close = line.lastIndexOf(')');
    if (close >= 0 && line.slice(line.indexOf('('), close).includes(name))
      total += processTimes(line)?.ownUs ?? 0;
  }
  return total;
}

/** CPU time of a process and all its descendants so far. Servers that fork for each client are counted whole. */
export function processTreeUs(pid: number): number {
  const all = new Map<number, ProcessTimes>();
  for (const name of readdirSync('/proc')) {
    if (!/^\d+$/.test(name)) continue;
    const times = processTimes(readStat(name));
    if (times !== null) all.set(Number(name), times);
  }
  const isInTree = (candidate: number): boolean => {
    let current = candidate;
    while (current > 1) {
      if (current === pid) return true;
      current = all.get(current)?.parentPid ?? 0;
    }
    return false;
  };
  let total = 0;
  for (const [candidate, { ownUs, childrenUs }] of all) {
    if (isInTree(candidate)) total += ownUs + childrenUs;
  }
  return total;
}

/**
 * CPU time so far of a qemu's virtual CPUs: of all its threads but the first, which moves packets and disk blocks. Unlike what
 * the guest's own clocks say, it contains nothing that the host gave to others.
 */
export function virtualCpuUs(qemuPid: number): number {
  let total = 0;
  for (const thread of readdirSync(`/proc/${qemuPid}/task`)) {
    const times = thread === String(qemuPid) ? null : processTimes(readStat(`${qemuPid}/task/${thread}`));
    total += times?.ownUs ?? 0;
  }
  return total;
}

function readStat(pid: string): string {
  try {
    return readFileSync(`/proc/${pid}/stat`, 'utf8');
  } catch {
    return ''; // It ended meanwhile.
  }
}
