/** `npm run vm -- 'command'`: a shell command inside the VM, with its output and exit code. */
import { parseArgs } from 'node:util';
import { toBlockwireError } from '@blockwire/shared/errors.ts';
import { cacheDirectory, ensureKernel } from './kernel.ts';
import { Vm } from './vm.ts';

const USAGE = `usage: npm run vm -- [options] ['command']

Boots the VM, runs the command with bash in the project's directory, ends with its exit code.
Without a command: a shell, when standard input is a terminal.

  --network slirp|tap   slirp (default) or a tap device with offloads
  --memory MIB          4096 by default
  --cpus N              2 by default
  --timeout SECONDS     kill the command after this and exit with 124
  --refresh-kernel      look for a newer kernel first
  --quiet               no progress on standard error
`;

async function main(): Promise<number> {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      network: { type: 'string', default: 'slirp' },
      memory: { type: 'string', default: '4096' },
      cpus: { type: 'string', default: '2' },
      timeout: { type: 'string' },
      'refresh-kernel': { type: 'boolean', default: false },
      quiet: { type: 'boolean', default: false },
      help: { type: 'boolean', default: false },
    },
  });
  const { network } = values;
  const interactive = positionals.length === 0;
  const numbers = [values.memory, values.cpus, values.timeout ?? '1'].map(Number);
  const isValid =
    (network === 'slirp' || network === 'tap') &&
    numbers.every((number) => number > 0) &&
    positionals.length < 2;
  if (values.help || !isValid || (interactive && !process.stdin.isTTY)) {
    (values.help ? process.stdout : process.stderr).write(USAGE);
    return values.help ? 0 : 2;
  }
  const onProgress = (message: string) => {
    if (!values.quiet) process.stderr.write(`${message}\n`);
  };
  if (values['refresh-kernel']) await ensureKernel(cacheDirectory(), { refresh: true, onProgress });

  const startedMs = performance.now();
  const machine = await Vm.boot({ network, memoryMiB: numbers[0], cpus: numbers[1], onProgress });
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
    process.once(signal, () =>
      machine.close().finally(() => process.exit(128 + (signal === 'SIGINT' ? 2 : 15))),
    );
  }
  try {
    onProgress(`Ready in ${((performance.now() - startedMs) / 1000).toFixed(1)} s`);
    // script gives the shell inside a terminal of its own.
    const command = interactive ? 'TERM=vt100 script -qfc "bash -i" /dev/null' : positionals[0]!;
    const started = machine.start(command, {
      timeoutMs: values.timeout === undefined ? undefined : numbers[2]! * 1000,
      onOutput: (chunk) => process.stdout.write(chunk),
    });
    if (interactive) process.stdin.setRawMode(true);
    process.stdin.on('data', (chunk: Buffer) => started.write(chunk));
    process.stdin.on('end', () => started.end());
    const { exitCode, timedOut } = await started.done;
    if (timedOut) onProgress(`Killed after ${values.timeout} s`);
    return timedOut ? 124 : exitCode;
  } finally {
    if (interactive) process.stdin.setRawMode(false);
    process.stdin.destroy();
    await machine.close();
  }
}

try {
  process.exitCode = await main();
} catch (error) {
  const { code, message } = toBlockwireError(error);
  process.stderr.write(`${code}: ${message}\n`);
  process.exitCode = 1;
}
