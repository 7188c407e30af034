/** The programs that this command starts. They are never imported: each runs as a process of its own. */
import { fileURLToPath } from 'node:url';

export type Role = 'control' | 'node' | 'agent';

const SOURCES = {
  control: '../control/main.ts',
  node: '../node/main.ts',
  nodeCheck: '../node/check.ts',
  agent: '../../agent/main.ts',
  doctor: '../../agent/doctor.ts',
  orphans: '../../agent/orphans.ts',
} as const;

export type Program = keyof typeof SOURCES;

/** The file to give to Node (process.execPath). */
export function programPath(program: Program): string {
  return fileURLToPath(new URL(SOURCES[program], import.meta.url));
}

export function isRole(text: string | undefined): text is Role {
  return text === 'control' || text === 'node' || text === 'agent';
}
