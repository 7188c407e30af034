/**
 * `blockwire node check DIR [--repair] [--json]`: looks at every replica and snapshot of a data directory that no node uses,
 * and says what it finds. Reads only; with --repair it rebuilds what can be computed from the data, and says what it
 * accepts by that. Exit code 0: nothing wrong (or repaired), 1: something is.
 */
import { existsSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { BlockwireError, toBlockwireError } from '@blockwire/shared/errors.ts';
import { createLogger } from '@blockwire/shared/log.ts';
import { checkDataDirectory, type Finding } from './store/check.ts';
import { lockDataDirectory } from './store/lock.ts';

const USAGE = `usage: blockwire node check DIR [--repair] [--json]
  DIR        a node's data directory; the node must not run
  --repair   compute checksums of dirty regions, rebuild missing or damaged checksum and region files
  --json     one JSON document instead of a table`;

interface Options {
  readonly directory: string;
  readonly repair: boolean;
  readonly json: boolean;
}

function parse(argv: readonly string[]): Options {
  const bad = (message: string): BlockwireError =>
    new BlockwireError('BW_INVALID_ARGUMENT', `${message}\n${USAGE}`);
  try {
    const flag = { type: 'boolean', default: false } as const;
    const options = { repair: flag, json: flag };
    const { values, positionals } = parseArgs({ args: [...argv], allowPositionals: true, options });
    const [directory, ...rest] = positionals;
    if (directory === undefined || rest.length > 0) throw bad('one data directory is expected');
    if (!existsSync(directory)) throw bad(`${directory} does not exist`);
    return { directory, ...values };
  } catch (error) {
    throw error instanceof BlockwireError ? error : bad((error as Error).message);
  }
}

function table(findings: readonly Finding[]): string {
  const rows = findings.map(({ replica, severity, what }) => [replica, severity, what] as const);
  const width = (column: 0 | 1, title: string): number =>
    Math.max(title.length, ...rows.map((row) => row[column].length));
  const widths = [width(0, 'REPLICA'), width(1, 'STATE')] as const;
  return [['REPLICA', 'STATE', 'FINDING'] as const, ...rows]
    .map(
      ([replica, severity, what]) => `${replica.padEnd(widths[0])}  ${severity.padEnd(widths[1])}  ${what}\n`,
    )
    .join('');
}

/** Answers the exit code. */
async function main(argv: readonly string[]): Promise<number> {
  if (argv.includes('--help') || argv.includes('-h')) {
    process.stdout.write(`${USAGE}\n`);
    return 0;
  }
  try {
    const { directory, repair, json } = parse(argv);
    const unlock = lockDataDirectory(directory);
    try {
      const log = createLogger('check');
      log.level = 'warn';
      const findings = await checkDataDirectory({ directory, repair, log });
      const clean = findings.every(({ severity }) => severity !== 'problem');
      process.stdout.write(json ? `${JSON.stringify({ directory, clean, findings })}\n` : table(findings));
      return clean ? 0 : 1;
    } finally {
      unlock();
    }
  } catch (thrown) {
    const error = toBlockwireError(thrown);
    process.stderr.write(`${error.code}: ${error.message}\n`);
    return error.code === 'BW_INVALID_ARGUMENT' ? 2 : 1;
  }
}

if (import.meta.main) process.exitCode = await main(process.argv.slice(2));
