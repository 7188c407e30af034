/** Tells what this host offers for each data path and what is missing: `node doctor.ts`, one JSON document on stdout. */
import { readFileSync } from 'node:fs';
import { release } from 'node:os';
import { probeHost } from './datapath/probe.ts';
import { UblkFeature } from './ublk/uapi.ts';

interface Check {
  readonly name: string;
  readonly ok: boolean;
  readonly detail: string;
  /** What to do about it; empty if it is well. */
  readonly advice: string;
}

function check(name: string, ok: boolean, detail: string, advice: string): Check {
  return { name, ok, detail, advice: ok ? '' : advice };
}

function ioUringDisabled(): string {
  try {
    return readFileSync('/proc/sys/kernel/io_uring_disabled', 'utf8').trim();
  } catch {
    return 'absent';
  }
}

const probe = await probeHost();
const nodeMajor = Number(process.versions.node.split('.')[0]);
const named = Object.entries(UblkFeature)
  .filter(([, bit]) => (probe.features & bit) !== 0)
  .map(([name]) => name);
const recovery = UblkFeature.USER_RECOVERY | UblkFeature.USER_RECOVERY_REISSUE;

const checks: Check[] = [
  check('node', nodeMajor >= 24, process.versions.node, 'run Node.js 24 or newer'),
  check(
    'root',
    process.getuid?.() === 0,
    `uid ${process.getuid?.()}`,
    'run the agent as root: zero copy needs it',
  ),
  check(
    'io_uring',
    probe.ioUring === null,
    probe.ioUring ?? 'rings with DEFER_TASKRUN work',
    `use Linux 6.1 or newer and allow io_uring (kernel.io_uring_disabled is ${ioUringDisabled()})`,
  ),
  check(
    'ublk',
    probe.ublk,
    probe.ublk ? `features 0x${probe.features.toString(16)}: ${named.join(', ')}` : 'no /dev/ublk-control',
    'load the module: modprobe ublk_drv',
  ),
  check(
    'ublk recovery',
    (probe.features & recovery) === recovery,
    (probe.features & recovery) === recovery ? 'devices survive their agent' : 'no USER_RECOVERY_REISSUE',
    'use Linux 6.1 or newer: without it a killed agent takes its devices along',
  ),
];

const auto = probe.modes.find(({ available }) => available)?.mode ?? null;
process.stdout.write(
  `${JSON.stringify({ host: { kernel: release(), node: process.versions.node }, checks, datapath: { auto, modes: probe.modes, rungs: probe.rungs } })}\n`,
);
