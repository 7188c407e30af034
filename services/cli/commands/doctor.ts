/** `blockwire doctor`: what this host has, what is missing for the next better data path, and what `auto` takes. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { text } from 'node:stream/consumers';
import type { Command } from 'commander';
import { type Static, Type } from 'typebox';
import { Value } from 'typebox/value';
import { CommandError, ExitCode } from '../errors.ts';
import { programPath } from '../processes.ts';
import { formatProperties, formatTable } from '../table.ts';
import { type Context, globalOptions } from './context.ts';

const Nullable = Type.Optional(Type.Union([Type.String(), Type.Null()]));

const Report = Type.Object({
  host: Type.Object({ kernel: Type.String(), node: Type.String() }),
  checks: Type.Array(
    Type.Object({ name: Type.String(), ok: Type.Boolean(), detail: Nullable, advice: Nullable }),
  ),
  datapath: Type.Object({
    /** What `--datapath auto` takes; null where no mode works. */
    auto: Type.Union([Type.String(), Type.Null()]),
    modes: Type.Array(
      Type.Object({
        mode: Type.String(),
        available: Type.Boolean(),
        /** What it lacks, in words. */
        missing: Type.Optional(Type.Union([Type.String(), Type.Array(Type.String()), Type.Null()])),
      }),
    ),
    /** The steps of the ladder inside `fused`. */
    rungs: Type.Optional(
      Type.Array(Type.Object({ name: Type.String(), available: Type.Boolean(), reason: Type.String() })),
    ),
  }),
});
export type Report = Static<typeof Report>;

/** The exit code: 0 when a device can be made on this host, else 1. */
export function addDoctorCommand(
  program: Command,
  context: Context,
  setExitCode: (code: ExitCode) => void,
): void {
  program
    .command('doctor')
    .description('show what this host offers: kernel, io_uring, ublk, data path modes')
    .action(async (_options: unknown, command: Command) => {
      const answer = await runDoctor();
      const report = parseReport(answer);
      context.output.stdout(globalOptions(command).json ? answer : formatReport(report));
      setExitCode(report.datapath.auto === null ? ExitCode.FAILED : ExitCode.OK);
    });
}

/** The probing needs the native addon, which only the agent's own program loads. */
async function runDoctor(): Promise<string> {
  const path = programPath('doctor');
  if (!existsSync(path))
    throw new CommandError('BW_INTERNAL', `${path} is missing; is the checkout complete?`);
  const child = spawn(process.execPath, [path, '--json'], { stdio: ['ignore', 'pipe', 'inherit'] });
  const [answer, [code, signal]] = await Promise.all([text(child.stdout), once(child, 'exit')]);
  if (answer.trim() === '')
    throw new CommandError(
      'BW_INTERNAL',
      `the host check ended without an answer (${signal ?? `exit code ${code}`})`,
    );
  return answer;
}

/** The last line is the report; earlier ones may tell of progress. */
export function parseReport(answer: string): Report {
  let document: unknown;
  try {
    document = JSON.parse(answer.trim().split('\n').at(-1)!);
  } catch {
    document = undefined;
  }
  if (Value.Check(Report, document)) return document;
  throw new CommandError('BW_PROTOCOL', 'the host check gave an answer that this program does not know');
}

export function formatReport({ host, checks, datapath }: Report): string {
  const checkTable = formatTable(
    [
      { header: 'CHECK', value: (check) => check.name },
      { header: 'RESULT', value: (check) => (check.ok ? 'ok' : 'missing') },
      { header: 'DETAIL', value: (check) => check.detail ?? '' },
    ],
    checks,
  );
  const modeTable = formatTable(
    [
      { header: 'DATA PATH', value: (mode) => mode.mode },
      { header: 'AVAILABLE', value: (mode) => (mode.available ? 'yes' : 'no') },
      {
        header: 'MISSING',
        value: ({ missing }) => (Array.isArray(missing) ? missing.join('; ') : (missing ?? '')),
      },
    ],
    datapath.modes,
  );
  const rungTable = formatTable(
    [
      { header: 'INSIDE FUSED', value: (rung) => rung.name },
      { header: 'AVAILABLE', value: (rung) => (rung.available ? 'yes' : 'no') },
      { header: 'REASON', value: (rung) => rung.reason },
    ],
    datapath.rungs ?? [],
  );
  const advice = checks
    .filter((check) => !check.ok && check.advice)
    .map((check): [string, string] => [check.name, check.advice!]);
  const parts = [
    formatProperties([
      ['kernel', host.kernel],
      ['node', host.node],
    ]),
    checkTable,
    modeTable,
    ...(datapath.rungs === undefined ? [] : [rungTable]),
    ...(advice.length === 0 ? [] : [`What to do:\n${formatProperties(advice)}`]),
    datapath.auto === null
      ? 'No data path works on this host: volumes cannot be attached here.\n'
      : `--datapath auto takes: ${datapath.auto}\n`,
  ];
  return parts.join('\n');
}
