/**
 * `npm run bench -- [SUITE] [options]`: measures Blockwire against others on the same work and prints ratios.
 */
import { writeFile } from 'node:fs/promises';
import { parseArgs } from 'node:util';
import { BlockwireError, toBlockwireError } from '@blockwire/shared/errors.ts';
import { describeEnvironment, loadAverage } from './environment.ts';
import { Cleanup } from './processes.ts';
import { renderSummary, summarize } from './report.ts';
import type { Suite } from './suite.ts';
import { suiteAgent } from './suite-agent.ts';
import { suiteFirst } from './suite-first.ts';
import { suiteNode } from './suite-node.ts';

const SUITES: Readonly<Record<string, Suite>> = { first: suiteFirst, node: suiteNode, agent: suiteAgent };

const INTERRUPT_MS_MAX = 15_000;
const PATIENCE_S = 600;
const QUICK_PATIENCE_S = 60;

const USAGE = `usage: npm run bench -- [first|node|agent] [options]
  first   our device, fused and copy, against the kernel's nbd client, in the VM (default)
  node    our storage node against other NBD servers, on this host
  agent   every datapath, one and two mirrors, against the kernel's nbd client and its NVMe/TCP, in the VM
  --quick         few jobs (unless --only), short runs
  --rounds N      how often each cell is measured
  --server NAME   first, agent: node (ours) or nbdkit; node: those to compare with, separated by commas
  --patience S    for how long cells may wait for a quiet host, all in all
  --only LIST     only jobs whose name contains one of these, such as '4k read,64k'
  --section LIST  agent: some of tap, loopback, peer, separated by commas; node: memory, disk
  --device LIST   agent: these devices, such as nbd-client,fused-zc,fused-zc-x2; see test/bench/README.md
  --json FILE     also write every round and the medians to FILE`;

async function run(cleanup: Cleanup, signal: AbortSignal): Promise<number> {
  const { values, positionals } = parseArguments();
  if (values.help) {
    process.stdout.write(`${USAGE}\n`);
    return 0;
  }
  const name = positionals[0] ?? 'first';
  const suite = SUITES[name];
  if (suite === undefined || positionals.length > 1)
    throw usageError(`no such suite: ${positionals.join(' ')}`);
  if (name === 'first' && values.section !== undefined)
    throw usageError('--section is for the suites agent and node');
  if (name !== 'agent' && values.device !== undefined) throw usageError('--device is for the suite agent');
  const rounds = values.rounds === undefined ? null : Number(values.rounds);
  if (rounds !== null && !(Number.isInteger(rounds) && rounds >= 1)) throw usageError('--rounds: 1 or more');

  const patienceS = Number(values.patience ?? (values.quick ? QUICK_PATIENCE_S : PATIENCE_S));
  if (!(patienceS >= 0)) throw usageError('--patience: seconds');

  const startedAt = new Date().toISOString();
  const startMs = performance.now();
  const say = (message: string): void => {
    const seconds = ((performance.now() - startMs) / 1000).toFixed(0).padStart(4);
    process.stderr.write(`[${seconds} s] ${message}\n`);
  };
  const environment = await describeEnvironment();
  const { sections, facts } = await suite({
    quick: values.quick,
    rounds,
    server: values.server ?? null,
    only: values.only ?? null,
    sections: values.section?.split(',') ?? null,
    devices: values.device?.split(',') ?? null,
    patienceMs: patienceS * 1000,
    cleanup,
    signal,
    onProgress: say,
    onSample: ({ job, competitor, round, metrics, failure }, done, total) => {
      const outcome = metrics === null ? `FAILED: ${failure}` : `${metrics.iops.toFixed(0)} IOPS`;
      say(`${done}/${total} round ${round + 1}, ${job}, ${competitor}: ${outcome}`);
    },
  });
  if (signal.aborted && sections.every(({ samples }) => samples.length === 0)) return 1;
  const loadAfter = loadAverage();
  const tables = sections.map((section) => ({
    ...section,
    summary: summarize(section.samples, section.layout),
  }));
  const command = ['npm run bench --', ...process.argv.slice(2).map(quoted)].join(' ');
  const versions = Object.values(environment.programs).join(', ');
  const lines = [
    '',
    `host: ${environment.cpuCount} x ${environment.cpu}, Linux ${environment.kernel}; ${versions}`,
    ...facts,
    ...(signal.aborted ? ['INTERRUPTED: the tables have what was measured until then'] : []),
    `load average before ${environment.loadBefore}, after ${loadAfter}`,
    'ratios: medians of the rounds’ own ratios to the baseline; IOPS: more is better; CPU/IO: less is better',
    ...tables.flatMap(({ title, summary, layout }) => ['', title, '', renderSummary(summary, layout)]),
    '',
    `again: ${command}`,
  ];
  process.stdout.write(`${lines.join('\n')}\n`);
  if (values.json !== undefined) {
    const document = {
      suite: name,
      ...{ command, startedAt, environment, loadAfter, facts },
      tables: tables.map(({ title, layout, samples, summary }) => ({ title, layout, summary, samples })),
    };
    await writeFile(values.json, `${JSON.stringify(document, null, 1)}\n`);
  }
  const failed = sections.some(({ samples }) => samples.some(({ metrics }) => metrics === null));
  return failed || signal.aborted ? 1 : 0;
}

function parseArguments() {
  try {
    return parseArgs({
      allowPositionals: true,
      options: {
        quick: { type: 'boolean', default: false },
        rounds: { type: 'string' },
        patience: { type: 'string' },
        server: { type: 'string' },
        only: { type: 'string' },
        section: { type: 'string' },
        device: { type: 'string' },
        json: { type: 'string' },
        help: { type: 'boolean', default: false },
      },
    });
  } catch (error) {
    throw usageError(error instanceof Error ? error.message : String(error));
  }
}

/** An argument as a shell takes it. */
function quoted(argument: string): string {
  return /^[\w./=:-]+$/.test(argument) ? argument : `'${argument.replaceAll("'", `'\\''`)}'`;
}

function usageError(message: string): BlockwireError {
  return new BlockwireError('BW_INVALID_ARGUMENT', `${message}\n${USAGE}`);
}

const cleanup = new Cleanup();
const abort = new AbortController();
let interruptedCode: number | null = null;
for (const signal of ['SIGINT', 'SIGTERM'] as const) {
  // What was measured so far is still printed; once more, or too long, ends it at once.
  process.on(signal, () => {
    const exitCode = signal === 'SIGINT' ? 130 : 143;
    if (interruptedCode !== null) process.exit(exitCode);
    interruptedCode = exitCode;
    abort.abort();
    setTimeout(() => process.exit(exitCode), INTERRUPT_MS_MAX).unref();
    void cleanup.run();
  });
}
let code = 1;
try {
  code = await run(cleanup, abort.signal);
} catch (error) {
  const { code: name, message } = toBlockwireError(error);
  if (!abort.signal.aborted) process.stderr.write(`${name}: ${message}\n`);
}
await cleanup.run();
process.exit(interruptedCode ?? code);
