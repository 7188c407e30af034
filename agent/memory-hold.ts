/**
 * Memory of an agent must not depend on its own devices: a page of it that is swapped out to one, or an allocation that
 * waits until dirty pages are written to one, waits for this process, which waits.
 *
 * mlockall(2) is no way to get there: V8 gives memory back with madvise(MADV_DONTNEED), which the kernel refuses for
 * locked memory, and then V8 ends the process.
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { native } from '@blockwire/native/native.ts';
import type { Logger } from '@blockwire/shared/log.ts';

/** Among the last that the kernel kills when memory runs out: without the agent, devices stand still. */
const OOM_SCORE = '-900';
const CGROUPS = '/sys/fs/cgroup';

/** To be called before any other thread is made. What cannot be had is logged. */
export function holdMemory(log: Logger): void {
  const steps: Readonly<Record<string, () => void>> = {
    'an I/O flusher': () => native.becomeIoFlusher(),
    'spared when memory runs out': () => writeFileSync('/proc/self/oom_score_adj', OOM_SCORE),
    'kept out of swap': stayOutOfSwap,
  };
  for (const [name, step] of Object.entries(steps)) {
    try {
      step();
    } catch (error) {
      const reason = error instanceof Error ? error.message : String(error);
      log.warn({ reason }, `this process is not ${name}: memory pressure may stall its devices`);
    }
  }
}

/** The limit belongs to the cgroup: set here only where no other process is in it. */
function stayOutOfSwap(): void {
  const path = /^0::(.*)$/m.exec(readFileSync('/proc/self/cgroup', 'utf8'))?.[1];
  if (path === undefined) throw new Error('there is no cgroup2 hierarchy');
  const group = join(CGROUPS, path);
  if (path !== '/' && readFileSync(join(group, 'memory.swap.max'), 'utf8').trim() === '0') return;
  const members = readFileSync(join(group, 'cgroup.procs'), 'utf8').trim().split('\n');
  if (path === '/' || members.some((pid) => Number(pid) !== process.pid)) {
    throw new Error(
      'it shares its cgroup: give it one of its own with memory.swap.max 0 (systemd: MemorySwapMax=0)',
    );
  }
  writeFileSync(join(group, 'memory.swap.max'), '0');
}
